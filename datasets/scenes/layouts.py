"""The registry of scene layouts: one function per scene class, and the free collage."""

from __future__ import annotations

from collections.abc import Callable

from petlbench.datasets.scenes.builder import Builder

Layout = Callable[[Builder], None]
LAYOUTS: dict[str, Layout] = {}
COLLAGE = "collage"


def lays_out(label: str) -> Callable[[Layout], Layout]:
    """Register the decorated function as the layout of a scene class."""

    def register(layout: Layout) -> Layout:
        LAYOUTS[label] = layout
        return layout

    return register
