"""From a results folder to the files of a board: a pure function of the records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from petlbench.harness.json_files import write_atomically
from petlbench.leaderboard.collector import collector_paused
from petlbench.leaderboard.csv_writer import render_csv, render_pairs
from petlbench.leaderboard.explain import Options
from petlbench.leaderboard.frame import to_json
from petlbench.leaderboard.html_writer import Figure, records_from, render_html
from petlbench.leaderboard.latex import render_latex
from petlbench.leaderboard.markdown import render_markdown
from petlbench.leaderboard.parquet_writer import render_parquet
from petlbench.leaderboard.table import Board, build_board

WRITERS: dict[str, Callable[[Board], str | bytes]] = {
    "md": render_markdown,
    "csv": render_csv,
    "html": render_html,
    "tex": render_latex,
    "parquet": render_parquet,
    "pairs": render_pairs,
    "json": to_json,
}
"""Format to writer."""
FORMATS = ("md", "csv", "html")
"""What is written where nothing else is asked for."""


def file_name(name: str) -> str:
    """Of the file of a format."""
    return "board_pairs.csv" if name == "pairs" else f"board.{name}"


def write_board(
    results: Path | Board,
    out_dir: Path,
    *,
    formats: Sequence[str] = FORMATS,
    options: Options | None = None,
    figures: Sequence[Figure] = (),
) -> list[Path]:
    """Write ``board.md``, ``board.csv``, ... atomically; equal records give equal bytes.

    Every format is rendered before the first file is written, so that an error leaves the old files as they were.

    Args:
        results: Folder of records, or a board that was built already.
        out_dir: Made if absent.
        formats: Keys of :data:`WRITERS`.
        options: Random draws; ignored where ``results`` is a board.
        figures: Plots for the HTML page.

    Returns:
        The files, in the order of ``formats``.

    Raises:
        ValueError: Unknown format, or a record whose values a format cannot hold.
        FileNotFoundError: ``results`` is not a folder.
        OSError: ``out_dir`` cannot be written.
    """
    unknown = [name for name in formats if name not in WRITERS]
    if unknown:
        raise ValueError(f"unknown board format {unknown[0]!r}; choose from {', '.join(WRITERS)}")
    board = results if isinstance(results, Board) else build_board(results, options)
    rendered = render_board(board, out_dir, formats, figures)
    for path, payload in rendered.items():
        write_atomically(path, payload)
    return list(rendered)


@collector_paused()
def render_board(
    board: Board, out_dir: Path, formats: Sequence[str] = FORMATS, figures: Sequence[Figure] = ()
) -> dict[Path, bytes]:
    """File to content, of a board that lies in ``out_dir``; writes nothing.

    A page in the results folder or below it links to the records. Arguments and errors as of :func:`write_board`.
    """
    rendered = {}
    for name in formats:
        if name == "html":
            content: str | bytes = render_html(board, records=records_from(out_dir, board), figures=figures)
        else:
            content = WRITERS[name](board)
        rendered[out_dir / file_name(name)] = content.encode() if isinstance(content, str) else content
    return rendered
