"""Where methods are strong and weak: joins stored ranks with classes and captions of the split they were measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from petlbench.datasets.split import DataError, Split, class_name
from petlbench.errors import PetlbenchError
from petlbench.harness.gallery_data import Told, tell_each
from petlbench.leaderboard.breakdown import (
    By,
    Grouping,
    Part,
    break_down,
    by_class,
    by_duplicates,
    by_length,
    confusion,
)
from petlbench.leaderboard.group import group_entries, labels
from petlbench.leaderboard.load import Entry

if TYPE_CHECKING:
    from petlbench.harness.retrial import Places


class BreakdownError(PetlbenchError):
    """Records that do not share a split cannot stand in one table."""


@dataclass(frozen=True)
class Method:
    """One method, with the seeds that were given.

    Attributes:
        label: Distinct among the methods.
        seeds: Rising.
        parts: Groups of queries, then all of them.
        confused: Per direction, (C, C) queries of a class by the class of their first answer; empty where not asked for.
        notes: What must be known of them.
    """

    label: str
    seeds: tuple[int, ...]
    parts: tuple[Part, ...]
    confused: dict[str, NDArray[np.float64]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Breakdown:
    """All methods on one split.

    Attributes:
        dataset: Name of the data set.
        split_sha256: Of the test split.
        by: What queries are grouped by.
        rule: Tie rule.
        said: What the groups are.
        classes: Names of the scene classes; empty where there are none.
        methods: In the order of the records.
    """

    dataset: str
    split_sha256: str
    by: By
    rule: str
    said: str
    classes: tuple[str, ...]
    methods: tuple[Method, ...]


def make_breakdown(
    paths: Sequence[Path],
    places: Places,
    by: By | None = None,
    rule: str = "index",
    *,
    confused: bool = False,
) -> Breakdown:
    """Break the recalls of records down by groups of queries.

    Args:
        paths: Records of one test split; those that differ in the seed only are one method.
        places: Where data, weights and plugins lie on this machine.
        by: What to group by; None: by class where the set has classes, else by length.
        rule: Tie rule, one of ``petlbench.leaderboard.breakdown.RULES``.
        confused: Also count which class answers which; models whose ranks hold no first answers are built again.

    Raises:
        BreakdownError: The records do not share a test split.
        RecordError: A record, its ranks or its adapter is missing or damaged.
        DataError: The data are not those of the records, or have no classes though they are asked for.
    """
    told = tell_each(paths, places, int(confused))
    split = told[0].split
    for other in told[1:]:
        if other.split.sha256 != split.sha256:
            raise BreakdownError(
                f"{told[0].path} and {other.path} were tested on different splits (hash {split.sha256[:12]} and "
                f"{other.split.sha256[:12]}); break them down one by one"
            )
    has_classes = split.labels is not None and bool((split.labels >= 0).any())
    if not has_classes and (by == "class" or confused):
        raise DataError(
            f"data set {told[0].record.spec['dataset']['name']} has no scene classes; use --by length or duplicates"
        )
    chosen: By = by or ("class" if has_classes else "length")
    methods = []
    for label, seeds in _methods(told).items():
        grouping = _grouping(seeds[0], chosen)  # of the captions as that method reads them
        parts = break_down([one.ranks for one in seeds], grouping, rule)
        counted = {}
        if confused and split.labels is not None:
            answers = [one.answers for one in seeds]
            counted = {way: confusion(answers, split.labels, way) for way in ("i2t", "t2i")}
        notes = tuple(dict.fromkeys(note for one in seeds for note in one.notes))
        methods.append(Method(label, tuple(one.record.spec["seed"] for one in seeds), tuple(parts), counted, notes))
    return Breakdown(
        dataset=told[0].record.spec["dataset"]["name"],
        split_sha256=split.sha256,
        by=chosen,
        rule=rule,
        said=grouping.said,
        classes=_classes(split) if has_classes else (),
        methods=tuple(methods),
    )


def _grouping(told: Told, by: By) -> Grouping:
    split = told.split
    if by == "class":
        assert split.labels is not None
        return by_class(split.owner, split.labels, split.classes)
    if by == "length":
        return by_length(split.owner, split.captions)
    return by_duplicates(split.owner, told.scored.text_ids)


def _methods(told: Sequence[Told]) -> dict[str, list[Told]]:
    """Seeds of one spec together, in the order of the records."""
    groups = group_entries(Entry(one.path, str(one.path), one.record) for one in told)
    for group in groups:
        if group.repeats:
            raise BreakdownError(group.problems[0].message)
    named = labels(groups)
    place = {one.path: number for number, one in enumerate(told)}
    found = {named[group.key]: [told[place[entry.path]] for entry in group.entries] for group in groups}
    return dict(sorted(found.items(), key=lambda item: min(place[one.path] for one in item[1])))


def _classes(split: Split) -> tuple[str, ...]:
    assert split.labels is not None
    known = int(split.labels.max()) + 1
    return tuple(class_name(split.classes, label) for label in range(known))
