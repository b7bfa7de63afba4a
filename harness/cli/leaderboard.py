"""`benchmark leaderboard`: from a folder of records to tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petlbench.harness.cli import options as o
from petlbench.harness.cli.records import complain, need_folder, need_records
from petlbench.harness.cli.say import output

if TYPE_CHECKING:
    from rich.console import Console

    from petlbench.leaderboard.html_writer import Figure


def leaderboard(
    results: o.Folder = Path("results"),
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to write board.md, board.csv, ... (default: the results folder)."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT[,...]",
            help="md, csv, html, tex, parquet, pairs, json; repeatable (default: md,csv,html).",
        ),
    ] = None,
    plots: Annotated[
        bool, typer.Option("--plots", help="Also draw every table: plots/TABLE/PLOT.svg and .png.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the board as JSON; write nothing.")] = False,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Succeed although some records are unreadable.")
    ] = False,
) -> None:
    """Write the board as Markdown, CSV and one HTML page, or in the formats asked for, and print it.

    The same records always give the same bytes. Unreadable records are
    reported, left out, and make the command fail.
    """
    from petlbench.leaderboard.frame import to_json
    from petlbench.leaderboard.table import build_board

    need_folder(results)
    wanted = _formats(formats)
    if as_json and wanted:
        raise typer.BadParameter("it prints one format and writes nothing; leave out --format", param_hint="--json")
    if as_json and plots:
        raise typer.BadParameter("it writes nothing; leave out --plots", param_hint="--json")
    if as_json:
        board = build_board(results)
        need_records(results, not board.empty)
        typer.echo(to_json(board), nl=False)
        unreadable = complain(board.problems)
    else:
        unreadable = publish(results, out or results, output(), wanted, plots=plots)
    if unreadable and not skip_corrupt:
        raise typer.Exit(2)


def publish(results: Path, out: Path, console: Console, formats: Sequence[str] = (), *, plots: bool = False) -> bool:
    """Write and print the board of a results folder; True where a record was unreadable.

    Args:
        results: Folder of records.
        out: Where the board goes.
        console: Where it is printed.
        formats: Keys of ``petlbench.leaderboard.board.WRITERS``; none for the usual ones.
        plots: Draw every table, below ``out/plots``, and put the main plots into the page.
    """
    from petlbench.leaderboard.board import FORMATS, write_board
    from petlbench.leaderboard.collector import collector_paused
    from petlbench.leaderboard.console import render_console
    from petlbench.leaderboard.table import build_board

    with collector_paused():
        board = build_board(results)
        need_records(results, not board.empty)
        drawn: list[Path] = []
        figures: list[Figure] = []
        if plots:
            from petlbench.leaderboard.plots.write import page_figures, write_plots

            drawn = write_plots(board, out)
            figures = page_figures(board, out)
        paths = [*write_board(board, out, formats=formats or FORMATS, figures=figures), *drawn]
    render_console(board.tables, console)
    for path in paths:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
    return complain(board.problems)


def _formats(given: Sequence[str] | None) -> list[str]:
    """Names without repetition, from ``--format md,csv --format html``."""
    from petlbench.leaderboard.board import WRITERS

    names = [name.strip().lower() for part in given or () for name in part.split(",")]
    for name in names:
        if name not in WRITERS:
            raise typer.BadParameter(f"{name!r} is no format; choose from {', '.join(WRITERS)}", param_hint="--format")
    return list(dict.fromkeys(names))
