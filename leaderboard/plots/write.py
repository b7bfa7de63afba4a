"""From a board to the files of its plots: ``plots/<table>/<plot>.svg`` and ``.png``."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from petlbench.harness.json_files import write_atomically
from petlbench.leaderboard.html_writer import Figure as PageFigure
from petlbench.leaderboard.plots import (
    critical_difference,
    learning_curves,
    parameters,
    peak_memory,
    recall_bars,
    seed_spread,
    training_time,
    win_matrix,
)
from petlbench.leaderboard.plots.style import describe, save, styled
from petlbench.leaderboard.table import Board, Table

KINDS = ("svg", "png")
FOLDER = "plots"

_SLUG_LIMIT = 80


class Plot(NamedTuple):
    """A kind of picture."""

    title: str
    draw: Callable[[Table], Figure | None]
    """Returns None where the table has nothing to show."""


PLOTS: dict[str, Plot] = {
    "parameters": Plot(parameters.TITLE, parameters.draw),
    "training_time": Plot(training_time.TITLE, training_time.draw),
    "peak_memory": Plot(peak_memory.TITLE, peak_memory.draw),
    "recall_bars": Plot(recall_bars.TITLE, recall_bars.draw),
    "critical_difference": Plot(critical_difference.TITLE, critical_difference.draw),
    "win_matrix": Plot(win_matrix.TITLE, win_matrix.draw),
    "seed_spread": Plot(seed_spread.TITLE, seed_spread.draw),
    "learning_curves": Plot(learning_curves.TITLE, learning_curves.draw),
}
"""File name to plot, in the order in which a page shows them."""
PAGE = ("parameters", "recall_bars", "critical_difference")
"""Those that the HTML page shows; all of them would make it several times as large."""


def write_plots(
    board: Board, out_dir: Path, *, plots: Iterable[str] = PLOTS, kinds: Iterable[str] = KINDS
) -> list[Path]:
    """Write every plot of every table below ``out_dir/plots``; equal boards give equal bytes.

    A plot for which a table holds too little (no second seed, no learning curve) is left out of its folder; an older file
    of that name goes.

    Args:
        board: With its tables.
        out_dir: Made if absent.
        plots: Keys of :data:`PLOTS`.
        kinds: File endings, of :data:`KINDS`.

    Returns:
        The files, in the order of tables and plots.

    Raises:
        ValueError: Unknown plot or kind.
        OSError: ``out_dir`` cannot be written.
    """
    wanted, endings = list(plots), list(kinds)
    for name in wanted:
        _known(name, PLOTS, "plot")
    for kind in endings:
        _known(kind, KINDS, "kind of picture")
    rendered = {
        _place(out_dir, slug, name, kind): content
        for table, slug in zip(board.tables, table_slugs(board), strict=True)
        for name in wanted
        for kind, content in _render(name, table, endings).items()
    }
    # After the last was drawn, so that an error leaves the old files as they were.
    for path, content in rendered.items():
        if content is None:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, content)
    return [path for path, content in rendered.items() if content is not None]


def page_figures(board: Board, out_dir: Path) -> list[PageFigure]:
    """The plots of :data:`PAGE` that :func:`write_plots` left below ``out_dir/plots``, for the HTML page."""
    places = [
        (index, caption(name, table), _place(out_dir, slug, name, "svg"))
        for index, (table, slug) in enumerate(zip(board.tables, table_slugs(board), strict=True))
        for name in PAGE
    ]
    return [PageFigure(said, path.read_bytes(), index) for index, said, path in places if path.is_file()]


def caption(plot: str, table: Table) -> str:
    """What a plot shows of which table, one line of plain text, for those who cannot see it too."""
    return f"{PLOTS[plot].title}: {describe(table)}"


def table_slugs(board: Board) -> list[str]:
    """A distinct folder name per table, of ASCII letters, digits, dots and hyphens."""
    slugs = [file_slug(table.title) for table in board.tables]
    return [
        f"{slug}-{hashlib.sha256(repr(table.setting).encode()).hexdigest()[:8]}" if slugs.count(slug) > 1 else slug
        for slug, table in zip(slugs, board.tables, strict=True)
    ]


def file_slug(title: str) -> str:
    """ASCII letters, digits, dots and hyphens, for the name of a file or folder."""
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", ascii_only).strip("-.")[:_SLUG_LIMIT] or "table"


def _place(out_dir: Path, slug: str, plot: str, kind: str) -> Path:
    return out_dir / FOLDER / slug / f"{plot}.{kind}"


def _render(plot: str, table: Table, kinds: Iterable[str]) -> dict[str, bytes | None]:
    """Kind to content; None where the table has nothing to show."""
    with styled():
        figure = PLOTS[plot].draw(table)
        return {kind: None if figure is None else save(figure, kind, caption(plot, table)) for kind in kinds}


def _known(name: str, names: Iterable[str], what: str) -> None:
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(names)}")
