"""Reads a folder of records. What cannot be used becomes a :class:`Problem`; nothing is dropped in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from petlbench.harness.json_files import RecordError
from petlbench.harness.metrics import KS
from petlbench.harness.record import Record
from petlbench.harness.record_files import find_records, ranks_path, read_record
from petlbench.harness.spec import canonical_sha256
from petlbench.leaderboard.collector import collector_paused

METRICS = (*(f"{way}_r{k}" for way in ("i2t", "t2i") for k in KS), "mR")
"""The recalls every finished record has, in the order of the columns."""

_AGAIN = "restore the file from version control, or move it away so that the trial runs again"


@dataclass(frozen=True)
class Entry:
    """A readable record.

    Attributes:
        path: Where it was read.
        name: The path within the results folder, with forward slashes.
        record: Its content.
    """

    path: Path
    name: str
    record: Record

    @property
    def ranks_path(self) -> Path:
        """The file of ranks that lies beside the record."""
        return ranks_path(self.path, self.record)


@dataclass(frozen=True)
class Problem:
    """A file that is left out of a board, or of its intervals.

    Attributes:
        name: The file's path within the results folder.
        message: File, key, what was found, what to do.
        unreadable: True where the whole record is left out, False where only its intervals and tests are.
    """

    name: str
    message: str
    unreadable: bool = True


class Loaded(NamedTuple):
    """What a results folder holds: usable records of any status, and what is wrong with the others."""

    entries: list[Entry]
    problems: list[Problem]


@collector_paused()
def load_records(root: Path) -> Loaded:
    """Read every record below a results folder, in the order of their names.

    A record that cannot be read, contradicts itself, or repeats another's spec is reported and left out.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such results folder; run `benchmark run` first, or name the folder that holds the records"
        )

    def read(path: Path, name: str) -> tuple[str, Entry]:
        record = read_record(path)
        check_record(record, path)
        return record.spec_id, Entry(path, name, record)

    return collect(root, find_records(root), read, "key `spec_id`: same trial")


def collect(root: Path, paths: Iterable[Path], read: Callable[[Path, str], tuple[str, Entry]], same: str) -> Loaded:
    """Read files one by one; what cannot be read, or repeats another, is reported and left out.

    Args:
        root: The results folder.
        paths: Files in it.
        read: A file and its name to what no other file may have, and its entry.
        same: Begins the report on a file that repeats another.
    """
    found = Loaded([], [])
    first_with: dict[str, str] = {}
    for path in paths:
        name = path.relative_to(root).as_posix()
        try:
            identity, entry = read(path, name)
            if (twin := first_with.setdefault(identity, name)) != name:
                raise RecordError(f"{path}: {same} as {twin}; keep one of the two files")
        except (RecordError, OSError) as error:  # collected here, shown by the caller and counted on the board
            found.problems.append(Problem(name, str(error)))
        else:
            found.entries.append(entry)
    return found


def joined(*parts: Loaded) -> Loaded:
    """All of them, in their order."""
    return Loaded([e for part in parts for e in part.entries], [p for part in parts for p in part.problems])


def check_record(record: Record, path: Path) -> None:
    """See that a valid record can be placed on a board: its spec is whole and is the one it was hashed as, its recalls fit.

    Raises:
        RecordError: It cannot; names the key.
    """
    for key in ("dataset", "backbone", "method"):
        if not isinstance(record.spec.get(key), dict) or "name" not in record.spec[key]:
            raise RecordError(f"{path}: key `spec.{key}.name` is missing; {_AGAIN}")
    if "seed" not in record.spec:
        raise RecordError(f"{path}: key `spec.seed` is missing; {_AGAIN}")
    digest = canonical_sha256(record.spec)
    if digest != record.spec_id:
        raise RecordError(
            f"{path}: key `spec_id` is {record.spec_id[:12]}..., but `spec` hashes to {digest[:12]}...: "
            f"one of the two was edited by hand; {_AGAIN}"
        )
    if record.status != "ok":
        return
    check_finished(record, path)


def check_finished(record: Record, path: Path) -> None:
    """See that a record of status ok, or a transfer in the shape of one, has what a row needs.

    Raises:
        RecordError: A part or a recall is missing, a recall is no percentage, or mR is not the mean of the recalls.
    """
    for part in ("backbone", "data", "selection", "params", "cost"):
        if getattr(record, part) is None:
            raise RecordError(f"{path}: key `{part}` is null in a record of status ok; {_AGAIN}")
    assert record.data is not None
    _need(record.data.splits, "data.splits", ("test",), path)
    _need(record.metrics, "metrics", ("test",), path)
    test = record.metrics["test"]
    for place, recalls in (("recalls", test.recalls), *((f"other_rules.{r}", v) for r, v in test.other_rules.items())):
        _need(recalls, f"metrics.test.{place}", METRICS, path)
        for metric in METRICS:
            if not 0 <= recalls[metric] <= 100:
                raise RecordError(
                    f"{path}: key `metrics.test.{place}.{metric}` is {recalls[metric]}, expected 0 to 100 percent; "
                    f"{_AGAIN}"
                )
    mean = sum(test.recalls[m] for m in METRICS[:-1]) / (len(METRICS) - 1)
    if abs(test.recalls["mR"] - mean) > 1e-6:
        raise RecordError(
            f"{path}: key `metrics.test.recalls.mR` is {test.recalls['mR']}, but the mean of the six recalls is {mean}; {_AGAIN}"
        )


def _need(found: Iterable[str], key: str, wanted: Iterable[str], path: Path) -> None:
    for name in wanted:
        if name not in found:
            listed = ", ".join(sorted(found)) or "nothing"
            raise RecordError(f"{path}: key `{key}.{name}` is missing (found {listed}); {_AGAIN}")
