"""What several verbs print alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def say_notes(console: Console, notes: Iterable[str]) -> None:
    """Print what a user should know, as it is."""
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def say_left_out(console: Console, refused: Iterable[tuple[str, str]]) -> None:
    """Print the combinations that make no sense, with the reasons."""
    for label, reason in refused:
        console.print(f"left out: {label}: {reason}", markup=False, soft_wrap=True)
