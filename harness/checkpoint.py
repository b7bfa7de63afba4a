"""Epoch checkpoints of one trial: a killed trial goes on from its last finished epoch."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from petlbench.harness.engine import Engine, TrainingError

_STATE = "state.json"
_BEST = "best.safetensors"


@dataclass
class Progress:
    """How far a trial has come."""

    epoch: int = 0
    steps: int = 0
    best_epoch: int | None = None
    best_mR: float | None = None
    train_s: float = 0.0
    eval_s: float = 0.0
    peak_memory: int = 0
    peak_reserved: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """The checkpoint folder of one trial; only the newest epoch is kept."""

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, engine: Engine, progress: Progress, best: dict[str, Tensor]) -> None:
        """Write everything beside the old checkpoint, then switch by renaming: a kill leaves the old one valid."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=".writing-"))
        try:
            engine.save(temporary)
            save_file({k: v.contiguous() for k, v in best.items()}, temporary / _BEST)
            (temporary / _STATE).write_text(json.dumps(asdict(progress)), encoding="utf-8")
            final = self.folder / f"epoch-{progress.epoch:05d}"
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for other in self.folder.iterdir():
            if other != final:
                shutil.rmtree(other, ignore_errors=True)

    def restore(self, engine: Engine) -> tuple[Progress, dict[str, Tensor]] | None:
        """The newest whole checkpoint, or None.

        Raises:
            TrainingError: There is one but it is damaged or of another model.
        """
        whole = sorted(p for p in self.folder.glob("epoch-*") if (p / _STATE).is_file())
        if not whole:
            return None
        newest = whole[-1]
        try:
            progress = Progress(**json.loads((newest / _STATE).read_text(encoding="utf-8")))
            best = load_file(newest / _BEST)
        except Exception as error:
            raise TrainingError(
                f"checkpoint {newest} is damaged ({type(error).__name__}: {error}); delete the folder to start the trial afresh"
            ) from error
        engine.restore(newest)
        return progress, best

    def clear(self) -> None:
        """Remove the folder: the trial has its record."""
        shutil.rmtree(self.folder, ignore_errors=True)
