"""Painters of vehicles, vessels and aircraft."""

from __future__ import annotations

from petlbench.datasets.scenes.canvas import Canvas, box, placed, shade
from petlbench.datasets.scenes.model import Item, Point
from petlbench.datasets.scenes.painters import cast_box, paints


@paints("car", cast=cast_box)
def car(c: Canvas, it: Item) -> None:
    """A car with its glass."""
    colour = c.colour(it.colour, it.tone)
    c.poly(box(it.x, it.y, it.a, it.b, it.angle), colour)
    c.poly(placed(box(it.a * 0.04, 0, it.a * 0.52, it.b * 0.82, 0), it.x, it.y, it.angle), shade(colour, 0.5))
    c.poly(placed(box(-it.a * 0.03, 0, it.a * 0.3, it.b * 0.72, 0), it.x, it.y, it.angle), shade(colour, 1.08))


@paints("truck", cast=cast_box)
def truck(c: Canvas, it: Item) -> None:
    """A lorry: a trailer behind a cab."""
    colour = c.colour(it.colour, it.tone)
    c.poly(placed(box(-it.a * 0.12, 0, it.a * 0.76, it.b, 0), it.x, it.y, it.angle), shade(colour, 1.05))
    c.poly(placed(box(it.a * 0.39, 0, it.a * 0.2, it.b * 0.9, 0), it.x, it.y, it.angle), shade(colour, 0.62))


_HALF_PLANE: list[Point] = [
    (0.5, 0.0), (0.46, 0.035), (0.16, 0.05), (-0.08, 0.46), (-0.17, 0.46), (-0.06, 0.05),
    (-0.36, 0.035), (-0.44, 0.17), (-0.5, 0.17), (-0.46, 0.02),
]  # fmt: skip


PLANE = [*_HALF_PLANE, *((u, -v) for u, v in reversed(_HALF_PLANE))]


def _cast_plane(c: Canvas, it: Item) -> None:
    c.cast_outline(placed(PLANE, it.x, it.y, it.angle, it.a), it.height)


@paints("plane", cast=_cast_plane)
def plane(c: Canvas, it: Item) -> None:
    """An airliner."""
    colour = c.colour(it.colour, it.tone)
    c.poly(placed(PLANE, it.x, it.y, it.angle, it.a), colour)
    for side in (-1, 1):
        engine = box(0.07, side * 0.17, 0.09, 0.035, 0)
        c.poly(placed(engine, it.x, it.y, it.angle, it.a), shade(colour, 0.6))
    c.line(placed([(-0.3, 0), (0.46, 0)], it.x, it.y, it.angle, it.a), shade(colour, 1.12), 0.5)


HULL: list[Point] = [(0.5, 0.0), (0.34, 0.4), (0.1, 0.5), (-0.46, 0.5), (-0.5, 0.36)]


def _hull(it: Item, shrink: float = 1.0) -> list[Point]:
    whole = [*HULL, *((u, -v) for u, v in reversed(HULL))]
    return placed([(u * it.a * shrink, v * it.b * shrink) for u, v in whole], it.x, it.y, it.angle)


def _cast_hull(c: Canvas, it: Item) -> None:
    c.cast(_hull(it), it.height)


@paints("boat", "ship", cast=_cast_hull)
def vessel(c: Canvas, it: Item) -> None:
    """A boat or ship: hull, deck, superstructure and, on a ship, hatches."""
    colour = c.colour(it.colour, it.tone)
    c.poly(_hull(it), shade(colour, 0.8))
    c.poly(_hull(it, 0.82), shade(colour, 1.08) if it.a < 16 else shade(colour, 0.98))
    if it.a < 16:
        c.poly(placed(box(-it.a * 0.1, 0, it.a * 0.3, it.b * 0.46, 0), it.x, it.y, it.angle), (92, 100, 112))
        return
    c.poly(placed(box(-it.a * 0.36, 0, it.a * 0.15, it.b * 0.8, 0), it.x, it.y, it.angle), (238, 238, 236))
    for k in range(4):
        hatch = box(it.a * (-0.18 + 0.15 * k), 0, it.a * 0.11, it.b * 0.6, 0)
        c.poly(placed(hatch, it.x, it.y, it.angle), shade(colour, 0.64))


@paints("container", cast=cast_box)
def container(c: Canvas, it: Item) -> None:
    """A stack of shipping containers."""
    colour = c.colour(it.colour, it.tone)
    c.poly(box(it.x, it.y, it.a, it.b, it.angle), shade(colour, 0.9))
    c.line(placed([(-it.a / 2, 0), (it.a / 2, 0)], it.x, it.y, it.angle), shade(colour, 1.15), 0.5)


@paints("train", cast=cast_box)
def train(c: Canvas, it: Item) -> None:
    """A train of wagons."""
    colour = c.colour(it.colour, it.tone)
    wagons = max(2, round(it.a / 13))
    for k in range(wagons):
        wagon = box(it.a * ((k + 0.5) / wagons - 0.5), 0, it.a / wagons - 0.8, it.b, 0)
        c.poly(placed(wagon, it.x, it.y, it.angle), colour)
        stripe = box(it.a * ((k + 0.5) / wagons - 0.5), 0, it.a / wagons - 2.0, it.b * 0.4, 0)
        c.poly(placed(stripe, it.x, it.y, it.angle), shade(colour, 1.25))
