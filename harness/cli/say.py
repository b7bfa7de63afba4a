"""What several verbs print alike."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 160
"""Characters of a line where there is no terminal to keep to."""


def output() -> Console:
    """Standard output. In a pipe or a file tables keep their lines whole, unless ``COLUMNS`` gives a width."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_WIDE)


def say_notes(console: Console, notes: Iterable[str]) -> None:
    """Print what a user should know, as it is."""
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def say_left_out(console: Console, refused: Iterable[tuple[str, str]]) -> None:
    """Print the combinations that make no sense, with the reasons."""
    for label, reason in refused:
        console.print(f"left out: {label}: {reason}", markup=False, soft_wrap=True)
