"""Which rows may show a measured cost, and what a reader must know of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from petlbench.leaderboard.plots.style import names
from petlbench.leaderboard.row import Row, cost_conditions
from petlbench.leaderboard.table import Table

_CONDITIONS = ("device", "threads", "processes", "kind of memory")

_REASONS = {"packed": "only run packed, beside others on one GPU", "busy": "only run on a busy machine"}
"""By the word that a board has in the place of the cost."""


def measured(table: Table, of: Callable[[Row], float | None], why: Callable[[Row], str]) -> tuple[list[Row], list[str]]:
    """Rows with a cost of their own, and notes that name the others.

    Args:
        table: Its rows are asked.
        of: The cost of a row; None where it has none, here as on the board.
        why: The board's word for the reason.
    """
    named = names(table.rows)
    rows: list[Row] = []
    without: dict[str, list[str]] = {}
    for row in table.rows:
        if of(row) is not None:
            rows.append(row)
        else:
            without.setdefault(_REASONS.get(why(row), "not measured"), []).append(named[row.group.key])
    return rows, [f"Left out ({reason}): {', '.join(left)}." for reason, left in without.items()]


def cached(row: Row) -> bool:
    """Whether any seed trained on stored features of the frozen towers."""
    return any(cost_conditions(entry.record)["cached features"] for entry in row.group.entries)


def explain_costs(rows: Sequence[Row], caching: str, over_seeds: str) -> list[str]:
    """What stands between these costs: stored features, devices, trials side by side.

    Args:
        rows: Those shown.
        caching: What stored features change; empty where no row uses them.
        over_seeds: Which value stands for the seeds.
    """
    notes = []
    if caching:
        notes.append(f"Ringed rows train on stored features of the frozen towers: {caching}.")
    conditions = [cost_conditions(entry.record) for row in rows for entry in row.group.entries]
    for name in _CONDITIONS:
        if len(found := sorted({str(values[name]) for values in conditions})) > 1:
            notes.append(f"Not all rows compare: they differ in {name} ({', '.join(found)}).")
    if len(devices := {str(values["device"]) for values in conditions}) == 1:
        beside = ", some trials beside others on the machine" if _shared(conditions) else ""
        notes.append(f"Measured on {devices.pop()}{beside}; {over_seeds}.")
    return notes


def _shared(conditions: Sequence[dict[str, object]]) -> bool:
    return any(values["concurrent trials"] != 1 for values in conditions)
