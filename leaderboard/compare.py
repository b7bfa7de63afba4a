"""Our records beside published rows, and the difference where the two may be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from petlbench.leaderboard.group import Group, labels
from petlbench.leaderboard.load import METRICS
from petlbench.leaderboard.protocol_gaps import Gap, Ours, gaps
from petlbench.leaderboard.published import PublishedRow, base_name
from petlbench.leaderboard.row import over_seeds

TOLERANCE = 2.0
"""Points of mR. Seeds alone move mR by 0.5 to 1.5 points on these sets, and published recipes are incomplete."""


@dataclass(frozen=True)
class Comparison:
    """A published row and one group of ours.

    Attributes:
        published: The row.
        ours: None where there is no finished record of that method on that data set.
        gaps: What stands between them.
        tolerance: Points of mR.
    """

    published: PublishedRow
    ours: Ours | None
    gaps: tuple[Gap, ...]
    tolerance: float

    @property
    def comparable(self) -> bool:
        """Same test split, weights, activation and resolution, all stated, and trained on that set; cuts of train may differ."""
        return self.ours is not None and not any(gap.blocks for gap in self.gaps)

    @property
    def difference(self) -> dict[str, float] | None:
        """Metric to ours minus theirs, points; only mR where the source gives no recalls. None where not comparable."""
        if self.ours is None or not self.comparable:
            return None
        theirs = {**(self.published.recalls or {}), "mR": self.published.score}
        return {metric: self.ours.mean[metric] - theirs[metric] for metric in METRICS if metric in theirs}

    @property
    def within(self) -> bool | None:
        """Whether mR differs by no more than the tolerance; None where not comparable."""
        difference = self.difference
        return None if difference is None else abs(difference["mR"]) <= self.tolerance

    @property
    def verdict(self) -> str:
        """One line of plain text."""
        if self.ours is None:
            return "no finished record of ours"
        if self.difference is None:
            *first, last = (gap.what for gap in self.gaps if gap.blocks)
            return f"not comparable: {', '.join(first)}{' and ' * bool(first)}{last}"
        side = "within" if self.within else "outside"
        return f"mR {self.difference['mR']:+.2f}, {side} the tolerance of {self.tolerance:g} points"


def compare(
    rows: Sequence[PublishedRow],
    groups: Sequence[Group],
    *,
    methods: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
) -> list[Comparison]:
    """Every published row of a method that is here, with every group of ours on the same data set.

    Args:
        rows: Published rows; those that name no method of ours are left out.
        groups: Of :func:`petlbench.leaderboard.group.group_entries`.
        methods: Registered names; all when None.
        datasets: Published data sets; all when None.
        tolerance: Points of mR.

    Returns:
        Sorted by method and data set; a row that nothing of ours meets comes once, without ours.
    """
    known = sorted({row.dataset for row in rows})
    by_place: dict[tuple[str, str | None], list[Group]] = {}
    for group in groups:
        data = group.entries[0].record.data
        assert data is not None  # of status ok
        by_place.setdefault((group.method, base_name(data.name, known)), []).append(group)
    ours = {place: _numbers(members) for place, members in by_place.items()}
    found = []
    for row in sorted(rows, key=lambda r: (r.row.ours or "", r.dataset)):  # stable: the order of the files within
        name = row.row.ours
        if name is None or (methods is not None and name not in methods):
            continue
        if datasets is not None and row.dataset not in datasets:
            continue
        mine = ours.get((name, row.dataset), [])
        found += [Comparison(row, one, gaps(row, one), tolerance) for one in mine] or [
            Comparison(row, None, (), tolerance)
        ]
    return found


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON types; recalls and mR in percent, differences in points."""
    published, ours, row = comparison.published, comparison.ours, comparison.published.row
    return {
        "method": row.ours,
        "dataset": published.dataset,
        "theirs": {
            "method": row.method,
            "source": published.source,
            "table": published.table,
            "paper": published.paper,
            "mark": published.mark,
            "quoted": row.quoted,
            "backbone": row.backbone,
            "trained": published.size or None,
            "selection": published.selection,
            "selection_note": published.selection_note or None,
            "ties": published.ties,
            "split": published.split.model_dump(mode="json") if published.split else None,
            "seeds": published.seeds,
            "recalls": published.recalls,
            "mR": published.score,
            "mR_sd": row.mR_sd,
            "mR_printed": row.mR,
            "mR_misprinted": published.misprinted,
            "note": row.note or None,
            "read_in": published.read_in or None,
            "url": published.url,
            "source_notes": list(published.source_notes),
        },
        "ours": None
        if ours is None
        else {
            "label": ours.label,
            "backbone": ours.backbone,
            "trained": ours.trained,
            "trained_new_heads": ours.heads,
            "selection": ours.group.setting.rule,
            "seeds": list(ours.group.seeds),
            "mean": ours.mean,
            "sd": ours.sd,
            "records": [entry.name for entry in ours.group.entries],
        },
        "comparable": comparison.comparable,
        "difference": comparison.difference,
        "tolerance": comparison.tolerance,
        "within_tolerance": comparison.within,
        "protocol": [
            {"what": g.what, "theirs": g.theirs, "ours": g.ours, "incomparable": g.blocks} for g in comparison.gaps
        ],
        "verdict": comparison.verdict,
    }


def _numbers(groups: Sequence[Group]) -> list[Ours]:
    places: dict[tuple[Any, Any], list[Group]] = {}  # the backbone stands beside the label, so it need not be in it
    for group in groups:
        record = group.entries[0].record
        places.setdefault((record.spec["backbone"]["name"], (record.backbone or {}).get("resolution")), []).append(
            group
        )
    named = {key: label for members in places.values() for key, label in labels(members).items()}
    found = []
    for group in groups:
        means, deviations = over_seeds([entry.record.metrics["test"] for entry in group.entries])
        params = group.entries[0].record.params
        assert params is not None
        found.append(
            Ours(
                group=group,
                label=named[group.key],
                mean=means,
                sd=deviations,
                trained=params.trained,
                heads=params.trained_new_heads,
            )
        )
    return sorted(found, key=lambda one: (one.backbone, one.label))
