"""Runs trials through Ray Tune; everything that must survive lives in records and checkpoints, not in Ray's state."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petlbench.harness.disk import DiskFull
from petlbench.harness.distributed.workers import TUNE_SHARE
from petlbench.harness.plan import Planned
from petlbench.harness.progress import Display
from petlbench.harness.record import read_record, record_path, stamp
from petlbench.harness.relay import name_of, place_of, relay, scratch_name
from petlbench.harness.resources import GIB, RETRIES, ResourceError, Resources
from petlbench.harness.shares import Share, shares
from petlbench.harness.signals import Interruption, listening, while_ray_starts
from petlbench.harness.spec import Trial
from petlbench.harness.stopping import Running, stopper
from petlbench.harness.trackers import Tracker, tracker_callbacks

if TYPE_CHECKING:
    from petlbench.harness.cluster import Cluster


Run = Callable[[Trial, Callable[[dict[str, Any]], None]], Any]
"""Takes a trial and what reports epochs; writes the record."""


_STARTS = 3
"""Attempts to start Ray."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    finished: int
    failed: list[tuple[str, str]]
    """Label and first line of the error."""
    interrupted: bool = False
    restarts: int = 0
    """How often a trial was started again because its process or its node was lost."""
    notes: list[str] = field(default_factory=list)
    """What records of finished trials say that a reader should know, with the label."""
    signal: int | None = None
    """The signal that ended it."""
    lost: list[str] = field(default_factory=list)
    """Labels of trials that were given up because their nodes were lost again and again; they are not recorded as failed."""


def run_trials(
    planned: list[Planned],
    resources: Resources,
    display: Display,
    trackers: Sequence[Tracker] = (),
    run: Run | None = None,
) -> Outcome:
    """Run trials and return when each has a record.

    A trial that fails is recorded as failed and the others go on. One whose process or node is lost is started again, from
    its last epoch if its checkpoints are still to be seen, at most :data:`RETRIES` times. After SIGINT or SIGTERM each running
    trial ends with its epoch, if ``resources.grace_s`` is enough for that; a second signal ends the process. The order of
    ``planned`` is kept, so that the cheap rows of every method come first.

    Args:
        planned: Trials without a valid record.
        resources: Cores and GPUs per trial, cluster address.
        display: Shows progress.
        trackers: Where else to send the curves.
        run: What a worker does with a trial; None: :func:`petlbench.harness.trial.run_trial`.

    Raises:
        ResourceError: No node can hold a trial.
        ClusterError: A node cannot run trials as it is.
    """
    if not planned:
        return Outcome(0, [])
    quiet_ray()
    from petlbench.harness.cluster import nodes, open_cluster

    with while_ray_starts(), ray_session(resources):
        trials = [p.trial for p in planned]
        with open_cluster(trials, resources) as cluster:
            measured = {}
            if resources.asks_auto:
                from petlbench.harness.probe import measure

                measured = measure(trials, resources, cluster, display.note)
            portions = shares(resources, nodes(), trials, measured)
            interruption = Interruption(resources.grace_s)
            # Behind the start of Ray, which has a handler of its own.
            with listening(interruption, before_end=display.stop):
                return _tune(planned, resources, portions, cluster, display, trackers, run, interruption)


def _tune(
    planned: list[Planned],
    resources: Resources,
    portions: Mapping[str, Share],
    cluster: Cluster | None,
    display: Display,
    trackers: Sequence[Tracker],
    run: Run | None,
    interruption: Interruption,
) -> Outcome:
    from ray import tune

    from petlbench.harness.cluster import as_config

    by_id = {p.trial.spec.spec_id: p for p in planned}
    by_folder = {scratch_name(p.trial.spec): p for p in planned}
    configs = []
    for p in planned:
        portion = portions[p.trial.spec.spec_id]
        trial = with_machine(p.trial, portion, resources).model_dump(mode="json")
        # Several workers have theirs beside the Tune function.
        bundle = TUNE_SHARE if portion.workers > 1 else portion.bundle
        configs.append({"trial": trial, "bundle": bundle, "link": as_config(cluster), "before": p.before})
    concurrent = max(portion.concurrent for portion in portions.values())
    running = Running()
    events = relay(display, by_id, cluster, running)

    def work(config: dict[str, Any]) -> None:
        _work(config["job"], run)

    scratch = Path(tempfile.mkdtemp(prefix="petlbench-tune-"))
    tuner = tune.Tuner(
        tune.with_resources(work, lambda config: tune.PlacementGroupFactory([config["job"]["bundle"]])),
        param_space={"job": tune.grid_search(configs)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrent,
            reuse_actors=True,  # importing torch, open_clip and DeepSpeed anew would cost more than a small trial
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(scratch),
            verbose=0,
            stop=stopper(interruption, running, display.note),
            callbacks=[events, *tracker_callbacks(trackers, Path(planned[0].trial.paths.results), place_of)],
            # What a trial raises is caught in the worker: what Ray sees is the loss of a process or of a node.
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )
    display.start(planned, concurrent)
    try:
        with without_tunes_own_handler():
            results = tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        display.stop()
    failed, lost = [], []
    for index in range(len(results)):
        result = results[index]
        item = by_folder[Path(result.path).name]
        if result.error is not None:
            if cluster is not None and cluster.lost_its_node(item.trial.spec.spec_id):
                lost.append(item.trial.spec.label)
            else:
                failed.append(_account(item, result.error))
        elif result.metrics and "failed" in result.metrics:
            failed.append(_account_told(item, result.metrics))
    good = [(p, r) for p in planned if p.path.exists() and (r := read_record(p.path)).status == "ok"]
    return Outcome(
        len(good),
        failed,
        interrupted=interruption.asked or len(good) + len(failed) + len(lost) < len(planned),
        restarts=events.restarts,
        notes=[f"{p.trial.spec.label}: {note}" for p, r in good for note in r.notes],
        signal=interruption.signal,
        lost=lost,
    )


@contextmanager
def without_tunes_own_handler() -> Iterator[None]:
    """Tune would stop at once where :mod:`petlbench.harness.signals` lets trials end their epoch."""
    name = "TUNE_DISABLE_SIGINT_HANDLER"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _work(job: Mapping[str, Any], run: Run | None) -> None:
    """One trial in a Ray worker. What it raises is told, not raised: only the loss of the process is Ray's to handle."""
    import ray
    from ray import tune

    from petlbench.harness.cluster import visit

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    last: dict[str, Any] = {"finished": 1}
    try:
        with visit(Trial.model_validate(job["trial"]), job["link"]) as trial:
            if not _recorded_since(trial, job["before"]):
                (run or _own_run(job["before"]))(trial, lambda line: tune.report(_numbers(line)))
    except ray.exceptions.RayError:
        raise
    except Exception as error:
        last = {
            "failed": 1,
            "error_type": type(error).__name__,
            "error_message": str(error),
            "error_traceback": "".join(traceback.format_exception(error)),
        }
    tune.report(last)


def _own_run(before: str | None) -> Run:
    from petlbench.harness.trial import run_trial

    return partial(run_trial, seen=before)


def _recorded_since(trial: Trial, before: str | None) -> bool:
    """Whether this run has finished the trial: a node may be lost after the record was written, before Ray heard of it."""
    path = record_path(Path(trial.paths.results), trial.spec.model_dump(mode="json"), trial.spec.spec_id)
    if stamp(path) in (None, before):
        return False
    record = read_record(path)
    return record.status == "ok" and record.spec_id == trial.spec.spec_id


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in line.items() if isinstance(v, int | float)}


def _account(planned: Planned, error: Exception) -> tuple[str, str]:
    """Record the failure of a trial whose process could not write a record."""
    from petlbench.harness.provenance import now
    from petlbench.harness.trial import write_failure

    write_failure(planned.trial, now(), error, planned.path)
    return planned.trial.spec.label, f"{type(error).__name__}: {_first_line(str(error))}"


def _account_told(planned: Planned, told: Mapping[str, Any]) -> tuple[str, str]:
    """See that a trial that raised has a failed record, also where it raised before it could write one."""
    from petlbench.harness.provenance import now
    from petlbench.harness.record import ErrorPart, write_record
    from petlbench.harness.trial import failed_record, good_record

    part = ErrorPart(type=told["error_type"], message=told["error_message"], traceback=told["error_traceback"])
    if part.type == DiskFull.__name__:  # it says nothing about the trial, and could not be written
        return planned.trial.spec.label, f"{part.type}: {_first_line(part.message)}"
    written = read_record(planned.path) if planned.path.exists() else None
    fresh = written is not None and written.error is not None and written.error.message == part.message
    if not fresh and good_record(planned.path, planned.trial) is None:
        record = failed_record(planned.trial, now(), RuntimeError(part.message))
        write_record(record.model_copy(update={"error": part}), planned.path)
    return planned.trial.spec.label, f"{part.type}: {_first_line(part.message)}"


def _first_line(text: str) -> str:
    return next((line for line in text.strip().splitlines() if line.strip()), "(no message)")


def with_machine(trial: Trial, portion: Share, resources: Resources | None = None) -> Trial:
    """The trial with what its share of the machine decides."""
    update = {
        "threads": portion.cpus,
        "workers": portion.workers,
        "gpus_per_worker": portion.gpus,
        "gpu_reserve": int((resources or Resources()).gpu_reserve_gib * GIB),
        "concurrent_trials": portion.beside,
    }
    return trial.model_copy(update={"paths": trial.paths.model_copy(update=update)})


@contextmanager
def ray_session(resources: Resources) -> Iterator[None]:
    """A connection to the cluster at ``address``, or a Ray of our own that ends with the run."""
    import ray

    if ray.is_initialized():
        yield
        return
    if resources.address:
        ray.init(address=resources.address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        _start_ray()
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray() -> None:
    """Start Ray here. On a machine that is busy with other things its parts may not find each other in the time they have."""
    import ray

    for left in reversed(range(_STARTS)):
        try:
            # Without an address Ray would join any cluster that was started on this machine.
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray raises no narrower class here
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if not left:
                raise ResourceError(
                    f"Ray did not start in {_STARTS} attempts: {_first_line(str(error))} This machine is likely to be "
                    "overloaded; give the same command again when it has less to do"
                ) from error


def quiet_ray() -> None:
    """Ray's own progress report and usage ping off: the display speaks for the run. To be called before Ray starts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "0")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE", "1")  # or a trial could be started again without end
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    # A process per core before there is work for any: on a busy machine Ray's own parts then start too late.
    os.environ.setdefault("RAY_enable_worker_prestart", "0")
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # failed trials are reported by the run itself
