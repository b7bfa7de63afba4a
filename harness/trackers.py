"""Curves sent elsewhere while trials run: TensorBoard, Weights & Biases, MLflow. Off unless asked; records need none."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from petlbench.errors import PetlbenchError

Tracker = Literal["tensorboard", "wandb", "mlflow"]

PROJECT = "petlbench"
"""Name of the project (W&B) or experiment (MLflow)."""

_MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
_SHOWN = ("loss", "val_mR", "best_mR", "lr", "train_s", "pairs")
"""Scalars of an epoch."""


class TrackerError(PetlbenchError):
    """A tracker's package is not installed."""


def check_trackers(names: Sequence[Tracker]) -> None:
    """See that the packages are there, without importing them.

    Raises:
        TrackerError: Naming the package and how to install it.
    """
    for name in names:
        if importlib.util.find_spec(_MODULES[name]) is None:
            raise TrackerError(
                f"tracker {name} needs the package {_MODULES[name]}, which is not installed: pip install "
                f"'petlbench[trackers]', or leave out --tracker {name}"
            )


def tracker_callbacks(
    names: Sequence[Tracker], folder: Path, place: Callable[[Any], str], group: str | None = None
) -> list[Any]:
    """One Ray Tune callback per tracker.

    Args:
        names: Trackers, each once.
        folder: Results folder; TensorBoard writes to ``tensorboard/`` in it, MLflow to ``mlflow.db`` unless
            ``MLFLOW_TRACKING_URI`` names a server.
        place: Readable relative path of a Ray trial, such as ``scenes/lora/tiny-clip-s0``.
        group: What the runs belong to (W&B group, MLflow tag).

    Raises:
        TrackerError: A package is not installed.
    """
    check_trackers(names)
    made: list[Any] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            made.append(_tensorboard(folder / "tensorboard", place))
        elif name == "wandb":
            from ray.air.integrations.wandb import WandbLoggerCallback

            made.append(WandbLoggerCallback(project=os.environ.get("WANDB_PROJECT", PROJECT), group=group))
        else:
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').absolute()}")
            tags = {"group": group} if group else None
            made.append(MLflowLoggerCallback(tracking_uri=uri, experiment_name=PROJECT, tags=tags))
    return made


def _tensorboard(folder: Path, place: Callable[[Any], str]) -> Any:
    from ray.tune.logger import LoggerCallback
    from tensorboardX import SummaryWriter

    class TensorBoard(LoggerCallback):
        """Event files in the results folder; Ray's own callback writes them to its scratch folder, with its own clocks."""

        def __init__(self) -> None:
            self._writers: dict[str, Any] = {}

        def __reduce__(self) -> tuple[Any, ...]:
            return LoggerCallback, ()  # Tune pickles it for a restore that is never used here

        def log_trial_start(self, trial: Any) -> None:
            if trial.trial_id not in self._writers:
                self._writers[trial.trial_id] = SummaryWriter(str(folder / place(trial)), flush_secs=10)

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            self.log_trial_start(trial)
            for key in _SHOWN:
                if isinstance(value := result.get(key), int | float) and "epoch" in result:
                    self._writers[trial.trial_id].add_scalar(key, value, global_step=result["epoch"])

        def log_trial_end(self, trial: Any, failed: bool = False) -> None:
            if (writer := self._writers.pop(trial.trial_id, None)) is not None:
                writer.close()

    return TensorBoard()
