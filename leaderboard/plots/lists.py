"""Pictures in which each row of a table is a line: its name at the left, something drawn, figures at the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from petlbench.leaderboard.markdown import marks
from petlbench.leaderboard.pairwise import LEVEL, Pairwise
from petlbench.leaderboard.plots.style import RULE, drawable, inches, names
from petlbench.leaderboard.row import Row

ROW = 0.19
"""Inches of a line."""


def list_labels(rows: Sequence[Row], named: dict[str, str]) -> list[str]:
    """Rank, name and marks of every row; ``named`` is of :func:`petlbench.leaderboard.plots.style.names`."""
    return [f"{row.rank}  {named[row.group.key]} {marks(row)}".rstrip() for row in rows]


def list_width(labels: Sequence[str]) -> float:
    """Inches that the names of :func:`list_axis` need at the left."""
    return 0.35 + max(inches(drawable(label), 7.5) for label in labels)


def list_height(rows: Sequence[Row]) -> float:
    """Inches of all lines."""
    return max(len(rows), 3) * ROW


def list_axis(axes: Axes, labels: Sequence[str]) -> None:
    """Rows from top to bottom along y, named at the left, with a hairline under each."""
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), [drawable(label) for label in labels])
    axes.tick_params(axis="y", length=0, pad=4)
    axes.spines["left"].set_visible(False)
    axes.hlines(range(len(labels)), 0, 1, transform=axes.get_yaxis_transform(), color=RULE, lw=0.5, zorder=0)


def score_axis(axes: Axes, ends: Sequence[float]) -> None:
    """mR along x, a little beyond all of these values."""
    pad = 0.04 * (max(ends) - min(ends)) or 1.0
    axes.set_xlim(max(0.0, min(ends) - pad), min(100.0, max(ends) + pad))
    axes.set_xlabel("mean recall mR on test (%)")
    axes.grid(axis="x", color=RULE, lw=0.5)
    axes.set_axisbelow(True)


def figures_beside(axes: Axes, place: int, said: str, width: float, **look: Any) -> None:
    """Figures of a line in the ``width`` inches at the right of the axes."""
    axes.annotate(
        said,
        (1, place),
        (width * 72, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        va="center",
        **look,
    )


def explain_test(pairs: Pairwise) -> str:
    """How the rows were compared."""
    return (
        f"sign-flip test over {pairs.images:,} test images, {pairs.flips:,} flips, Holm-corrected over {pairs.pairs:,} "
        f"pair{'s' * (pairs.pairs != 1)}, level {100 * LEVEL:g} %"
    )


def not_compared(pairs: Pairwise, rows: Sequence[Row]) -> list[str]:
    """Names those of all ``rows`` of the table that were left out, in one paragraph; none where all were compared."""
    named = names(rows)
    return [f"Not compared: {', '.join(named[row.group.key] for row in pairs.left_out)}."] if pairs.left_out else []
