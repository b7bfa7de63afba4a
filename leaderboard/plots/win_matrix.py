"""Every row against every other: on what share of the images it does better, and whether the difference is real."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from numpy.typing import NDArray

from petlbench.leaderboard.plots.lists import explain_test, list_width, not_compared
from petlbench.leaderboard.plots.style import INK, Sheet, drawable, names
from petlbench.leaderboard.table import Table

TITLE = "Wins on the same images"

_STEP = 10
"""Percentage points per colour."""
_NUMBERED = 40
"""Tables of at most this many rows have room for figures in the cells."""
_SCALE = LinearSegmentedColormap.from_list("wins", ["#ffffff", "#c6dbef", "#4a98cc"])
"""Grows darker with the share, in grey print too, and dark text stays legible on all of it."""


def draw(table: Table) -> Figure | None:
    """A cell per ordered pair; None where fewer than two rows can be compared."""
    pairs = table.pairs
    if pairs is None:
        return None
    rows = list(pairs.rows)
    named = names(table.rows)
    labels = [f"{row.rank}  {named[row.group.key]}" for row in rows]
    left, top = list_width(labels), 0.4
    cell = 0.235 if len(rows) > 12 else 0.36 if len(rows) > 5 else 0.55
    size = cell * len(rows)
    width = max(left + size + 1.0, 7.3)
    notes = [
        "Read along a row: the share of test images, percent, on which the method named at the left does better than the one of "
        "that rank at the top (more of the image's queries answered, both directions, averaged over the seeds). The rest of "
        "the images are equal or go the other way.",
        f"Framed, in bold: the two differ in mR ({explain_test(pairs)}).",
        *not_compared(pairs, table.rows),
    ]
    sheet = Sheet(table, TITLE, width, top + size + 0.15, notes)
    axes = sheet.axes(left, top, size, size)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    bins = BoundaryNorm(range(0, max(1, math.ceil(pairs.wins.max() / _STEP)) * _STEP + 1, _STEP), _SCALE.N)
    _paint(axes, pairs.wins, bins)
    axes.set_xticks(range(len(rows)), [str(row.rank) for row in rows])
    axes.xaxis.tick_top()
    axes.set_xlabel("against the method of rank", fontsize=7.5, loc="left")
    axes.xaxis.set_label_position("top")
    axes.set_yticks(range(len(rows)), [drawable(label) for label in labels])
    axes.tick_params(length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i != j:
                _cell(axes, i, j, pairs.wins[i, j], bool(pairs.differs[i, j]), len(rows) <= _NUMBERED)
    high = min(size, 1.8)
    bar = sheet.figure.colorbar(ScalarMappable(bins, _SCALE), cax=sheet.axes(left + size + 0.2, top, 0.13, high))
    bar.set_label("images won (%)", fontsize=7.5)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return sheet.figure


def _paint(axes: Axes, shares: NDArray[np.float64], bins: BoundaryNorm) -> None:
    """Colour the cells, one path per colour: an embedded picture would blur and single squares would be many."""
    colours: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for i, j in np.ndindex(*shares.shape):
        colours["#e6e6e6" if i == j else _SCALE(int(bins(shares[i, j])))].append((i, j))
    square = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)]) * 0.97
    for colour, cells in colours.items():
        path = Path.make_compound_path(*(Path(square + np.array([j, i]), closed=True) for i, j in cells))
        axes.add_patch(PathPatch(path, facecolor=colour, lw=0))


def _cell(axes: Axes, i: int, j: int, share: float, differs: bool, numbered: bool) -> None:
    if differs:
        axes.add_patch(Rectangle((j - 0.44, i - 0.44), 0.88, 0.88, fill=False, ec=INK, lw=0.7))
    if numbered:
        axes.text(
            j,
            i,
            f"{share:.0f}",
            ha="center",
            va="center",
            fontsize=6 if differs else 5.8,
            fontweight="bold" if differs else "normal",
            color=INK,
        )
