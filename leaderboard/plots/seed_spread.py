"""The mR of every single seed: how much of a difference is luck of the draw."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from petlbench.leaderboard import text
from petlbench.leaderboard.plots.families import FAMILIES, family_of
from petlbench.leaderboard.plots.lists import (
    figures_beside,
    list_axis,
    list_height,
    list_labels,
    list_width,
    score_axis,
)
from petlbench.leaderboard.plots.style import INK, best_rows, explain_marks, family_handles, names, table_sheet, tint
from petlbench.leaderboard.table import Table

TITLE = "Mean recall of every seed"

_PLOT, _NUMBERS, _LEGEND = 5.2, 1.0, 0.42


def draw(table: Table) -> Figure | None:
    """One dot per seed; None where no row has two."""
    rows, cut = best_rows(table.rows)
    if all(row.n < 2 for row in rows):
        return None
    labels = list_labels(rows, names(rows))
    left = list_width(labels)
    height = list_height(rows)
    notes = [
        "Open markers are single seeds, the vertical stroke is their mean; at the right mean ± sample standard deviation over "
        "the seeds. Pale bars are 95 % bootstrap intervals over the test images, for these seeds.",
        *explain_marks(rows),
        *cut,
    ]
    sheet = table_sheet(table, TITLE, left + _PLOT + _NUMBERS + 0.2, _LEGEND + height + 0.5, notes)
    axes = sheet.axes(left, _LEGEND, _PLOT, height)
    list_axis(axes, labels)
    ends = []
    for place, row in enumerate(rows):
        family = FAMILIES[family_of(row)]
        if row.interval:
            axes.barh(
                place, row.interval[1] - row.interval[0], left=row.interval[0], height=0.62, color="#ececec", zorder=1
            )
        axes.plot([row.mean["mR"]] * 2, [place - 0.34, place + 0.34], color=INK, lw=1.4, zorder=3)
        axes.plot(
            row.seed_scores,
            [place] * row.n,
            ls="none",
            marker=family.marker,
            ms=4.6,
            mfc=(*tint(family.colour, 0.35), 0.75),
            mec=family.colour,
            mew=0.8,
            zorder=4,
        )
        ends += [*row.seed_scores, *(row.interval or ())]
        figures_beside(axes, place, text.spread(row.mean["mR"], row.sd["mR"]), _NUMBERS, fontsize=7)
    score_axis(axes, ends)
    handles = [
        *family_handles(rows, hollow=True),
        Line2D([], [], color=INK, lw=1.4, ls="none", marker="|", ms=8, mew=1.4, label="mean"),
        Patch(facecolor="#ececec", label="95 % interval"),
    ]
    sheet.legend(handles, left, 0.0, columns=5)
    return sheet.figure
