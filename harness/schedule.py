"""Runs trials through Ray Tune; everything that must survive lives in records and checkpoints, not in Ray's state."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlbench.harness.experiment import Resources
from petlbench.harness.plan import Planned
from petlbench.harness.progress import Display
from petlbench.harness.record import read_record
from petlbench.harness.spec import Trial


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    finished: int
    failed: list[tuple[str, str]]
    """Label and first line of the error."""
    interrupted: bool = False


@dataclass(frozen=True)
class Share:
    """What one trial gets, and how many fit at once."""

    cpus: int
    gpus: float
    concurrent: int


def share(resources: Resources, cpus: int, gpus: int, trials: int) -> Share:
    """Divide a machine (or cluster) among trials.

    Args:
        resources: What the user asked for.
        cpus: Cores that Ray sees.
        gpus: GPUs that Ray sees.
        trials: Trials to run.
    """
    per_gpu = resources.gpus_per_trial if resources.gpus_per_trial is not None else (1.0 if gpus else 0.0)
    slots = max(1, int(gpus / per_gpu)) if per_gpu else cpus
    per_cpu = resources.cpus_per_trial or (max(1, cpus // slots) if per_gpu else 1)
    fit = min(slots, max(1, cpus // per_cpu))
    concurrent = max(1, min(fit, resources.max_concurrent or fit, trials))
    if resources.cpus_per_trial is None and not per_gpu:
        per_cpu = max(1, cpus // concurrent)  # fewer trials than cores: let each use more
    return Share(per_cpu, per_gpu, concurrent)


def run_trials(planned: list[Planned], resources: Resources, display: Display) -> Outcome:
    """Run trials and return when each has a record.

    A trial that fails is recorded as failed and the others go on; so is one whose process dies. The order of ``planned``
    is kept, so that the cheap rows of every method come first.

    Args:
        planned: Trials without a valid record.
        resources: Cores and GPUs per trial, cluster address.
        display: Shows progress.
    """
    if not planned:
        return Outcome(0, [])
    _quiet()
    import ray
    from ray import tune

    with _ray(resources):
        available = ray.cluster_resources()
        portion = share(resources, int(available.get("CPU", 1)), int(available.get("GPU", 0)), len(planned))
        by_id = {p.trial.spec.spec_id: p for p in planned}
        trials = [_with_machine(p.trial, portion).model_dump(mode="json") for p in planned]
        scratch = Path(tempfile.mkdtemp(prefix="petlbench-tune-"))
        tuner = tune.Tuner(
            tune.with_resources(_work, {"CPU": portion.cpus, "GPU": portion.gpus}),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=portion.concurrent,
                reuse_actors=True,  # importing torch, open_clip and DeepSpeed anew would cost more than a small trial
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="run",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[_callback(display, by_id)],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        display.start(planned, portion.concurrent)
        try:
            results = tuner.fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            display.stop()
    failed = []
    for index in range(len(results)):
        result = results[index]
        if result.error is not None:
            assert result.config is not None
            failed.append(_account(by_id[_spec_id(result.config["trial"])], result.error))
    done = sum(1 for p in planned if p.path.exists() and read_record(p.path).status == "ok")
    return Outcome(done, failed, interrupted=done + len(failed) < len(planned))


def _work(config: dict[str, Any]) -> None:
    """One trial in a Ray worker."""
    from ray import tune

    from petlbench.harness.trial import run_trial

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    run_trial(Trial.model_validate(config["trial"]), lambda line: tune.report(_numbers(line)))
    tune.report({"finished": 1})


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in line.items() if isinstance(v, int | float)}


def _account(planned: Planned, error: Exception) -> tuple[str, str]:
    """Make sure that a failed trial has a failed record, also when its process could not write one."""
    from petlbench.harness.provenance import now
    from petlbench.harness.trial import write_failure

    label = planned.trial.spec.label
    if planned.path.exists():
        record = read_record(planned.path)
        if record.status == "failed" and record.error is not None:
            return label, f"{record.error.type}: {_first_line(record.error.message)}"
    write_failure(planned.trial, now(), error, planned.path)
    return label, f"{type(error).__name__}: {_first_line(str(error))}"


def _first_line(text: str) -> str:
    return next((line for line in text.strip().splitlines() if line.strip()), "(no message)")


def _with_machine(trial: Trial, portion: Share) -> Trial:
    update = {"threads": portion.cpus, "concurrent_trials": portion.concurrent}
    return trial.model_copy(update={"paths": trial.paths.model_copy(update=update)})


def _spec_id(payload: dict[str, Any]) -> str:
    return Trial.model_validate(payload).spec.spec_id


def _name(trial: Any) -> str:
    spec = Trial.model_validate(trial.config["trial"]).spec
    return f"{spec.method.name}-s{spec.seed}-{spec.spec_id[:8]}"


def _callback(display: Display, by_id: dict[str, Planned]) -> Any:
    from ray import tune

    class Relay(tune.Callback):
        """Hands Tune's events to the display."""

        def __init__(self, show: Display | None = None, planned: dict[str, Planned] | None = None):
            self.show, self.planned = show, planned or {}

        def __getstate__(self) -> dict[str, Any]:
            return {"show": None, "planned": {}}  # Tune pickles its callbacks for a restore that is never used here

        def _tell(self, event: str, trial: Any, *more: Any) -> None:
            if self.show is not None:
                getattr(self.show, event)(self.planned[_spec_id(trial.config["trial"])], *more)

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._tell("started", trial)

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if "epoch" in result:
                self._tell("epoch", trial, result)
            elif "pairs" in result:
                self._tell("scoring", trial, result)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._tell("finished", trial)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._tell("failed", trial)

    return Relay(display, by_id)


@contextmanager
def _ray(resources: Resources) -> Iterator[None]:
    """A connection to the cluster at ``address``, or a Ray of our own that ends with the run."""
    import ray

    if ray.is_initialized():
        yield
        return
    if resources.address:
        ray.init(address=resources.address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _quiet() -> None:
    """Ray's own progress report and usage ping off: the display speaks for the run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "0")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # failed trials are reported by the run itself
