"""Sorts records: seeds of one spec into a group, groups that may be compared into one setting."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from petlbench.harness.spec import canonical_json
from petlbench.leaderboard.load import Entry, Problem
from petlbench.leaderboard.scoring import label

UNTRAINED = "none"
"""Selection rule of a record in which nothing was chosen; it fits beside rows of any rule."""

_PREFIXES = ("method.options.", "dataset.options.", "backbone.options.", "train.", "engine.", "protocol.")
_SHORTLIST = "protocol.rerank"
_SHOWN_KEYS = 4


@dataclass(frozen=True, order=True)
class Setting:
    """What rows must share to stand in one table.

    The backbone is known by its weights and how pictures reach them, not by its name; the data by every split, because
    what was trained or selected on other pictures answers another question. How scores are computed does not separate
    rows: it is labelled in each (:mod:`petlbench.leaderboard.scoring`).
    """

    dataset: str
    test_sha256: str
    other_splits: str
    """Canonical JSON of the hashes of the splits beside test."""
    backbone: str
    """Canonical JSON of kind, architecture, sha256, activation, resolution, mean and std."""
    rule: str
    tie_rule: str
    metric_version: int

    @classmethod
    def of(cls, entry: Entry) -> Setting:
        """The setting of a record of status ok."""
        record = entry.record
        assert record.data is not None and record.backbone is not None and record.selection is not None
        test = record.metrics["test"]
        splits = {name: split.sha256 for name, split in record.data.splits.items()}
        parts = ("kind", "architecture", "sha256", "activation", "resolution", "mean", "std")
        return cls(
            dataset=record.data.name,
            test_sha256=splits.pop("test"),
            other_splits=canonical_json(splits),
            backbone=canonical_json({part: record.backbone.get(part) for part in parts}),
            rule=record.selection.rule,
            tie_rule=test.tie_rule,
            metric_version=test.metric_version,
        )


@dataclass(frozen=True)
class Group:
    """Records that differ in the seed only: one row.

    Attributes:
        key: 12 hexadecimal digits that name the group.
        setting: Shared by all entries.
        entries: Sorted by seed, each seed once.
        identity: The spec without its seed, the origin of the method's code, the hashes of all splits, and how scores
            were computed.
    """

    key: str
    setting: Setting
    entries: tuple[Entry, ...]
    identity: Mapping[str, Any]
    repeats: tuple[Entry, ...] = ()
    """Left out, because their seed is there already: one trial may be transferred twice, by two rules of what a near duplicate
    is, with the same pictures left."""

    @property
    def problems(self) -> list[Problem]:
        """One for each of the repeats."""
        first = {entry.record.spec["seed"]: entry.name for entry in self.entries}
        return [
            Problem(
                entry.name,
                f"{entry.path}: same trial, seed and test pictures as {first[entry.record.spec['seed']]}; keep one of the two",
            )
            for entry in self.repeats
        ]

    @property
    def method(self) -> str:
        """The method's registered name."""
        return self.entries[0].record.method.name

    @property
    def scoring(self) -> str:
        """How the scores of all entries were computed, as :func:`petlbench.leaderboard.scoring.label` says it."""
        return str(self.identity["scoring"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, rising."""
        return tuple(entry.record.spec["seed"] for entry in self.entries)


def group_entries(entries: Iterable[Entry]) -> list[Group]:
    """Groups of the records of status ok, in the order of their keys."""
    found: dict[tuple[Setting, str], list[Entry]] = defaultdict(list)
    identities: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.record.status != "ok":
            continue
        identity = _identity(entry)
        text = canonical_json(identity)
        identities[text] = identity
        found[Setting.of(entry), text].append(entry)
    groups = []
    for (setting, text), members in found.items():
        key = hashlib.sha256(f"{setting}{text}".encode()).hexdigest()[:12]
        ordered = sorted(members, key=lambda e: (e.record.spec["seed"], e.name))
        first = {entry.record.spec["seed"]: entry for entry in reversed(ordered)}
        kept = tuple(entry for entry in ordered if first[entry.record.spec["seed"]] is entry)
        repeats = tuple(entry for entry in ordered if first[entry.record.spec["seed"]] is not entry)
        groups.append(Group(key, setting, kept, identities[text], repeats))
    return sorted(groups, key=lambda g: (g.setting, g.key))


def by_setting(groups: Sequence[Group]) -> dict[Setting, list[Group]]:
    """Groups per table, sorted by setting.

    Groups in which nothing was chosen join every table of the same data and backbone; they have one of their own only
    where there is no other.
    """
    tables: dict[Setting, list[Group]] = defaultdict(list)
    for group in groups:
        if group.setting.rule != UNTRAINED:
            tables[group.setting].append(group)
    chosen = list(tables)
    for group in groups:
        if group.setting.rule == UNTRAINED:
            hosts = [setting for setting in chosen if replace(setting, rule=UNTRAINED) == group.setting]
            for setting in hosts or [group.setting]:
                tables[setting].append(group)
    return dict(sorted(tables.items()))


def labels(groups: Sequence[Group]) -> dict[str, str]:
    """A distinct label per group key: the method's name, and the options in which groups of that method differ."""
    result = {}
    of_method: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        of_method[group.method].append(group)
    for method, members in of_method.items():
        flat = {group.key: _flatten(group.identity) for group in members}
        keys = sorted({key for values in flat.values() for key in values})
        differing = [key for key in keys if len({canonical_json(values.get(key)) for values in flat.values()}) > 1]
        if "scoring" in differing:  # it tells the settings of a shortlist in one
            differing = [key for key in differing if not key.startswith(_SHORTLIST)]
        short = _shorten(differing)
        texts = {key: _describe(method, values, differing, short) for key, values in flat.items()}
        times = Counter(texts.values())
        for key, text in texts.items():
            result[key] = f"{text} #{key[:6]}" if times[text] > 1 else text
    return result


def _identity(entry: Entry) -> dict[str, Any]:
    record = entry.record
    assert record.data is not None
    spec = {key: value for key, value in record.spec.items() if key != "seed"}
    splits = {name: split.sha256 for name, split in record.data.splits.items()}
    return {
        "spec": spec,
        "origin": record.method.origin,
        "splits": splits,
        "scoring": label(record.metrics["test"]),
    }


def _flatten(identity: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {"origin": identity["origin"], "scoring": identity["scoring"]}
    flat |= {f"{name}_sha256": digest[:8] for name, digest in identity["splits"].items()}
    waiting: list[tuple[str, Any]] = [("", identity["spec"])]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict) and value:
            waiting.extend((f"{place}.{key}" if place else str(key), inner) for key, inner in value.items())
        else:
            flat[place] = value
    return flat


def _shorten(keys: Sequence[str]) -> dict[str, str]:
    """Keys without their section, where that leaves them distinct."""
    cut = {key: next((key[len(p) :] for p in _PREFIXES if key.startswith(p)), key) for key in keys}
    names = list(cut.values())
    return {key: name if names.count(name) == 1 else key for key, name in cut.items()}


def _describe(method: str, values: Mapping[str, Any], differing: Sequence[str], short: Mapping[str, str]) -> str:
    if not differing:
        return method
    shown = [f"{short[key]}={_value(values, key)}" for key in differing[:_SHOWN_KEYS]]
    if len(differing) > _SHOWN_KEYS:
        shown.append(f"and {len(differing) - _SHOWN_KEYS} more")
    return f"{method} ({', '.join(shown)})"


def _value(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "unset"
    value = values[key] if isinstance(values[key], str) else canonical_json(values[key])
    return value[: len("sha256:") + 8] if value.startswith("sha256:") else value
