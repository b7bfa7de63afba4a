"""What stops configurations early."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from petlbench.harness.search.objective import METRIC
from petlbench.harness.search.question import Asked
from petlbench.harness.search.study import SearchedTrial


def make_scheduler(asked: Asked, past: Sequence[SearchedTrial]) -> Any:
    """Ray's scheduler; ASHA's rungs know the trials of earlier runs of the command, and it never stops the preset.

    Args:
        asked: Gives kind, settings and the number of epochs.
        past: Finished and pruned trials.
    """
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, HyperBandScheduler, TrialScheduler

    class SparesPreset(AsyncHyperBandScheduler):
        """ASHA that learns from the preset's trial, the first one, but trains it to its end: all others are compared with it."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision: str = super().on_trial_result(tune_controller, trial, result)
            return TrialScheduler.CONTINUE if getattr(trial, "config", {}).get("number") == 0 else decision

    question = asked.question
    domain = asked.space.get("train.epochs")
    epochs = max(map(int, domain.values)) if domain else question.base.train["epochs"]
    if question.scheduler in ("fifo", "pbt") or epochs < 2:  # exchanges are what the population proposes
        return FIFOScheduler()
    common: dict[str, Any] = {"time_attr": "epoch", "metric": METRIC, "mode": "max", "max_t": epochs}
    reduction = question.settings["reduction"]
    if question.scheduler == "hyperband":
        return HyperBandScheduler(reduction_factor=reduction, **common)
    grace = min(question.settings["grace"], epochs)
    scheduler = SparesPreset(grace_period=grace, reduction_factor=reduction, **common)
    for trial in past:
        stand_in: Any = SimpleNamespace(trial_id=f"earlier-{trial.number}")
        nobody: Any = None
        scheduler.on_trial_add(nobody, stand_in)
        for line in trial.curve:
            scheduler.on_trial_result(nobody, stand_in, {"epoch": line.epoch, METRIC: line.best_mR})
    return scheduler
