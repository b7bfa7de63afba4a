"""Geometry of the small pictures of mR and its interval that stand in the rows of the HTML board."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from petlbench.leaderboard.row import Row

WIDTH, HEIGHT = 120, 14
"""Of a bar, in user units of its SVG."""
_PAD = 4.0
_STEPS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


@dataclass(frozen=True)
class Axis:
    """A linear axis in percent that all rows of a table share.

    Attributes:
        low: Percent at its left end.
        high: Percent at its right end.
    """

    low: float
    high: float

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Axis:
        """Round ends around every mean and interval; never outside 0 to 100."""
        values = [value for row in rows for value in (row.mean["mR"], *(row.interval or ()))]
        low, high = min(values), max(values)
        step = next((s for s in _STEPS if (high - low) / s <= 10), _STEPS[-1])
        ends = (math.floor(low / step) * step, math.ceil(high / step) * step)
        left, right = max(0.0, ends[0]), min(100.0, ends[1])
        if left == right:
            left, right = max(0.0, left - step), min(100.0, right + step)
        return cls(round(left, 1), round(right, 1))

    def x(self, value: float) -> str:
        """User units from the left edge, one decimal."""
        part = (value - self.low) / (self.high - self.low)
        return f"{_PAD + part * (WIDTH - 2 * _PAD):.1f}"


@dataclass(frozen=True)
class Bar:
    """One row's picture; places in user units.

    Attributes:
        mean: Of the dot.
        low: Left end of the line; None without an interval.
        high: Right end.
    """

    mean: str
    low: str | None
    high: str | None

    @classmethod
    def of(cls, row: Row, axis: Axis) -> Bar:
        """The mean of a row and, where it has one, its 95 % interval."""
        low, high = map(axis.x, row.interval) if row.interval else (None, None)
        return cls(axis.x(row.mean["mR"]), low, high)
