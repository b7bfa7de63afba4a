"""Every recall of every row, direction by direction, with what the split allows and what needs no model."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from petlbench.leaderboard import text
from petlbench.leaderboard.emphasis import Top, tops
from petlbench.leaderboard.load import METRICS
from petlbench.leaderboard.plots.lists import figures_beside, list_axis, list_height, list_labels, list_width
from petlbench.leaderboard.plots.style import (
    INK,
    best_rows,
    explain_marks,
    names,
    table_sheet,
    tint,
)
from petlbench.leaderboard.row import Row
from petlbench.leaderboard.table import Table

TITLE = "Recall in both directions"

_COLOURS = {"i2t": "#0072B2", "t2i": "#E69F00"}
_DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}
_LINES = {  # looks of the reference rows, by the first word of their name
    "ceiling": {"color": INK, "lw": 1.4, "ls": "-"},
    "oracle": {"color": INK, "lw": 1.0, "ls": (0, (4, 1.5))},
    "chance": {"color": INK, "lw": 1.0, "ls": (0, (1, 1.2))},
}
_PANEL, _FIGURES, _GAP, _LEGEND = 1.02, 0.31, 0.44, 0.62


def draw(table: Table) -> Figure | None:
    """Bars of R@1, R@5 and R@10 in both directions, rows in the order of their mR."""
    rows, cut = best_rows(table.rows)
    best = tops(rows)
    labels = list_labels(rows, names(rows))
    left = list_width(labels)
    width = left + 6 * (_PANEL + _GAP) + 0.16
    height = list_height(rows)
    notes = [
        "Bars and figures are means over the seeds, percent; strokes are plus and minus one standard deviation over the "
        "seeds. Rows in the order of mR.",
        *explain_marks(rows),
        *cut,
    ]
    sheet = table_sheet(table, TITLE, width, _LEGEND + height + 0.48, notes)
    for place, metric in enumerate(METRICS[:-1]):
        at = left + place * (_PANEL + _GAP) + (0.1 if metric.startswith("t2i") else 0)
        axes = sheet.axes(at, _LEGEND, _PANEL, height)
        list_axis(axes, labels if not place else [""] * len(rows))
        _bars(axes, rows, metric, best[metric])
        axes.set_title(f"R@{metric[5:]}", fontsize=8.5, pad=4)
        if metric.endswith("_r1"):
            sheet.text(at, _LEGEND - 0.27, _DIRECTIONS[metric[:3]], size=9, weight="bold", va="bottom")
        for reference in table.references:
            if metric in reference.recalls:
                axes.axvline(reference.recalls[metric], zorder=4, **_look(reference.name))
    handles = [Line2D([], [], label=text.plain(name), **_look(name)) for name, _ in table.references]
    sheet.figure.legend(
        handles=handles,
        loc="upper right",
        bbox_to_anchor=(1 - 0.2 / sheet.width, 1 - 0.58 / sheet.height),
        ncols=3,
        frameon=False,
        fontsize=7.5,
        borderpad=0,
    )
    return sheet.figure


def _bars(axes: Axes, rows: list[Row], metric: str, best: Top) -> None:
    colour = _COLOURS[metric[:3]]
    for place, row in enumerate(rows):
        mean, sd = row.mean[metric], row.sd[metric]
        axes.barh(place, mean, height=0.72, color=tint(colour, 0.42), lw=0, zorder=2)
        if sd:
            axes.hlines(place, mean - sd, mean + sd, color=INK, lw=0.9, zorder=3)
        weight = "bold" if best.place(mean) == "best" else "normal"
        figures_beside(axes, place, text.percent(mean, 1), _FIGURES, fontsize=6.6, fontweight=weight)
    axes.set_xlim(0, 102)
    axes.set_xticks([0, 50, 100])
    axes.set_xlabel("recall (%)", fontsize=7)


def _look(name: str) -> dict[str, Any]:
    return dict(_LINES.get(name.split()[0], _LINES["chance"]))
