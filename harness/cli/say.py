"""What several verbs check and print alike."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 120
"""Terminals narrower than this get R@1 and mR only."""


def need_results(folder: Path) -> None:
    """See that a folder of records is there.

    Raises:
        RecordError: It is not.
    """
    from petlbench.harness.record import RecordError

    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder; give the folder that `benchmark run` wrote with --results")


def shown_metrics(console: Console) -> tuple[str, ...]:
    """The recalls that a table has room for."""
    from petlbench.leaderboard.load import METRICS

    return METRICS if console.width >= _WIDE else ("i2t_r1", "t2i_r1", "mR")


def say_notes(console: Console, notes: Iterable[str]) -> None:
    """Print what a user should know, as it is."""
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def say_left_out(console: Console, refused: Iterable[tuple[str, str]]) -> None:
    """Print the combinations that make no sense, with the reasons."""
    for label, reason in refused:
        console.print(f"left out: {label}: {reason}", markup=False, soft_wrap=True)
