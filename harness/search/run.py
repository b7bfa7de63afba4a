"""Searches one study after the other with Ray Tune; what must survive lies in the studies' folders."""

from __future__ import annotations

import logging
import math
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from petlbench.harness.checkpoint import Checkpoints
from petlbench.harness.disk import DiskFull
from petlbench.harness.experiment import ExperimentError
from petlbench.harness.failure import report_of
from petlbench.harness.leftovers import work_folder
from petlbench.harness.provenance import now
from petlbench.harness.ray_session import ray_session
from petlbench.harness.resources import Resources
from petlbench.harness.search.progress import SearchDisplay
from petlbench.harness.search.question import Asked
from petlbench.harness.search.scheduler import make_scheduler
from petlbench.harness.search.study import SearchedTrial, Study
from petlbench.harness.shares import shares, with_machine
from petlbench.harness.signals import Interruption, listening
from petlbench.harness.spec import Trial
from petlbench.harness.tuner import run_tune

if TYPE_CHECKING:
    from petlbench.harness.cluster import Cluster


@dataclass(frozen=True)
class Searched:
    """What a run of the command made of a study.

    Attributes:
        study: As it stands now; unlocked.
        complete: The budget is spent, or the space exhausted; False after an interruption.
        signal: What interrupted it; None where nothing did, or where a process was lost for good.
    """

    study: Study
    complete: bool
    signal: Signals | None = None


def search(
    asked: Sequence[Asked],
    root: Path,
    resources: Resources,
    display: SearchDisplay,
    *,
    command: list[str],
    retry_failed: bool = False,
    callbacks: Callable[[], list[Any]] = list,
    ended: Callable[[Searched], object] = lambda searched: None,
) -> list[Searched]:
    """Answer every question within its budget; stop at the first interruption.

    After SIGINT or SIGTERM each running trial ends with its epoch, if ``resources.grace_s`` is enough for that; a second signal
    ends the process. In both cases, and after ``kill -9``, another call goes on from the last epochs.

    Args:
        asked: Questions.
        root: Folder of studies.
        resources: Cores and GPUs per trial, cluster address.
        display: Shows progress.
        command: The command line, for new studies.
        retry_failed: Try again what failed before.
        callbacks: Makes further Ray Tune callbacks for one study.
        ended: Called after each study, while it is still locked.

    Raises:
        ExperimentError: The resources are none that a search can use.
        ResourceError: No node can hold a trial.
        StudyError: A study is damaged, or another process is searching it.
        ClusterError: A node cannot run trials as it is.
        DiskFull: There is no room for a checkpoint; what was searched so far stands.
    """
    for one in asked:
        _check_resources(resources, one.question.base.method.name)
    results: list[Searched] = []
    interruption = Interruption(resources.grace_s)
    try:
        with ExitStack() as ray:
            started = False
            for one in asked:
                with closing(Study.open(root, one, command)) as study:
                    if retry_failed:
                        if _time_is_up(study, one):
                            display.note(
                                f"{study.folder.name}: its time is up, so what failed is not tried again; give a longer --time"
                            )
                        else:
                            _forgive(study)
                    display.begin(study, one)
                    if _left(study, one):
                        if not started:  # where everything is searched already, Ray is not needed
                            ray.enter_context(ray_session(resources))
                            started = True
                        # Behind the start of Ray, which has a handler of its own.
                        with listening(interruption, before_end=display.stop):
                            _on_nodes(study, one, resources, display, callbacks(), interruption)
                    results.append(Searched(study, not _left(study, one), interruption.signal))
                    display.end(study)
                    ended(results[-1])
                if not results[-1].complete or interruption.asked:
                    break
    finally:
        display.stop()
    return results


def _check_resources(resources: Resources, method: str) -> None:
    if resources.workers_of(method) > 1:
        raise ExperimentError(
            f"method {method} was given {resources.workers_of(method)} workers per trial, but a search trains each trial in "
            "one process, several side by side; leave out resources.workers_per_trial, or give one GPU per trial"
        )
    if resources.gpus_of(method) == "auto":
        raise ExperimentError(
            f"method {method} was given gpus_per_trial=auto, which measures one configuration, but a search tries many, "
            "some of them larger; give a number such as 1 or 0.5"
        )


def _forgive(study: Study) -> None:
    for trial in study.trials:
        if trial.status == "failed" and trial.spec_id is not None:
            trial.status, trial.error, trial.finished = "running", None, None
            study.save(trial)


def _time_is_up(study: Study, asked: Asked) -> bool:
    return asked.budget.time is not None and study.state.spent_s >= asked.budget.time


def _left(study: Study, asked: Asked) -> bool:
    """Whether anything is to be done within the budget."""
    if _time_is_up(study, asked):
        return False
    if study.count("running"):
        return True
    limit = asked.trials
    return not study.state.exhausted and (limit is None or len(study.trials) < limit)


def _on_nodes(
    study: Study,
    asked: Asked,
    resources: Resources,
    display: SearchDisplay,
    callbacks: list[Any],
    interruption: Interruption,
) -> None:
    from petlbench.harness.cluster import open_cluster

    paths = asked.paths.model_copy(update={"work": str(study.work)})
    with open_cluster([Trial(spec=asked.question.base, paths=paths)], resources, one_folder=True) as cluster:
        _search(study, asked, resources, display, callbacks, cluster, interruption)
    if not _left(study, asked):
        shutil.rmtree(study.work, ignore_errors=True)


def _search(
    study: Study,
    asked: Asked,
    resources: Resources,
    display: SearchDisplay,
    callbacks: list[Any],
    cluster: Cluster | None,
    interruption: Interruption,
) -> None:
    from petlbench.harness.cluster import as_config, nodes
    from petlbench.harness.search.population import Population
    from petlbench.harness.search.proposals import Proposals

    limit, allowed = asked.trials, asked.budget.time
    machines = nodes()
    cpus = sum(node.cpus for node in machines)
    at_most = cpus if limit is None else limit - len(study.trials) + study.count("running")
    base = Trial(spec=asked.question.base, paths=asked.paths)
    portion = shares(resources, machines, [base] * max(1, at_most))[base.spec.spec_id]
    began, before = time.monotonic(), study.state.spent_s

    def spent() -> float:
        return before + time.monotonic() - began

    def heard(trial: SearchedTrial) -> None:
        study.note(spent_s=spent())
        if trial.status != "running" and trial.spec_id is not None:
            work = work_folder(asked.trial(trial.config, study.work_of(trial)))
            if said := Checkpoints(work).notes():
                trial.add_notes(*said)
                study.save(trial)
            shutil.rmtree(work, ignore_errors=True)
        display.heard(study, trial)

    proposals = (Population if asked.question.scheduler == "pbt" and asked.space else Proposals)(
        study=study,
        asked=asked,
        run=uuid.uuid4().hex,
        dress=lambda trial: with_machine(trial, portion, resources),
        heard=heard,
        over=lambda: allowed is not None and spent() >= allowed,
        link=as_config(cluster),
        halted=lambda: interruption.asked,
    )
    # HyperBand compares the trials of a bracket, which wait for each other: a limit would count the waiting ones. There,
    # what a trial asks of the machine keeps as many from running at once.
    waits = asked.question.scheduler == "hyperband"
    needs = dict(portion.bundle)
    if waits:
        needs["CPU"] = max(portion.cpus, math.ceil(cpus / portion.concurrent))
    try:
        run_tune(
            _work,
            lambda config: needs,
            _name,
            interruption,
            display.note,
            callbacks,
            search_alg=proposals,
            scheduler=make_scheduler(asked, [t for t in study.trials if t.status in ("ok", "pruned")]),
            num_samples=-1,  # the proposals end by themselves
            max_concurrent_trials=None if waits else portion.concurrent,
            time_budget_s=None if allowed is None else max(0.1, allowed - before),
        )
    finally:
        study.note(spent_s=spent(), exhausted=proposals.exhausted)
    if proposals.disk_full is not None:
        raise DiskFull(proposals.disk_full)
    if allowed is not None and study.state.spent_s >= allowed:
        for trial in study.trials:
            # What has not come to an epoch has no outcome; a larger budget takes it up.
            if trial.status == "running" and trial.curve:
                trial.status, trial.finished = "pruned", now()
                trial.add_notes("stopped when the time was up")
                study.save(trial)
                heard(trial)


def _work(config: dict[str, Any]) -> None:
    """One searched trial in a Ray worker."""
    from ray import tune

    from petlbench.harness.cluster import ClusterError, visit
    from petlbench.harness.search.objective import METRIC, search_trial

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        with visit(Trial.model_validate(config["trial"]), config["link"]) as trial:
            search_trial(trial, config["run"], tune.report, config.get("until"))
    except ClusterError as error:
        tune.report({**report_of(error), "epoch": 0, METRIC: 0.0})


def _name(trial: Any) -> str:
    return f"{trial.config['number']:04d}-{trial.trial_id}"
