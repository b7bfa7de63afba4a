"""A board as CSV: one row per group, or one per pair of rows."""

from __future__ import annotations

import pandas as pd

from petlbench.leaderboard import text
from petlbench.leaderboard.frame import to_frame
from petlbench.leaderboard.pairs_frame import pairs_to_frame
from petlbench.leaderboard.table import Board


def render_csv(board: Board) -> str:
    """UTF-8 text with a header line, Unix line ends and numbers at full precision (see :func:`to_frame`).

    A text field that a spreadsheet would run as a formula gets a leading apostrophe.
    """
    return _to_csv(to_frame(board))


def render_pairs(board: Board) -> str:
    """All pairs of rows by the same rules (see :func:`pairs_to_frame`)."""
    return _to_csv(pairs_to_frame(board))


def _to_csv(frame: pd.DataFrame) -> str:
    safe = frame.map(lambda cell: text.defused(cell) if isinstance(cell, str) else cell)
    return safe.to_csv(index=False, lineterminator="\n")
