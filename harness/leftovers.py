"""What killed processes leave behind that nobody needs: half-written files, checkpoints of trials that have their record."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from petlbench.harness.spec import Trial


def work_folder(trial: Trial) -> Path:
    """Where a trial keeps its checkpoints; its lock lies beside, with the suffix ``.lock``."""
    return Path(trial.paths.work) / trial.spec.spec_id[:16]


def remove_half_written(record: Path) -> None:
    """Remove what a killed process had not finished writing beside a record; the trial's lock must be held."""
    for path in record.parent.glob(f".{glob.escape(record.stem)}.*"):
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
