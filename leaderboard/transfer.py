"""Transfers as rows of a board: each pair of sets is a table of its own, and never part of another."""

from __future__ import annotations

from pathlib import Path

from petlbench.harness.json_files import RecordError
from petlbench.harness.metrics import METRIC_VERSION
from petlbench.harness.record import DataPart, Record
from petlbench.harness.record_files import RANKS_SUFFIX, RECORD_SUFFIX
from petlbench.harness.transfer_record import FOLDER, TransferRecord, find_transfers, read_transfer, transfer_path
from petlbench.leaderboard.entry_ranks import disagreements, read_ranks
from petlbench.leaderboard.load import Entry, Loaded, Problem, check_finished, check_record, collect


def load_transfers(root: Path) -> Loaded:
    """Every transfer of a results folder as an entry of a board, in the order of their names.

    What cannot be read, or repeats another, is reported and left out.
    """

    def read(path: Path, name: str) -> tuple[str, Entry]:
        transfer = read_transfer(path)
        _check_source(transfer.source, path)
        entry = entry_of(path, name, transfer)
        check_finished(entry.record, path)
        return transfer.transfer_id, entry

    return collect(root, find_transfers(root), read, "key `transfer_id`: same transfer")


def entry_of(path: Path, name: str, transfer: TransferRecord) -> Entry:
    """A transfer in the shape of a record that was tested on the target.

    Its data set is the pair of sets and its test split that of the target, so that it can stand in no other table. Seeds
    and options remain those of the source; costs of training too, but not those of evaluation and of a query.
    """
    source, target = transfer.source, transfer.target
    assert source.data is not None  # only finished records are transferred
    out = len(target.left_out)
    title = f"trained on {source.data.title}, tested on {target.title}"
    if out:
        title += f" without {out:,} near-duplicate picture{'s' * (out > 1)}"
    if target.shared_captions:
        shared = target.shared_captions
        title += f"; {shared:,} test caption{'s' * (shared > 1)} {'are' if shared > 1 else 'is'} in the training captions too"
    title = "; ".join([title, *transfer.notes])
    seen = {split: part for split, part in source.data.splits.items() if split != "test"}
    data = DataPart(
        name=f"{source.data.name} → {target.name}",
        title=title,
        card_version=f"{source.data.card_version} → {target.card_version}",
        splits={**seen, "test": target.test},
    )
    measured = {"query": None, "eval_s": None}  # of the source's own test split
    cost = source.cost.model_copy(update=measured) if source.cost else None
    changed = {"data": data, "metrics": {"test": transfer.metrics}, "artifacts": transfer.artifacts, "cost": cost}
    return Entry(path, name, source.model_copy(update=changed))


def check_transfers(root: Path, loaded: Loaded) -> list[Problem]:
    """What is wrong with the transfers of a results folder: reading, place, ranks."""
    problems = list(loaded.problems)
    for entry in loaded.entries:
        transfer = read_transfer(entry.path)
        expected = transfer_path(root, transfer.source, transfer.target.name, transfer.transfer_id)
        if entry.path != expected:
            problems.append(
                Problem(entry.name, f"{entry.path}: belongs at {expected}; rename it, and its ranks with it")
            )
        part = transfer.metrics
        try:
            ranks = read_ranks(entry)
        except (OSError, ValueError) as error:
            problems.append(Problem(entry.name, f"{entry.path}: its ranks cannot be used: {error}"))
            continue
        if part.metric_version != METRIC_VERSION:
            continue
        stated = {"recalls": (part.tie_rule, part.recalls)}
        stated |= {f"other_rules.{rule}": (rule, found) for rule, found in sorted(part.other_rules.items())}
        for place, (rule, found) in stated.items():
            wrong = disagreements(entry, ranks, rule, found, place)
            problems.extend(Problem(entry.name, message) for message in wrong)
    used = {entry.ranks_path for entry in loaded.entries}
    unread = {root / problem.name for problem in loaded.problems}
    for path in sorted((root / FOLDER).rglob(f"*{RANKS_SUFFIX}")):
        record = path.with_name(path.name.removesuffix(RANKS_SUFFIX) + RECORD_SUFFIX)
        if path not in used and record not in unread:
            name = path.relative_to(root).as_posix()
            problems.append(
                Problem(name, f"{path}: belongs to no transfer; make the transfer again, or delete the file")
            )
    return problems


def _check_source(source: Record, path: Path) -> None:
    try:
        check_record(source, path)
    except RecordError as error:
        raise RecordError(f"{path}: the record that was transferred (key `source`) cannot be used: {error}") from error
    if source.status != "ok":
        raise RecordError(f"{path}: key `source.status` is {source.status!r}; only a finished trial is transferred")
