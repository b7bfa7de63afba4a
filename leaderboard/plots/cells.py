"""Pictures in which every cell of a matrix has a colour, and a bar that says which."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray

from petlbench.leaderboard.plots.style import INK, Sheet, drawable

BLANK = "#e6e6e6"
"""Of cells that have no value."""

_STEP = 10
"""Percentage points per colour."""
_SCALE = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#c6dbef", "#4a98cc"])
"""Grows darker with the share, in grey print too, and dark text stays legible on all of it."""


def cells_axes(
    sheet: Sheet, left: float, top: float, size: float, rows: Sequence[str], columns: Sequence[str], **look: Any
) -> Axes:
    """Square axes with a name per row at the left and per column above; ``look`` is that of the columns' names."""
    axes = sheet.axes(left, top, size, size)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), [drawable(name) for name in columns], **look)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_yticks(range(len(rows)), [drawable(name) for name in rows])
    axes.tick_params(length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def paint(axes: Axes, shares: NDArray[np.float64]) -> BoundaryNorm:
    """Colour the cells by their percentage, grey where it is NaN; returns which percentages share a colour.

    There is one path per colour: an embedded picture would blur, and single squares would be many.
    """
    largest = np.nanmax(shares, initial=0.0)
    bins = BoundaryNorm(range(0, max(1, math.ceil(largest / _STEP)) * _STEP + 1, _STEP), _SCALE.N)
    colours: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for i, j in np.ndindex(*shares.shape):
        colours[BLANK if math.isnan(shares[i, j]) else _SCALE(int(bins(shares[i, j])))].append((i, j))
    square = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)]) * 0.97
    for colour, cells in colours.items():
        path = Path.make_compound_path(*(Path(square + np.array([j, i]), closed=True) for i, j in cells))
        axes.add_patch(PathPatch(path, facecolor=colour, lw=0))
    return bins


def write_number(axes: Axes, i: int, j: int, share: float, bold: bool = False) -> None:
    """The percentage in its cell, without decimals."""
    look = {"fontsize": 6, "fontweight": "bold"} if bold else {"fontsize": 5.8}
    axes.text(j, i, f"{share:.0f}", ha="center", va="center", color=INK, **look)  # type: ignore[arg-type]


def colour_bar(sheet: Sheet, bins: BoundaryNorm, left: float, top: float, size: float, label: str) -> None:
    """What the colours mean, beside cells that are ``size`` inches high."""
    bar = sheet.figure.colorbar(ScalarMappable(bins, _SCALE), cax=sheet.axes(left, top, 0.13, min(size, 1.8)))
    bar.set_label(label, fontsize=7.5)
    bar.outline.set_visible(False)  # type: ignore[operator]
