"""Every row against every other: on what share of the images it does better, and whether the difference is real."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from petlbench.leaderboard.plots.cells import cells_axes, colour_bar, paint, write_number
from petlbench.leaderboard.plots.lists import explain_test, list_width, not_compared
from petlbench.leaderboard.plots.style import INK, names, table_sheet
from petlbench.leaderboard.table import Table

TITLE = "Wins on the same images"

_NUMBERED = 40
"""Tables of at most this many rows have room for figures in the cells."""


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
    sheet = table_sheet(table, TITLE, width, top + size + 0.15, notes)
    axes = cells_axes(sheet, left, top, size, labels, [str(row.rank) for row in rows])
    axes.set_xlabel("against the method of rank", fontsize=7.5, loc="left")
    bins = paint(axes, np.where(np.eye(len(rows), dtype=bool), np.nan, pairs.wins))
    for i, j in np.ndindex(*pairs.wins.shape):
        if i != j and pairs.differs[i, j]:
            axes.add_patch(Rectangle((j - 0.44, i - 0.44), 0.88, 0.88, fill=False, ec=INK, lw=0.7))
        if i != j and len(rows) <= _NUMBERED:
            write_number(axes, i, j, float(pairs.wins[i, j]), bold=bool(pairs.differs[i, j]))
    colour_bar(sheet, bins, left + size + 0.2, top, size, "images won (%)")
    return sheet.figure
