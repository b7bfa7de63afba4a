"""Rows of one setting, ranked, with intervals, tests against the best row, reference rows and footnotes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from petlbench.harness.metrics import class_oracle
from petlbench.leaderboard import statistics
from petlbench.leaderboard.collector import collector_paused
from petlbench.leaderboard.explain import Options, explain, footnotes
from petlbench.leaderboard.group import Setting, by_setting, group_entries, labels
from petlbench.leaderboard.load import METRICS, Entry, Loaded, Problem, joined, load_records
from petlbench.leaderboard.pairwise import LEVEL, Pairwise, compare_rows
from petlbench.leaderboard.row import Row, make_row
from petlbench.leaderboard.transfer import load_transfers


class Reference(NamedTuple):
    """A row that no method produced: what the split allows, or what needs no model; percent, not every recall."""

    name: str
    recalls: dict[str, float]


class Failure(NamedTuple):
    """A trial that failed or was stopped."""

    entry: Entry
    reason: str


@dataclass
class Table:
    """Rows that may be compared, best mR first."""

    setting: Setting
    backbone: str
    """Name (or names) of the backbone in the specs."""
    rows: list[Row]
    references: list[Reference]
    facts: list[tuple[str, str]]
    """What the numbers are, in words: term and explanation, plain text."""
    notes: list[str]
    """What a reader must beware of, plain text."""
    options: Options = field(default_factory=Options)
    """Random draws of its intervals and tests."""

    @cached_property
    def pairs(self) -> Pairwise | None:
        """Every row against every other, made when first asked for; None with fewer than two usable rows."""
        return compare_rows(self.rows, self.options)

    @property
    def title(self) -> str:
        """Data set, backbone, resolution and selection rule, plain text."""
        provenance = self.rows[0].group.entries[0].record.backbone or {}
        size = [f"{provenance['resolution']} px"] if "resolution" in provenance else []
        return " · ".join([self.setting.dataset, self.backbone, *size, self.setting.rule])


@dataclass
class Board:
    """All tables of a results folder, and what could not be ranked."""

    tables: list[Table]
    failures: list[Failure]
    problems: list[Problem] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether the folder held no record, nor anything that should be one."""
        return not (self.tables or self.failures or self.problems)


@collector_paused()
def build_board(results: Path, options: Options | None = None) -> Board:
    """Make every table of a results folder.

    Args:
        results: Folder of records.
        options: Numbers of random draws and their seed.

    Returns:
        The board; ``problems`` names every file that was left out and why, for the caller to show.

    Raises:
        FileNotFoundError: ``results`` is not a folder.
    """
    return make_board(joined(load_records(results), load_transfers(results)), options)


@collector_paused()
def make_board(loaded: Loaded, options: Options | None = None) -> Board:
    """:func:`build_board` of records and transfers that were read already."""
    options = options or Options()
    entries = loaded.entries
    groups = group_entries(entries)
    problems = [*loaded.problems, *(problem for group in groups for problem in group.problems)]
    tables = []
    ready: dict[str, Row] = {}
    for setting, members in by_setting(groups).items():
        named = labels(members)
        rows = []
        for group in members:
            if group.key not in ready:
                ready[group.key], wrong = make_row(group, named[group.key])
                problems.extend(wrong)
            # A group in which nothing was chosen stands in several tables: same numbers, another label and rank.
            rows.append(_fresh(ready[group.key], named[group.key]))
        problems.extend(_of_one_split(rows))
        tables.append(make_table(setting, rows, options))
    failures = [Failure(e, _reason(e)) for e in entries if e.record.status != "ok"]
    return Board(tables, failures, sorted(problems, key=lambda p: (p.name, p.message)))


def make_table(setting: Setting, rows: Sequence[Row], options: Options) -> Table:
    """Rank rows by mean mR; fill in intervals and tests of the rows that have usable ranks."""
    ordered = sorted(rows, key=lambda row: (-row.mean["mR"], row.label, row.group.key))
    for place, row in enumerate(ordered, start=1):
        row.rank = place
    tested = _compare(ordered, options)
    names = sorted({str(entry.record.spec["backbone"]["name"]) for row in ordered for entry in row.group.entries})
    return Table(
        setting=setting,
        backbone=", ".join(names),
        rows=ordered,
        references=_references(ordered),
        facts=explain(setting, ordered, tested, options),
        notes=footnotes(ordered),
        options=options,
    )


def _of_one_split(rows: Sequence[Row]) -> list[Problem]:
    """Take the ranks from rows whose captions belong to other images than those of most rows.

    Equal split hashes promise equal owners; pairing images that are not the same would be worse than no test.
    """
    known = [row.owner.tobytes() for row in rows if row.owner is not None]
    if len(set(known)) <= 1:
        return []
    usual = max(known, key=known.count)
    first = next(row for row in rows if row.owner is not None and row.owner.tobytes() == usual)
    problems: list[Problem] = []
    for row in rows:
        if row.owner is not None and row.owner.tobytes() != usual:
            row.contributions = row.owner = None
            problems.extend(
                Problem(
                    entry.name,
                    f"{entry.ranks_path}: assigns captions to images otherwise than {first.group.entries[0].name}, though both "
                    "records state the same test split; run one of the two again",
                    unreadable=False,
                )
                for entry in row.group.entries
            )
    return problems


def _compare(rows: Sequence[Row], options: Options) -> int:
    """Fill in intervals and tests against the best row; return how many rows were tested."""
    measured = [row for row in rows if row.contributions is not None]
    if not measured:
        return 0
    stacked = np.stack([row.contributions for row in measured if row.contributions is not None])
    counts = statistics.resample_counts(stacked.shape[1], options.resamples, options.seed)
    low, high = statistics.percentile_interval(statistics.bootstrap_mr(stacked, counts))
    for row, lower, upper in zip(measured, low.tolist(), high.tolist(), strict=True):
        row.interval = None if row.few_seeds else (lower, upper)
    best, others = rows[0], measured[1:]
    for row in rows[1:]:
        row.seeds_overlap = min(row.n, best.n) > 1 and max(row.seed_scores) >= min(best.seed_scores)
    if best is not measured[0] or not others:
        return 0
    scores = statistics.image_scores(stacked)
    adjusted = statistics.holm(statistics.sign_flip(scores[0] - scores[1:], options.flips, options.seed))
    for row, p_value in zip(others, adjusted.tolist(), strict=True):
        row.p_holm = p_value
        row.within_noise = p_value >= LEVEL
    return len(others)


def _references(rows: Sequence[Row]) -> list[Reference]:
    """Ceiling and class oracle as recorded (equal for every row of a table), and chance."""
    splits = [entry.record.data.splits["test"] for row in rows for entry in row.group.entries if entry.record.data]
    found = []
    for name, values in (
        ("ceiling of the split", [split.ceiling for split in splits]),
        ("oracle that knows only the class", [split.class_only for split in splits]),
    ):
        known = next((value for value in values if value), None)
        if known:
            found.append(Reference(name, {metric: known[metric] for metric in METRICS if metric in known}))
    owner = next((row.owner for row in rows if row.owner is not None), None)
    return [*found, Reference("chance", chance(splits[0].images, splits[0].captions, owner))]


def chance(images: int, captions: int, owner: NDArray[np.int32] | None = None) -> dict[str, float]:
    """Expected recalls of a random order, percent; without owners, captions are spread evenly over the images."""
    owners = np.arange(captions) % images if owner is None else owner
    return class_oracle(owners, np.zeros(images, dtype=np.int64))  # one class for all: knowing it is knowing nothing


def _fresh(row: Row, label: str) -> Row:
    return replace(row, label=label, rank=0, interval=None, p_holm=None, within_noise=False, seeds_overlap=False)


def _reason(entry: Entry) -> str:
    error = entry.record.error
    if error is None:
        return "stopped before its end" if entry.record.status == "stopped" else "no error was recorded"
    return f"{error.type}: {error.message}"
