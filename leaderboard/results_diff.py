"""Two results folders side by side: which trials only one has, and by how much shared trials differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from petlbench.harness.record import Record
from petlbench.leaderboard.load import METRICS, Entry

RESULT = ("status", "backbone", "data", "selection", "metrics", "params")
"""Parts of a record that are the result of its spec; cost and provenance are of the machine and the day."""

_RECALLS = {"recalls", "other_rules", "bound", "exact"}
"""Keys above recalls, whose numbers may differ by a tolerance; so may those of ``selection.val_mR`` and of a two-stage sample."""


@dataclass(frozen=True)
class Change:
    """One key with its two values; None where a side lacks it."""

    key: str
    a: Any
    b: Any

    @property
    def line(self) -> str:
        """One line of plain text."""
        return f"{self.key}: {_short(self.a)} against {_short(self.b)}"


@dataclass(frozen=True)
class TrialDiff:
    """A trial that both folders hold.

    Attributes:
        a: The record of the first folder.
        b: The record of the second.
        changes: Keys that differ beyond the tolerance.
    """

    a: Entry
    b: Entry
    changes: tuple[Change, ...]

    @property
    def metrics(self) -> dict[str, float] | None:
        """Recall to second minus first on test, points; None where one of the two did not finish."""
        one, two = (side.record.metrics.get("test") for side in (self.a, self.b))
        if one is None or two is None:
            return None
        return {m: two.recalls[m] - one.recalls[m] for m in METRICS if m in one.recalls and m in two.recalls}


@dataclass(frozen=True)
class FolderDiff:
    """Trials by where they are; each list in the order of its records' names."""

    only_a: tuple[Entry, ...]
    only_b: tuple[Entry, ...]
    shared: tuple[TrialDiff, ...]

    @property
    def differing(self) -> tuple[TrialDiff, ...]:
        """Shared trials with a change."""
        return tuple(trial for trial in self.shared if trial.changes)

    @property
    def equal(self) -> bool:
        """Same trials, same results."""
        return not (self.only_a or self.only_b or self.differing)


def diff_folders(a: Sequence[Entry], b: Sequence[Entry], tolerance: float = 0.0) -> FolderDiff:
    """Match the trials of two folders by their spec and compare their results.

    Args:
        a: Records of :func:`petlbench.leaderboard.load.load_records`.
        b: Likewise.
        tolerance: Points by which recalls may differ.
    """
    of_a, of_b = ({entry.record.spec_id: entry for entry in entries} for entries in (a, b))
    return FolderDiff(
        only_a=tuple(entry for spec_id, entry in of_a.items() if spec_id not in of_b),
        only_b=tuple(entry for spec_id, entry in of_b.items() if spec_id not in of_a),
        shared=tuple(
            TrialDiff(entry, of_b[spec_id], tuple(changes(entry.record, of_b[spec_id].record, tolerance)))
            for spec_id, entry in of_a.items()
            if spec_id in of_b
        ),
    )


def changes(a: Record, b: Record, tolerance: float = 0.0) -> Iterator[Change]:
    """Keys of :data:`RESULT` in which two records differ, measured numbers by more than ``tolerance``."""
    one, two = (_flat(record.model_dump(mode="json", include=set(RESULT))) for record in (a, b))
    # What a reader looks for first comes first: the outcome, then the recalls under the main tie rule.
    for key in sorted({*one, *two}, key=lambda key: (key != "status", ".recalls." not in key, key)):
        left, right = one.get(key), two.get(key)
        if left == right:
            continue
        if not (_is_recall(key) and _close(left, right, tolerance)):
            yield Change(key, left, right)


def to_dict(found: FolderDiff, tolerance: float) -> dict[str, Any]:
    """A comparison of folders as JSON types."""
    return {
        "tolerance": tolerance,
        "equal": found.equal,
        "only_a": [entry.name for entry in found.only_a],
        "only_b": [entry.name for entry in found.only_b],
        "shared": len(found.shared),
        "differing": [
            {
                "record": trial.a.name,
                "spec_id": trial.a.record.spec_id,
                "difference": trial.metrics,
                "changes": [{"key": change.key, "a": change.a, "b": change.b} for change in trial.changes],
            }
            for trial in found.differing
        ],
    }


def _is_recall(key: str) -> bool:
    above = key.split(".")[:-1]
    return key == "selection.val_mR" or bool(_RECALLS & set(above)) or above[-2:] == ["sample", "two_stage"]


def _close(a: Any, b: Any, tolerance: float) -> bool:
    return isinstance(a, int | float) and isinstance(b, int | float) and abs(a - b) <= tolerance


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Dotted key to leaf; empty parts count as absent."""
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found |= _flat(inner, f"{place}.{key}" if place else str(key))
        return found
    return {} if value is None else {place: value}


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
