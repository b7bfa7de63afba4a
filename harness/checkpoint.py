"""Epoch checkpoints of one trial: a killed trial goes on from its last finished epoch.

The newest two epochs are kept, each with checksums: one that is damaged is told from a whole one before any of it is loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor

from petlbench.harness.disk import room_for
from petlbench.harness.engine import Engine, TrainingError
from petlbench.harness.json_files import write_atomically

_STATE = "state.json"
_BEST = "best.safetensors"
_SUMS = "checksums.json"
_NOTES = "notes.json"
_COPIES = 4
"""A checkpoint holds what is trained, the best of it, and two moments of Adam."""


@dataclass
class Progress:
    """How far a trial has come."""

    epoch: int = 0
    steps: int = 0
    best_epoch: int | None = None
    best_mR: float | None = None
    train_s: float = 0.0
    train_cpu_s: float = 0.0
    eval_s: float = 0.0
    peak_memory: int = 0
    peak_reserved: int = 0
    workers: int = 1
    """Processes that wrote the checkpoint: with ZeRO each holds a part of the optimiser's state."""
    micro_batch: int | None = None
    """Pairs that go through the model at once, per process."""
    code: str | None = None
    """SHA-256 of the method's file; None in checkpoints from before it was kept."""
    curve: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """The checkpoint folder of one trial; the newest two epochs are kept.

    Attributes:
        folder: The folder.
        code: SHA-256 of the method's file, once it is known: epochs that another version of it trained are not gone on from.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.code: str | None = None

    def save(self, engine: Engine, progress: Progress, best: dict[str, Tensor]) -> None:
        """Write everything beside the old checkpoints, then switch by renaming: a kill leaves the old ones valid.

        Raises:
            DiskFull: There is no room; the old checkpoints stand.
        """
        world = engine.world
        progress.workers, progress.code = world.size, self.code
        needed = _COPIES * sum(value.nbytes for value in best.values())
        with room_for(f"the checkpoint of epoch {progress.epoch}", self.folder, needed):
            if not world.first:
                engine.save(Path(str(world.told_text(None))))
                world.wait()
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=".writing-"))
            try:
                world.told_text(str(temporary))
                engine.save(temporary)
                world.wait()
                save_file({k: v.contiguous() for k, v in best.items()}, temporary / _BEST)
                (temporary / _STATE).write_text(json.dumps(asdict(progress)), encoding="utf-8")
                _seal(temporary)
                final = self.folder / f"epoch-{progress.epoch:05d}"
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        before = max((p for p in self._epochs() if p.name < final.name), default=None)
        for other in [*self._epochs(), *self.folder.glob(".writing-*")]:
            if other not in (final, before):
                shutil.rmtree(other, ignore_errors=True)

    def restore(self, engine: Engine) -> tuple[Progress, dict[str, Tensor]] | None:
        """The newest whole checkpoint, or None. Damaged ones, and those of other code, are removed, which :meth:`notes` tells.

        Raises:
            TrainingError: There is one but it is of another model.
        """
        found = self._newest() if engine.world.first else None
        named = engine.world.told_text(str(found) if found else None)
        if named is None:
            return None
        newest = Path(named)
        with _misfit_of(newest):
            progress = _progress_in(newest)
            best = load_file(newest / _BEST)
        if progress.workers != engine.world.size and engine.partitioned:
            raise TrainingError(
                f"checkpoint {newest} was written by {progress.workers} workers, each with its part of the optimiser's state; "
                f"this run has {engine.world.size}. Set resources.workers_per_trial={progress.workers}, or delete the folder "
                "to start the trial afresh (without ZeRO the number may change)"
            )
        engine.restore(newest)
        return progress, best

    def progress(self) -> Progress | None:
        """How far the newest whole checkpoint is, or None.

        Raises:
            TrainingError: There is one but this version cannot read it.
        """
        newest = self._newest()
        if newest is None:
            return None
        with _misfit_of(newest):
            return _progress_in(newest)

    def note(self, text: str) -> None:
        """Keep something that the record of the trial shall say."""
        notes = self.notes()
        if text not in notes:
            write_atomically(self.folder / _NOTES, json.dumps([*notes, text]).encode())

    def notes(self) -> list[str]:
        """What was noted, in this run of the trial or before it was interrupted."""
        path = self.folder / _NOTES
        if not path.is_file():
            return []
        try:
            return [str(text) for text in json.loads(path.read_text(encoding="utf-8"))]
        except (ValueError, TypeError) as error:
            return [f"notes of an earlier run were damaged and are lost ({error})"]

    def _epochs(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-*"))

    def _newest(self) -> Path | None:
        """The newest whole epoch; newer ones are damaged and removed."""
        for path in reversed(self._epochs()):
            if (flaw := _flaw(path)) is None:
                if not self._of_other_code(path):
                    return path
                self.note(f"the method's file changed after {path.name}, which was not used; the trial started afresh")
                for epoch in self._epochs():
                    shutil.rmtree(epoch)
                return None
            older = [p for p in self._epochs() if p < path]
            then = f"went on from {older[-1].name}" if older else "started afresh"
            self.note(f"checkpoint {path.name} was damaged ({flaw}) and was not used; the trial {then}")
            shutil.rmtree(path)
        return None

    def _of_other_code(self, path: Path) -> bool:
        with _misfit_of(path):
            code = _progress_in(path).code
        return None not in (code, self.code) and code != self.code

    def clear(self) -> None:
        """Remove the folder: the trial has its record."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _progress_in(folder: Path) -> Progress:
    return Progress(**json.loads((folder / _STATE).read_text(encoding="utf-8")))


@contextmanager
def _misfit_of(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise TrainingError(
            f"checkpoint {folder} is whole but cannot be read by this version ({type(error).__name__}: {error}); delete the "
            "folder to start the trial afresh"
        ) from error


def _seal(folder: Path) -> None:
    """Write size and XXH3 of every file, and see that all of it is on the disk before the folder gets its name."""
    sums = {p.relative_to(folder).as_posix(): _sum(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / _SUMS).write_text(json.dumps(sums), encoding="utf-8")
    for path in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sum(path: Path) -> list[int | str]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return [path.stat().st_size, digest.hexdigest()]


def _flaw(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None where they are as they were written."""
    try:
        sums = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        for name, (size, digest) in sums.items():
            found = _sum(folder / name)
            if found[0] != size:
                return f"{name} has {found[0]:,} bytes, expected {size:,}"
            if found[1] != digest:
                return f"{name} is not what was written"
        return None if _STATE in sums else f"{_STATE} is missing"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
