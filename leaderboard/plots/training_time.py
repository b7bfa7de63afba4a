"""mR against the seconds of training."""

from __future__ import annotations

from matplotlib.figure import Figure

from petlbench.leaderboard.plots.costs import cached, explain_costs, measured
from petlbench.leaderboard.plots.scatter import Cost, draw_scatter
from petlbench.leaderboard.table import Table

TITLE = "Mean recall against training time"

_COST = Cost(
    of=lambda row: row.train_s or 0.0, axis="training time (s)", tick=lambda value: f"{value:,.10g}", ringed=cached
)


def draw(table: Table) -> Figure | None:
    """One point per row with a measured time; None where no row took any."""
    rows, notes = measured(table, lambda row: row.train_s, lambda row: row.no_seconds)
    if not any(row.train_s for row in rows):
        return None
    caching = (
        "the pass that stores them is not in the training time and serves every later trial"
        if any(cached(row) for row in rows)
        else ""
    )
    return draw_scatter(table, rows, TITLE, _COST, [*explain_costs(rows, caching, "mean over the seeds"), *notes])
