"""A board as one CSV file."""

from __future__ import annotations

from typing import Any

from petlbench.leaderboard.frame import to_frame
from petlbench.leaderboard.table import Board

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render_csv(board: Board) -> str:
    """UTF-8 text with a header line, Unix line ends and numbers at full precision (see :func:`to_frame`).

    A text field that a spreadsheet would run as a formula gets a leading apostrophe.
    """
    return to_frame(board).map(_defused).to_csv(index=False, lineterminator="\n")


def _defused(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
