"""Brings the records of other results folders into one: all that fit, or nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from petlbench.errors import PetlbenchError
from petlbench.harness.json_files import json_bytes, write_atomically
from petlbench.harness.metrics import Ranks
from petlbench.harness.record import SCHEMA
from petlbench.harness.record_files import record_path
from petlbench.leaderboard.load import Entry
from petlbench.leaderboard.results_diff import changes
from petlbench.leaderboard.results_validate import validate

Fate = Literal["add", "replace", "same", "conflict", "unfinished"]
"""``replace``: a failed or stopped record gives way to a finished one. ``unfinished``: left out, a record is there already."""


_SHOWN = 8
"""Keys named per conflict."""


class MergeError(PetlbenchError):
    """Nothing was merged: a folder is not valid, or records contradict each other."""


@dataclass(frozen=True)
class Step:
    """What happens to one record.

    Attributes:
        fate: See :data:`Fate`.
        source: The record to merge.
        target: Where it goes.
        reasons: What differs, of a conflict.
        into: The record that it meets; None of an added one.
    """

    fate: Fate
    source: Entry
    target: Path
    reasons: tuple[str, ...] = ()
    into: Entry | None = None


@dataclass
class Plan:
    """What a merge would do, in the order of folders and names."""

    steps: list[Step] = field(default_factory=list)

    def of(self, fate: Fate) -> list[Step]:
        """The steps of one fate."""
        return [step for step in self.steps if step.fate == fate]


def plan_merge(sources: Sequence[Path], into: Path) -> Plan:
    """Decide the fate of every record; writes nothing.

    Args:
        sources: Results folders.
        into: The folder that takes them in; need not exist.

    Raises:
        MergeError: A folder does not validate; every problem is listed.
        FileNotFoundError: A source is not a folder.
    """
    held: dict[str, Entry] = {}
    if into.is_dir():
        held = {entry.record.spec_id: entry for entry in _valid(into)}
    taken = {record_path(into, entry.record.spec, spec_id): spec_id for spec_id, entry in held.items()}
    plan = Plan()
    for source in sources:
        for entry in _valid(source):
            record = entry.record
            target = record_path(into, record.spec, record.spec_id)
            step = _fate(entry, target, held.get(record.spec_id), taken.get(target))
            plan.steps.append(step)
            if step.fate in {"add", "replace"}:
                held[record.spec_id] = entry
                taken[target] = record.spec_id
    return plan


def merge(plan: Plan) -> list[Path]:
    """Carry out a plan; after an error every file is as it was.

    Ranks are written before their record, so that a reader never sees a record without them.

    Returns:
        The records written.

    Raises:
        MergeError: The plan holds conflicts; nothing is written.
        OSError: The folder cannot be written, or a source changed; what was written is undone.
    """
    if conflicts := plan.of("conflict"):
        told = [f"{step.source.path}: {reason}" for step in conflicts for reason in step.reasons]
        advice = "The same trial with two results: find out why, and keep one of the two. Nothing was merged."
        raise MergeError("\n".join([*told, advice]))
    undo: list[tuple[Path, bytes | None]] = []
    written = []
    try:
        for step in plan.steps:
            if step.fate not in {"add", "replace"}:
                continue
            for path, payload in _files(step):
                undo.append((path, path.read_bytes() if path.is_file() else None))
                write_atomically(path, payload)
            written.append(step.target)
    except BaseException:
        for path, before in reversed(undo):
            if before is not None:
                write_atomically(path, before)
                continue
            path.unlink(missing_ok=True)
            for folder in path.parents[:2]:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        raise
    return written


def _valid(folder: Path) -> list[Entry]:
    report = validate(folder)
    if not report.ok:
        listed = "\n".join(problem.message for problem in report.problems)
        raise MergeError(f"{folder}: does not validate, so nothing was merged:\n{listed}")
    return report.entries


def _fate(entry: Entry, target: Path, held: Entry | None, name_of: str | None) -> Step:
    if held is None:
        if name_of is not None:
            reason = (
                f"another trial ({name_of[:16]}...) has the name {target.name}; run one of the two with another seed"
            )
            return Step("conflict", entry, target, (reason,))
        return Step("add", entry, target)
    if entry.record.status != "ok":
        return Step("unfinished", entry, target, into=held)
    if held.record.status != "ok":
        return Step("replace", entry, target, into=held)
    found = [f"{change.line} in {held.path}" for change in changes(entry.record, held.record)]
    if not found and not _same_ranks(entry, held):
        found = [f"its ranks differ from those of {held.path}"]
    if found:
        more = (f"and {len(found) - _SHOWN} more keys",) if len(found) > _SHOWN else ()
        return Step("conflict", entry, target, (*found[:_SHOWN], *more), held)
    return Step("same", entry, target, into=held)


def _same_ranks(a: Entry, b: Entry) -> bool:
    if a.ranks_path.read_bytes() == b.ranks_path.read_bytes():
        return True
    one, two = (vars(Ranks.load(entry.ranks_path)) for entry in (a, b))
    shared = [name for name in one if one[name] is not None and two[name] is not None]  # first answers may be absent
    return all(one[name].shape == two[name].shape and bool((one[name] == two[name]).all()) for name in shared)


def _files(step: Step) -> list[tuple[Path, bytes]]:
    """Target and content of a record's files, its ranks first; an older record goes in as of the current version."""
    source = step.source
    files = []
    if source.record.status == "ok":
        files.append((step.target.with_name(source.ranks_path.name), source.ranks_path.read_bytes()))
    payload = source.path.read_bytes()
    if json.loads(payload)["schema_version"] != SCHEMA:
        payload = json_bytes(source.record.model_dump(mode="json"))
    return [*files, (step.target, payload)]
