"""What `soak.py` looks at when the killing is over."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file

from petlbench.harness.record import Record
from petlbench.harness.record_files import find_records, read_record

Results = dict[str, tuple[Record, Path]]
"""By ``spec_id``."""


class Found(AssertionError):
    """Something that must not be."""


def results(folder: Path) -> Results:
    """The records of a folder, each trial once and finished."""
    found: Results = {}
    for path in find_records(folder):
        record = read_record(path)
        if record.status != "ok" or record.spec_id in found:
            raise Found(f"{path}: {'a second record of its trial' if record.spec_id in found else record.status}")
        found[record.spec_id] = record, path
    return found


def audit(folder: Path, expected: Results) -> Counter[str]:
    """Every result once, equal to the undisturbed one bit for bit; nothing half-written, no lock held.

    Returns:
        Figures for the report.

    Raises:
        Found: The first flaw.
    """
    found = results(folder)
    if found.keys() != expected.keys():
        raise Found(f"{folder}: {len(found)} results, expected {len(expected)}")
    counts = Counter({"results compared": len(found)})
    for spec_id, (record, path) in found.items():
        if differs := difference(record, path, *expected[spec_id]):
            raise Found(f"{path}: {differs} other than undisturbed")
        counts["notes in records"] += len(record.notes)
    if left := list(folder.glob("scenes/*/.*")):
        raise Found(f"half-written: {left}")
    counts["hidden halves of boards"] = sum(1 for _ in folder.glob(".board*"))
    # A kill behind the record leaves them, whole or half removed; the next run removes them.
    counts["checkpoints of finished trials left behind"] = sum(1 for _ in folder.glob(".work/*/epoch-*"))
    for lock in folder.glob(".work/*.lock"):
        try:
            with FileLock(lock, timeout=0):
                counts["locks free"] += 1
        except Timeout as error:
            raise Found(f"{lock} is held") from error
    return counts


def difference(record: Record, path: Path, expected: Record, at: Path) -> str:
    """What of the results differs; empty where nothing does. Times, memory and provenance may."""
    for name in ("spec", "data", "selection", "metrics", "params", "audit", "backbone"):
        if getattr(record, name) != getattr(expected, name):
            return name
    lines = [[(e.epoch, e.loss, e.parts, e.lr, e.val_mR) for e in r.curve] for r in (record, expected)]
    if lines[0] != lines[1]:
        return "curve"
    mine, theirs = (np.load(p.with_name(r.artifacts["ranks"])) for p, r in ((path, record), (at, expected)))
    if set(mine) != set(theirs) or any(not np.array_equal(mine[key], theirs[key]) for key in mine):
        return "ranks"
    if "weights" not in expected.artifacts:
        return "" if "weights" not in record.artifacts else "trained tensors"
    mine, theirs = (tensors(p.with_name(r.artifacts["weights"])) for p, r in ((path, record), (at, expected)))
    same = set(mine) == set(theirs) and all(torch.equal(mine[key], theirs[key]) for key in mine)
    return "" if same else "trained tensors"


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Of a stored adapter: a file, or a folder of peft's."""
    parts = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {f"{p.name if path.is_dir() else ''}/{k}": v for p in parts for k, v in load_file(p).items()}
