"""What killed processes leave behind that nobody needs: half-written files, scratch, checkpoints of recorded trials."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from petlbench.datasets.hold import hold
from petlbench.harness.spec import Trial

_SCRATCH = "petlbench-scratch-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder for the time of the block. Those of commands that were killed are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        if os.access(left, os.R_OK | os.W_OK) and hold(left, alone=True):
            shutil.rmtree(left, ignore_errors=True)
    unnamed = Path(tempfile.mkdtemp(prefix="petlbench-"))
    held = hold(unnamed)  # before it has the name that others look for
    folder = unnamed.rename(unnamed.with_name(unnamed.name.replace("petlbench-", _SCRATCH, 1)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        del held


def work_folder(trial: Trial) -> Path:
    """Where a trial keeps its checkpoints; its lock lies beside, with the suffix ``.lock``."""
    return Path(trial.paths.work) / trial.spec.spec_id[:16]


def remove_half_written(record: Path) -> None:
    """Remove what a killed process had not finished writing beside a record; the trial's lock must be held."""
    for dots in (".", ".."):  # files that are written under a hidden name pass through one that is hidden twice
        _remove(record.parent.glob(f"{dots}{glob.escape(record.stem)}.*"))


def written(record: Path) -> list[Path]:
    """Record, ranks and trained tensors of a trial: files and folders that begin like its record."""
    return list(record.parent.glob(f"{glob.escape(record.stem)}.*"))


def remove_written(record: Path, but: Collection[Path] = ()) -> None:
    """Remove them, ``but`` for some."""
    _remove(path for path in written(record) if path not in but)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def clear_finished(trials: Iterable[Trial]) -> None:
    """Remove checkpoints of trials that have their record, where no process is at work on them."""
    for trial in trials:
        folder = work_folder(trial)
        if folder.exists():
            try:
                with FileLock(f"{folder}.lock", timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
            except Timeout:
                pass  # another run has it, and clears it
