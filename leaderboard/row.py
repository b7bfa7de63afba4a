"""One group as one row of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from petlbench.harness.metrics import RULES, per_image
from petlbench.harness.record import CostPart, MetricsPart, ParamsPart, QueryPart, Record
from petlbench.harness.record_scoring import TwoStagePart
from petlbench.leaderboard.entry_ranks import disagreements, read_ranks
from petlbench.leaderboard.group import Group
from petlbench.leaderboard.load import METRICS, Problem
from petlbench.leaderboard.scoring import mean_query, mean_two_stage
from petlbench.leaderboard.statistics import mean, mean_sd

MIN_SEEDS = 3
"""Below this a trained row carries a dagger and no interval."""

T = TypeVar("T")


@dataclass
class Row:
    """A group's numbers; recalls in percent, sizes in scalars or bytes, times in seconds.

    The fields below ``contributions`` are relative to a table and filled in by :mod:`petlbench.leaderboard.table`.
    """

    group: Group
    label: str
    title: str
    mean: dict[str, float]
    sd: dict[str, float | None]
    other_rules: dict[str, dict[str, float]]
    """Tie rule to metric to mean over the seeds."""
    trained: int
    new_heads: int
    total: int
    added_at_inference: int
    stored_bytes: int
    peak_memory: int | None
    """Largest over the seeds."""
    samples_per_s: float | None
    train_s: float | None
    eval_s: float | None
    cache_s: float | None
    """Seconds spent on running frozen towers once, besides ``train_s``."""
    query: QueryPart | None
    """What a query costs; None where no seed states it."""
    two_stage: TwoStagePart | None
    """Of rows whose recalls come from a shortlist."""
    rules: tuple[str, ...]
    tuning_trials: tuple[int, ...]
    contributions: NDArray[np.float64] | None
    """(N, 2L+1) of :func:`petlbench.harness.metrics.per_image`, mean over the seeds; None without usable ranks."""
    owner: NDArray[np.int32] | None
    rank: int = 0
    interval: tuple[float, float] | None = None
    packed: int = 0
    """Seeds that shared a GPU with other trials: no cost is taken from them."""
    starved: int = 0
    """Seeds, not among the packed, that had to wait for a processor: no seconds are taken from them."""
    p_holm: float | None = None
    within_noise: bool = False
    seeds_overlap: bool = False

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.group.entries)

    @property
    def scoring(self) -> str:
        """How its scores were computed, plain text."""
        return self.group.scoring

    @property
    def no_memory(self) -> str:
        """Why no memory is shown; empty where it is."""
        return "packed" if self.packed == self.n else ""

    @property
    def no_seconds(self) -> str:
        """Why no seconds and rates are shown; empty where they are."""
        return self.no_memory or ("busy" if self.packed + self.starved == self.n else "")

    @property
    def few_seeds(self) -> bool:
        """Too few seeds for an interval. Where nothing is trained the seed changes nothing, and one is enough."""
        return self.n < MIN_SEEDS and self.trained > 0

    @property
    def seed_scores(self) -> list[float]:
        """The mR of every seed, percent."""
        return [entry.record.metrics["test"].recalls["mR"] for entry in self.group.entries]


def make_row(group: Group, label: str) -> tuple[Row, list[Problem]]:
    """Aggregate a group; what is wrong with its ranks files comes back as problems."""
    records = [entry.record for entry in group.entries]
    tests = [record.metrics["test"] for record in records]
    means, deviations = over_seeds(tests)
    shared = set.intersection(*(set(test.other_rules) for test in tests)) - {group.setting.tie_rule}
    params = [_present(record.params) for record in records]
    costs = [_present(record.cost) for record in records]
    alone = [cost for cost in costs if not cost.packed]
    timed = [cost for cost in alone if not cost.starved]
    selections = [_present(record.selection) for record in records]
    contributions, owner, problems = _contributions(group)
    row = Row(
        group=group,
        label=label,
        title=records[0].method.title,
        mean=means,
        sd=deviations,
        other_rules={
            rule: {m: mean([test.other_rules[rule][m] for test in tests]) for m in METRICS}
            for rule in sorted(shared, key=lambda r: (RULES.index(r) if r in RULES else len(RULES), r))
        },
        trained=_whole(params, lambda p: p.trained),
        new_heads=_whole(params, lambda p: p.trained_new_heads),
        total=_whole(params, lambda p: p.total),
        added_at_inference=_whole(params, lambda p: p.added_at_inference),
        stored_bytes=_whole(params, lambda p: p.stored_bytes),
        peak_memory=max((c.peak_memory for c in alone if c.peak_memory is not None), default=None),
        samples_per_s=_mean_known([c.samples_per_s for c in timed]),
        train_s=_mean_known([c.train_s for c in timed]),
        eval_s=_mean_known([c.eval_s for c in timed]),
        cache_s=_mean_known([c.cache_s for c in timed]),
        query=mean_query([c.query for c in timed]),
        two_stage=mean_two_stage(tests),
        packed=len(costs) - len(alone),
        starved=len(alone) - len(timed),
        rules=tuple(sorted({selection.rule for selection in selections})),
        tuning_trials=tuple(sorted({selection.budget_trials for selection in selections})),
        contributions=contributions,
        owner=owner,
    )
    return row, problems


def over_seeds(tests: Sequence[MetricsPart]) -> tuple[dict[str, float], dict[str, float | None]]:
    """Mean and sample standard deviation of every recall, percent."""
    spread = {metric: mean_sd([test.recalls[metric] for test in tests]) for metric in METRICS}
    return {m: value for m, (value, _) in spread.items()}, {m: sd for m, (_, sd) in spread.items()}


def cost_conditions(record: Record) -> dict[str, Any]:
    """What must agree for cost columns to be comparable."""
    cost: CostPart = _present(record.cost)
    return {
        "device": cost.device,
        "threads": cost.threads,
        "processes": cost.workers,
        "concurrent trials": cost.concurrent_trials,
        "kind of memory": cost.memory_kind,
        "cached features": cost.cached_features,
    }


def _contributions(group: Group) -> tuple[NDArray[np.float64] | None, NDArray[np.int32] | None, list[Problem]]:
    """Mean of the per-image contributions over the seeds; None as soon as one seed has no usable ranks."""
    rule, problems = group.setting.tie_rule, []
    total: NDArray[np.float64] | None = None
    owner: NDArray[np.int32] | None = None
    for entry in group.entries:
        try:
            ranks = read_ranks(entry)
            if wrong := next(disagreements(entry, ranks, rule, entry.record.metrics["test"].recalls), None):
                raise ValueError(wrong)
            if owner is not None and not np.array_equal(owner, ranks.owner):
                raise ValueError(f"{entry.ranks_path}: array `owner` differs from that of the row's other seeds")
        except (OSError, ValueError) as error:  # collected here, shown by the caller and counted on the board
            problems.append(Problem(entry.name, str(error), unreadable=False))
            continue
        owner = ranks.owner
        part = per_image(ranks, rule)
        total = part if total is None else total + part
    if problems or total is None:
        return None, None, problems
    return total / len(group.entries), owner, []


def _present(part: T | None) -> T:
    assert part is not None  # load_records lets no record of status ok through without it
    return part


def _whole(parts: Sequence[ParamsPart], of: Callable[[ParamsPart], int]) -> int:
    return round(sum(of(part) for part in parts) / len(parts))


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
