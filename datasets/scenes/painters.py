"""The registry of painters: which function draws which kind of object, and what shadow it throws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from petlbench.datasets.scenes.canvas import Canvas, box
from petlbench.datasets.scenes.model import Item

Paint = Callable[[Canvas, Item], None]


@dataclass(frozen=True, slots=True)
class Painter:
    """How one kind is drawn; kinds with a shadow are drawn after all shadows have been laid, the others before."""

    draw: Paint
    cast: Paint | None


PAINTERS: dict[str, Painter] = {}


def paints(*kinds: str, cast: Paint | None = None) -> Callable[[Paint], Paint]:
    """Register the decorated function as the painter of ``kinds``."""

    def register(draw: Paint) -> Paint:
        for kind in kinds:
            PAINTERS[kind] = Painter(draw, cast)
        return draw

    return register


def cast_box(canvas: Canvas, item: Item) -> None:
    """Shadow of a box-shaped body."""
    canvas.cast(box(item.x, item.y, item.a, item.b, item.angle), item.height)


def cast_disc(canvas: Canvas, item: Item) -> None:
    """Shadow of a round body of diameter ``item.a``."""
    canvas.cast_disc(item.x, item.y, item.a / 2, item.height)
