"""Runs trials through Ray Tune; everything that must survive lives in records and checkpoints, not in Ray's state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petlbench.harness.disk import DiskFull
from petlbench.harness.distributed.workers import TUNE_SHARE
from petlbench.harness.failure import error_in, first_line, report_of, write_failure
from petlbench.harness.json_files import stamp
from petlbench.harness.progress import Display
from petlbench.harness.provenance import now
from petlbench.harness.ray_session import ray_session
from petlbench.harness.record import ErrorPart, Record
from petlbench.harness.record_files import good_record, path_of, read_record
from petlbench.harness.recorded import Planned
from petlbench.harness.relay import name_of, place_of, relay, scratch_name
from petlbench.harness.resources import Resources
from petlbench.harness.shares import Share, shares, with_machine
from petlbench.harness.signals import Interruption, listening
from petlbench.harness.spec import Trial
from petlbench.harness.trackers import Tracker, tracker_callbacks
from petlbench.harness.tuner import run_tune

if TYPE_CHECKING:
    from petlbench.harness.cluster import Cluster


Run = Callable[[Trial, Callable[[dict[str, Any]], None]], Any]
"""Takes a trial and what reports epochs; writes the record."""


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
    its last epoch if its checkpoints are still to be seen, at most :data:`petlbench.harness.resources.RETRIES` times. After
    SIGINT or SIGTERM each running trial ends with its epoch, if ``resources.grace_s`` is enough for that; a second signal
    ends the process. The order of ``planned`` is kept, so that the cheap rows of every method come first.

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
    from petlbench.harness.cluster import nodes, open_cluster

    with ray_session(resources):
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
    for spec_id, p in by_id.items():
        portion = portions[spec_id]
        trial = with_machine(p.trial, portion, resources).model_dump(mode="json")
        # Several workers have theirs beside the Tune function.
        bundle = TUNE_SHARE if portion.workers > 1 else portion.bundle
        configs.append(
            {"spec_id": spec_id, "trial": trial, "bundle": bundle, "link": as_config(cluster), "before": p.before}
        )
    concurrent = max(portion.concurrent for portion in portions.values())
    events = relay(display, by_id, cluster)

    def work(config: dict[str, Any]) -> None:
        _work(config["job"], run)

    display.start(planned, concurrent)
    try:
        results = run_tune(
            work,
            lambda config: config["job"]["bundle"],
            name_of,
            interruption,
            display.note,
            [events, *tracker_callbacks(trackers, Path(planned[0].trial.paths.results), place_of)],
            param_space={"job": tune.grid_search(configs)},
            max_concurrent_trials=concurrent,
        )
    finally:
        display.stop()
    failed, lost = [], []
    for index in range(len(results)):
        result = results[index]
        item = by_folder[Path(result.path).name]
        if result.error is not None:
            if cluster is not None and cluster.lost_its_node(item.trial.spec.spec_id):
                lost.append(item.trial.spec.label)
            else:
                failed.append(_account(item, ErrorPart.of(result.error)))
        elif result.metrics and "failed" in result.metrics:
            failed.append(_account(item, error_in(result.metrics)))
    good = [(p, record) for p in planned if (record := _recorded_since(p.trial, p.before)) is not None]
    return Outcome(
        len(good),
        failed,
        interrupted=interruption.asked or len(good) + len(failed) + len(lost) < len(planned),
        restarts=events.restarts,
        notes=[f"{p.trial.spec.label}: {note}" for p, record in good for note in record.notes],
        signal=interruption.signal,
        lost=lost,
    )


def _work(job: Mapping[str, Any], run: Run | None) -> None:
    """One trial in a Ray worker. What it raises is told, not raised: only the loss of the process is Ray's to handle."""
    import ray
    from ray import tune

    from petlbench.harness.cluster import visit

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    last: dict[str, Any] = {"finished": 1}
    try:
        with visit(Trial.model_validate(job["trial"]), job["link"]) as trial:
            if _recorded_since(trial, job["before"]) is None:
                (run or _own_run(job["before"]))(trial, lambda line: tune.report(_numbers(line)))
    except ray.exceptions.RayError:
        raise
    except Exception as error:
        last = report_of(error)
    tune.report(last)


def _own_run(before: str | None) -> Run:
    from petlbench.harness.trial import run_trial

    return partial(run_trial, seen=before)


def _recorded_since(trial: Trial, before: str | None) -> Record | None:
    """What this run has recorded of a trial: a node may be lost after that, before Ray heard of it."""
    path = path_of(trial)
    return None if stamp(path) in (None, before) else good_record(path, trial.spec.spec_id)


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in line.items() if isinstance(v, int | float)}


def _account(planned: Planned, error: ErrorPart) -> tuple[str, str]:
    """See that a trial has a failed record also where it could not write one; its label, and the error in a line."""
    said = planned.trial.spec.label, f"{error.type}: {first_line(error.message)}"
    if error.type == DiskFull.__name__:  # it says nothing about the trial, and could not be written
        return said
    if stamp(planned.path) not in (None, planned.before):
        written = read_record(planned.path).error
        if written is not None and written.message == error.message:
            return said
    write_failure(planned.trial, now(), error, planned.path)
    return said
