"""mR against the peak memory of training."""

from __future__ import annotations

from matplotlib.figure import Figure

from petlbench.leaderboard.plots.costs import cached, explain_costs, measured
from petlbench.leaderboard.plots.scatter import Cost, draw_scatter
from petlbench.leaderboard.row import cost_conditions
from petlbench.leaderboard.table import Table

TITLE = "Mean recall against peak memory"

_KINDS = {"process_resident": "resident memory of the process", "cuda_allocated": "allocated on the GPU"}


def draw(table: Table) -> Figure | None:
    """One point per row with a measured peak; None where no row has one."""
    rows, notes = measured(table, lambda row: row.peak_memory, lambda row: row.no_memory)
    if not any(row.peak_memory for row in rows):
        return None
    kinds = sorted({str(cost_conditions(e.record)["kind of memory"]) for row in rows for e in row.group.entries})
    said = " or ".join(_KINDS.get(kind, kind.replace("_", " ")) for kind in kinds)
    cost = Cost(
        of=lambda row: (row.peak_memory or 0) / 2**30,
        axis=f"peak memory of training (GiB, {said})",
        tick=lambda value: f"{value:,.10g}",
        ringed=cached,
    )
    caching = "the frozen towers do not run while they train" if any(cached(row) for row in rows) else ""
    return draw_scatter(table, rows, TITLE, cost, [*explain_costs(rows, caching, "the largest of the seeds"), *notes])
