"""What verbs that read a folder of records share: the folder must be there, what is wrong in it is told, columns must fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from petlbench.leaderboard.load import Problem

_WIDE = 120
"""Terminals narrower than this get R@1 and mR only."""


def need_folder(folder: Path) -> None:
    """See that a folder of records is there.

    Raises:
        RecordError: It is not.
    """
    from petlbench.harness.json_files import RecordError

    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder; give the folder that `benchmark run` wrote with --results")


def need_records(folder: Path, found: bool) -> None:
    """See that a folder holds records, or files that should be some; an answer about none would look like one.

    Raises:
        RecordError: It holds none; says where they are, if they lie deeper.
    """
    from petlbench.harness.json_files import RecordError

    if not found:
        raise RecordError(
            f"{folder}: holds no record; expected DATASET/METHOD/NAME.json in it, as `benchmark run` writes them with --results. "
            "Give the folder above those of the data sets"
        )


def complain(problems: Sequence[Problem]) -> bool:
    """Print problems to stderr; True where a record was left out."""
    for problem in problems:
        typer.secho(f"{'error' if problem.unreadable else 'warning'}: {problem.message}", fg="red", err=True)
    return any(problem.unreadable for problem in problems)


def fitting(console: Console) -> Sequence[str]:
    """The recalls that a terminal has room for."""
    from petlbench.leaderboard.load import METRICS

    return METRICS if console.width >= _WIDE else ("i2t_r1", "t2i_r1", "mR")
