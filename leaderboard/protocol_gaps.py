"""What stands between a published row and records of ours: data, weights, training, choice of epoch, ties."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from petlbench.harness.record import Record
from petlbench.leaderboard import text
from petlbench.leaderboard.group import Group
from petlbench.leaderboard.published import PublishedRow, parameters
from petlbench.leaderboard.statistics import mean

UNSTATED = "not stated"
_CHOSEN = {"val": "best_val", "test": "test_max", "last": "last", "none": "none"}
_RULES = {
    "best_val": "best epoch on validation",
    "test_max": "best epoch on test",
    "last": "last epoch",
    "none": "nothing was chosen",
}
_STRICT_RULES = ("index", "optimistic", "pessimistic", "expected")
"""Tie rules under which only the very pair counts."""


@dataclass(frozen=True)
class Gap:
    """One difference in protocol.

    Attributes:
        what: What differs.
        theirs: Of the published row.
        ours: Of our records.
        blocks: True where it makes the two numbers incomparable.
    """

    what: str
    theirs: str
    ours: str
    blocks: bool = False

    @property
    def line(self) -> str:
        """One line of plain text."""
        return f"{self.what}: theirs {self.theirs}; ours {self.ours}"


@dataclass(frozen=True)
class Ours:
    """A group of our records as numbers; recalls in percent.

    Attributes:
        group: The records.
        label: Method, and the options in which its groups differ.
        mean: Metric to mean over the seeds.
        sd: Metric to standard deviation; None for a single seed.
        trained: Trained scalars, with the heads that join unaligned towers.
        heads: Those of new heads among them, which a model whose towers are aligned does not have.
    """

    group: Group
    label: str
    mean: dict[str, float]
    sd: dict[str, float | None]
    trained: int
    heads: int = 0

    @property
    def record(self) -> Record:
        """The first record; what is the same for all seeds is read from it."""
        return self.group.entries[0].record

    @property
    def backbone(self) -> str:
        """Name of the backbone and the side of its pictures."""
        known = self.record.backbone or {}
        return f"{self.record.spec['backbone']['name']}, {known.get('resolution', 'unknown')} px"

    @property
    def trains(self) -> bool:
        """Whether anything was trained."""
        return self.record.params is not None and self.record.params.trained > 0


def gaps(row: PublishedRow, ours: Ours) -> tuple[Gap, ...]:
    """What stands between a published row and records of ours, in the order in which it weighs."""
    return tuple(
        gap
        for part in (_data(row, ours), _backbone(row, ours), _training(row, ours), _measuring(row, ours))
        for gap in part
    )


def chosen(row: PublishedRow) -> str:
    """How the epoch of a published row was chosen, in words."""
    return _RULES[_CHOSEN[row.selection]] if row.selection in _CHOSEN else UNSTATED


def _data(row: PublishedRow, ours: Ours) -> list[Gap]:
    data = ours.record.data
    assert data is not None
    test = data.splits["test"]
    mine = f"{test.images:,} images, {test.captions:,} captions"
    if row.split is None:
        return [Gap("test split", UNSTATED, mine, blocks=True)]
    found = []
    if (row.split.test_images, row.split.test_captions) != (test.images, test.captions):
        captions = row.split.test_captions
        theirs = f"{row.split.test_images:,} images, {'captions' if captions is None else f'{captions:,} captions'}"
        theirs += f" {UNSTATED}" * (captions is None)
        found.append(Gap("test split", theirs, mine, blocks=True))
    elif row.split.cards and data.name not in row.split.cards:
        found.append(Gap("files of the data set", f"those of the card {' or '.join(row.split.cards)}", data.name))
    return found


def _backbone(row: PublishedRow, ours: Ours) -> list[Gap]:
    theirs, mine = row.known, ours.record.backbone or {}
    name, source = str(mine.get("architecture", "unknown")), str(mine.get("source", "unknown"))
    printed = f"{UNSTATED} ({row.row.backbone})" if row.row.backbone else UNSTATED
    if theirs.architecture is None:
        return [Gap("backbone", printed, f"{name} from {source}", blocks=True)]
    found = []
    # The suffix is open_clip's way to ask for an activation, which is compared by itself.
    if theirs.architecture != name.removesuffix("-quickgelu"):
        found.append(Gap("backbone", theirs.architecture, name, blocks=True))
    if not any(fnmatch.fnmatchcase(source, pattern) for pattern in theirs.sources):
        found.append(Gap("weights", theirs.weights or UNSTATED, source, blocks=True))
    for key, unit in (("activation", ""), ("resolution", " px")):
        wanted, has = getattr(theirs, key), mine.get(key)
        if wanted is None or wanted != has:
            stated = UNSTATED if wanted is None else f"{wanted}{unit}"
            found.append(Gap(key, stated, f"{has}{unit}", blocks=True))
    return found


def _training(row: PublishedRow, ours: Ours) -> list[Gap]:
    """Of rows that train; weights that others trained are compared by their name."""
    record = ours.record
    if not ours.trains:
        return []
    data, selection = record.data, record.selection
    assert data is not None and selection is not None
    found = []
    if row.row.tuned_on and row.row.tuned_on.lower() != row.dataset:
        found.append(Gap("training data", row.row.tuned_on, data.name, blocks=True))
    for split, images in (
        ("train", row.split.train_images if row.split else None),
        ("val", row.split.val_images if row.split else None),
    ):
        has = data.splits[split].images if split in data.splits else None
        if images != has:
            found.append(Gap(f"{split} split", _images(images), _images(has, "none")))
    size, own = parameters(row.size), ours.trained - ours.heads
    if size is not None and not (size[0] <= own <= size[1] and not ours.heads):
        heads = f", and {text.count(ours.heads)} in new heads" if ours.heads else ""
        found.append(Gap("trained parameters", row.size, text.count(own) + heads))
    rule = ours.group.setting.rule
    if _CHOSEN.get(row.selection) != rule:
        found.append(Gap("selection", chosen(row), _RULES.get(rule, rule)))
    if row.seeds != len(ours.group.entries):
        found.append(Gap("seeds", UNSTATED if row.seeds is None else str(row.seeds), str(len(ours.group.entries))))
    if selection.budget_trials > 1:
        found.append(Gap("tuning", UNSTATED, f"{selection.budget_trials} configurations tried on validation"))
    return found


def _measuring(row: PublishedRow, ours: Ours) -> list[Gap]:
    tests = [entry.record.metrics["test"] for entry in ours.group.entries]
    rule = ours.group.setting.tie_rule
    scores = [tests_of for tests_of in (_under(tests, name) for name in _STRICT_RULES) if tests_of is not None]
    spread = f" (our mR is {min(scores):.2f} to {max(scores):.2f} over all rules)" if scores else ""
    found = [Gap("ties", row.ties or UNSTATED, f"{rule}{spread}")]
    if tests[0].scoring == "two_stage":
        found.append(Gap("scoring", "everything is ranked", ours.group.scoring))
    return found


def _under(tests: Sequence[Any], rule: str) -> float | None:
    """Mean mR of our records under a tie rule, None where one does not state it."""
    values = [
        test.recalls["mR"] if test.tie_rule == rule else test.other_rules.get(rule, {}).get("mR") for test in tests
    ]
    return None if any(value is None for value in values) else mean(values)


def _images(count: int | None, otherwise: str = UNSTATED) -> str:
    return otherwise if count is None else f"{count:,} images"
