"""Which recalls of a table are its best and second best; shared by the writers that set them off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from petlbench.leaderboard.load import METRICS
from petlbench.leaderboard.row import Row

_DIGITS = 9  # means over seeds of equal recalls differ by rounding noise


class Top(NamedTuple):
    """The two highest distinct values of a column, percent; ``second`` is None where all rows are equal."""

    best: float
    second: float | None

    def place(self, value: float) -> Literal["best", "second"] | None:
        """Where a value of the column stands; ties share a place."""
        rounded = round(value, _DIGITS)
        return "best" if rounded == self.best else "second" if rounded == self.second else None


def tops(rows: Sequence[Row]) -> dict[str, Top]:
    """Metric to its two highest means; reference rows take no part.

    Raises:
        ValueError: No rows.
    """
    if not rows:
        raise ValueError("best of no rows")
    found = {}
    for metric in METRICS:
        best, *rest = sorted({round(row.mean[metric], _DIGITS) for row in rows}, reverse=True)
        found[metric] = Top(best, rest[0] if rest else None)
    return found
