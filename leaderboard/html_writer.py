"""A board as one HTML page that needs nothing but itself.

Whatever comes from records is escaped by the template engine, and the page's own policy lets a browser run exactly one
script and one style sheet, the ones whose hashes it names: markup that slipped through would still not run or load.
Plots are embedded as pictures, in which a browser runs no script either.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from petlbench.harness.metrics import DEFINITION, METRIC_VERSION
from petlbench.leaderboard.html_columns import COLUMNS, INTERVAL, MR
from petlbench.leaderboard.html_parts import embedded, render_page
from petlbench.leaderboard.html_view import below, failures, headers, options, views
from petlbench.leaderboard.interval_bar import HEIGHT, WIDTH
from petlbench.leaderboard.markdown import NAMES
from petlbench.leaderboard.pairwise_text import HEADING
from petlbench.leaderboard.summary import NO_TRIAL, SEE_REASONS, SEPARATE, counted, problem_lines, unreadable
from petlbench.leaderboard.table import Board


class Figure(NamedTuple):
    """A plot for the page."""

    caption: str
    """What it shows, plain text; also what a reader hears who cannot see it."""
    svg: bytes
    table: int | None = None
    """Index of the table whose section shows it; None: below all tables."""


def render_html(board: Board, *, records: str | None = None, figures: Sequence[Figure] = ()) -> str:
    """The whole page; equal boards give equal text.

    Args:
        board: Of :func:`petlbench.leaderboard.table.build_board`.
        records: The results folder as seen from the page (``""``: the same folder), for links to records; None makes none.
        figures: Plots, shown with their tables in this order.
    """
    linked = below(records)
    tables = views(board, linked)
    return render_page(
        "board",
        with_script=True,
        counted=counted(board),
        unreadable=unreadable(board),
        separate=SEPARATE,
        no_trial=NO_TRIAL,
        see_reasons=SEE_REASONS,
        tables=tables,
        options=options(tables),
        headers=headers(),
        mr=MR,
        interval=INTERVAL,
        columns=COLUMNS,
        heading=HEADING,
        names=list(NAMES.values()),
        width=WIDTH,
        height=HEIGHT,
        figures=[(figure.table, figure.caption, embedded("image/svg+xml", figure.svg)) for figure in figures],
        failures=failures(board, linked),
        problems=problem_lines(board),
        definition=DEFINITION,
        metric_version=METRIC_VERSION,
    )


def records_from(page_folder: Path, board: Board) -> str | None:
    """The results folder as seen from a page in it or below it; None elsewhere, or where there is no record.

    Only these places give the same page wherever the results folder lies.
    """
    entries = [entry for table in board.tables for row in table.rows for entry in row.group.entries]
    entries += [failure.entry for failure in board.failures]
    if not entries:
        return None
    first = entries[0]
    root = first.path.parents[first.name.count("/")].resolve()
    folder = page_folder.resolve()
    if not folder.is_relative_to(root):
        return None
    return "../" * len(folder.relative_to(root).parts)
