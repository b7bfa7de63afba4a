"""Headings, compass names and frames of reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from petlbench.datasets.scenes.canvas import box
from petlbench.datasets.scenes.model import FRAME, Item, Point

MIDDLE = FRAME / 2
Box = tuple[float, float, float, float]
WHOLE: Box = (4, 4, FRAME - 4, FRAME - 4)


def direction_of(angle: float) -> str:
    """The compass axis nearest to a heading in degrees (0 = east, clockwise)."""
    axes = ("east-west", "northwest-southeast", "north-south", "northeast-southwest")
    return axes[round((angle % 180) / 45) % 4]


def compass(angle: float) -> str:
    """The compass point a heading in degrees looks to (0 = east, clockwise)."""
    points = ("east", "south-east", "south", "south-west", "west", "north-west", "north", "north-east")
    return points[round((angle % 360) / 45) % 8]


def inside(it: Item, margin: float = 1.0) -> bool:
    """Whether the whole box of the object lies in the frame."""
    return all(margin <= x <= FRAME - margin and margin <= y <= FRAME - margin for x, y in box(*it[:5]))


def position_of(points: Sequence[Point]) -> str | None:
    """Where points lie in the frame; None when they spread over much of it or sit between two names."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    if max(max(xs) - min(xs), max(ys) - min(ys)) > 66:
        return None
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    if abs(x - MIDDLE) < 14 and abs(y - MIDDLE) < 14:
        return "centre"
    vertical = "north" if y < 46 else "south" if y > 82 else ""
    lateral = "west" if x < 46 else "east" if x > 82 else ""
    if vertical and lateral:
        return f"{vertical}-{lateral}"
    if vertical and abs(x - MIDDLE) < 14:
        return vertical
    return lateral if lateral and abs(y - MIDDLE) < 14 else None


class Frame:
    """A turned coordinate system about a centre: ``u`` along the heading, ``v`` across it, units."""

    def __init__(self, angle: float, x: float = MIDDLE, y: float = MIDDLE):
        self.angle, self.x, self.y = angle, x, y
        turn = math.radians(angle)
        self._c, self._s = math.cos(turn), math.sin(turn)

    def at(self, u: float, v: float) -> Point:
        """Scene coordinates of (u, v)."""
        return self.x + u * self._c - v * self._s, self.y + u * self._s + v * self._c

    def across(self, v: float, reach: float = 150) -> tuple[Point, Point]:
        """A line along the heading at offset ``v``, long enough to leave the frame."""
        return self.at(-reach, v), self.at(reach, v)
