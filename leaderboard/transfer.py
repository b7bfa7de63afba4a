"""Transfers as rows of a board: each pair of sets is a table of its own, and never part of another."""

from __future__ import annotations

from pathlib import Path

from petlbench.harness.metrics import METRIC_VERSION, recalls
from petlbench.harness.record import DataPart
from petlbench.harness.transfer_record import TransferRecord, find_transfers, read_transfer, transfer_path
from petlbench.leaderboard.entry_ranks import CLOSE, read_ranks
from petlbench.leaderboard.load import Entry, Loaded, Problem, check_finished, collect


def load_transfers(root: Path) -> Loaded:
    """Every transfer of a results folder as an entry of a board, in the order of their names.

    What cannot be read, or repeats another, is reported and left out.
    """

    def read(path: Path, name: str) -> tuple[str, Entry]:
        transfer = read_transfer(path)
        check_finished(transfer.source, path)
        entry = entry_of(path, name, transfer)
        check_finished(entry.record, path)
        return transfer.transfer_id, entry

    return collect(root, find_transfers(root), read, "key `transfer_id`: same transfer")


def entry_of(path: Path, name: str, transfer: TransferRecord) -> Entry:
    """A transfer in the shape of a record that was tested on the target.

    Its data set is the pair of sets and its test split that of the target, so that it can stand in no other table. Seeds
    and options remain those of the source; costs of training too, but not those of a query.
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
    cost = source.cost.model_copy(update={"query": None}) if source.cost else None
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
            found = recalls(read_ranks(entry), part.tie_rule)
        except (OSError, ValueError) as error:
            problems.append(Problem(entry.name, f"{entry.path}: its ranks cannot be used: {error}"))
            continue
        if part.metric_version == METRIC_VERSION:
            wrong = [name for name, value in part.recalls.items() if abs(found.get(name, -1.0) - value) > CLOSE]
            if wrong:
                problems.append(
                    Problem(entry.name, f"{entry.path}: its ranks do not give its {', '.join(wrong)}; make it again")
                )
    return problems
