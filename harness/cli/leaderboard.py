"""`benchmark leaderboard`: from a folder of records to tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from petlbench.leaderboard.load import Problem


def leaderboard(
    results: Annotated[Path, typer.Option(metavar="DIR", help="Folder of records.")] = Path("results"),
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to write board.md and board.csv (default: the results folder)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the board as JSON; write nothing.")] = False,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Succeed although some records are unreadable.")
    ] = False,
) -> None:
    """Write the board as Markdown and CSV, and print it.

    The same records always give the same bytes. Unreadable records are
    reported, left out, and make the command fail.
    """
    from rich.console import Console

    from petlbench.harness.record import RecordError
    from petlbench.leaderboard.frame import to_json
    from petlbench.leaderboard.table import build_board

    if not results.is_dir():
        raise RecordError(f"{results}: no such folder; give the folder that `benchmark run` wrote with --results")
    if as_json:
        board = build_board(results)
        typer.echo(to_json(board))
        unreadable = _complain(board.problems)
    else:
        unreadable = publish(results, out or results, Console())
    if unreadable and not skip_corrupt:
        raise typer.Exit(2)


def publish(results: Path, out: Path, console: Console) -> bool:
    """Write and print the board of a results folder; True where a record was unreadable."""
    from petlbench.leaderboard.board import write_board
    from petlbench.leaderboard.console import render_console
    from petlbench.leaderboard.table import build_board

    board = build_board(results)
    paths = write_board(board, out)
    render_console(board.tables, console)
    for path in paths:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
    return _complain(board.problems)


def _complain(problems: Sequence[Problem]) -> bool:
    for problem in problems:
        typer.secho(f"{'error' if problem.unreadable else 'warning'}: {problem.message}", fg="red", err=True)
    return any(problem.unreadable for problem in problems)
