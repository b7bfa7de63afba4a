"""mR against the number of trained parameters."""

from __future__ import annotations

from matplotlib.figure import Figure

from petlbench.leaderboard import text
from petlbench.leaderboard.plots.scatter import Cost, draw_scatter
from petlbench.leaderboard.table import Table

TITLE = "Mean recall against trained parameters"

_COST = Cost(
    of=lambda row: float(row.trained),
    axis="trained parameters",
    tick=lambda value: text.count(round(value)).replace(".00", "").replace(".0 ", " "),
)


def draw(table: Table) -> Figure | None:
    """One point per row; None where no row trains anything, which leaves nothing to compare."""
    if not any(row.trained for row in table.rows):
        return None
    notes = []
    if any(row.new_heads for row in table.rows):
        notes.append("New heads that a method needs on this backbone count as trained.")
    return draw_scatter(table, table.rows, TITLE, _COST, notes)
