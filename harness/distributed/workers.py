"""Several Ray workers for one trial: Ray Train's TorchTrainer inside a Ray Tune function.

A ``Tuner`` around a ``TorchTrainer`` fails in Ray 2.60. So the Tune function of the trial asks for no cores of its own, starts
the workers, and hands on what the first of them reports.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from petlbench.harness.spec import Trial

T = TypeVar("T")
Report = Callable[[dict[str, Any]], None]

TUNE_SHARE = {"memory": 1}
"""What the Tune function itself asks for: a byte, because Ray Tune refuses to ask for nothing. The workers have a placement
group of their own."""

_OVER = ("over", None)
"""What the queue holds last."""

_SCRATCH = ".train-"


def in_workers(trial: Trial, work: Callable[[Trial, bool, Report], T | None], report: Report) -> T:
    """Run a function in each of the trial's workers, and return what it gives in the first one.

    Args:
        trial: Says how many workers (``paths.workers``), and cores (``threads``) and GPUs (``gpus_per_worker``) of each.
        work: Called with the trial, whether the worker is the first one, and where to report to; must be picklable. Within
            it :func:`petlbench.harness.distributed.world.here` is the world of the workers.
        report: Gets what the first worker reports, here.

    Raises:
        Exception: What was raised in the worker of the lowest rank that failed; the others are ended.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    from petlbench.harness.distributed.world import PATIENCE
    from petlbench.harness.leftovers import work_folder

    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    paths = trial.paths
    payload = trial.model_dump(mode="json")
    queue: Any = Queue(actor_options={"num_cpus": 0})
    # Ray Train wants a folder that all workers see, and leaves nothing of worth there.
    folder = work_folder(trial)
    for left in folder.glob(f"{_SCRATCH}*"):  # of a run that was killed: the trial's lock is held
        shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=_SCRATCH))
    trainer = TorchTrainer(
        lambda: _worker(payload, work, queue),
        torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=paths.workers,
            use_gpu=paths.gpus_per_worker > 0,
            resources_per_worker={"CPU": paths.threads, "GPU": paths.gpus_per_worker},
        ),
        run_config=RunConfig(name="workers", storage_path=str(scratch), failure_config=FailureConfig(max_failures=0)),
    )
    results: list[T] = []
    try:
        with ThreadPoolExecutor(1) as beside:
            running = beside.submit(trainer.fit)
            running.add_done_callback(lambda _: queue.put(_OVER))
            for kind, value in iter(queue.get, _OVER):
                if kind == "line":
                    report(value)
                else:
                    results.append(value)
            _raise_cause(running)
    finally:
        queue.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
    assert ray.is_initialized() and len(results) == 1, "the first worker returns once"
    return results[0]


def lost_worker(error: BaseException) -> bool:
    """Whether a worker's process or node was lost, which says nothing about the trial; it may be started again."""
    ray = sys.modules.get("ray")  # without it nothing was lost
    return ray is not None and isinstance(error, ray.exceptions.RayError)


def _raise_cause(running: Future[Any]) -> None:
    """Raise what a worker raised, rather than Ray's account of it."""
    from ray.train import WorkerGroupError

    try:
        running.result()
    except WorkerGroupError as error:
        raise _cause([e for _, e in sorted(error.worker_failures.items())], error) from error


def _cause(failures: Sequence[Exception], error: Exception) -> BaseException:
    """What a worker raised; else that one was lost, which others may notice by a broken connection; else ``error``."""
    from ray.exceptions import RayError

    raised, lost, broken = [], [], []
    for failure in failures:
        cause: BaseException = getattr(failure, "health_check_failure", getattr(failure, "_base_exc", failure))
        if isinstance(cause, RayError):
            lost.append(cause)
        elif type(cause).__name__ == "WorkerHealthCheckTimeoutError" or "onnection" in str(cause):
            broken.append(RayError(f"a worker was lost: {cause}"))
        else:
            raised.append(cause)
    return next(iter([*raised, *lost, *broken]), error)


def _worker(payload: dict[str, Any], work: Callable[[Trial, bool, Report], Any], queue: Any) -> None:
    """One worker; torch's process group exists already."""
    from petlbench.harness.distributed.world import join
    from petlbench.harness.spec import Trial

    trial = Trial.model_validate(payload)
    with join() as world:
        if not world.first:
            work(trial, False, lambda line: None)
            return
        queue.put(("value", work(trial, True, lambda line: queue.put(("line", line)))))
