"""One searched trial in a worker: train, validate each epoch, report. The test split is not among what it is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from petlbench.harness import metrics
from petlbench.harness.checkpoint import Checkpoints
from petlbench.harness.evaluate import MAIN_RULE
from petlbench.harness.failure import report_of
from petlbench.harness.json_files import write_atomically
from petlbench.harness.leftovers import work_folder
from petlbench.harness.spec import Trial
from petlbench.harness.trial import train_and_select

METRIC = "best_mR"
"""What searchers and schedulers see: the validation mR of what selection would keep so far, as the fit reports it."""

_TOLD = "reported.json"


class _Paused(Exception):
    """The epoch is reached after which a trial waits for others; its checkpoint is written."""


def search_trial(trial: Trial, run: str, report: Callable[[dict[str, Any]], None], until: int | None = None) -> None:
    """Train one configuration, from its last epoch on if it has one, and report every validated epoch once per run.

    Epochs of an earlier, interrupted run are reported again first, so that a new scheduler knows them. The last epoch is
    reported after the audits, with ``finished``; an error is reported with ``failed``, its type, message and traceback:
    only the death of the process is Ray's to handle.

    Args:
        trial: Its spec names the training and validation splits only.
        run: Names the run of the command; a trial may stop and go on within one.
        report: Takes ``epoch``, ``best_mR`` and more.
        until: Leave off after this epoch, with ``paused``; another call goes on from there.
    """
    work = work_folder(trial)
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(str(work) + ".lock"):  # the last worker of a killed search may still be here
        told = _Told(work.with_name(work.name + "-" + _TOLD), run, report, until)
        try:
            told(_trained(trial, Checkpoints(work), told))
        except _Paused:
            report({"paused": 1, "epoch": told.epoch, METRIC: told.best})
        except Exception as error:
            report({**report_of(error), "epoch": max(0, told.epoch), METRIC: told.best or 0.0})


def _trained(trial: Trial, checkpoints: Checkpoints, told: _Told) -> dict[str, Any]:
    if (earlier := checkpoints.progress()) is not None:
        best: float | None = None
        for line in earlier.curve:
            if line["val_mR"] is not None and line["epoch"] < trial.spec.train["epochs"]:
                last_counts = best is None or trial.spec.protocol.selection == "last"
                best = line["val_mR"] if last_counts else max(best, line["val_mR"])
                told({**line, METRIC: best})

    def each(line: dict[str, Any]) -> None:
        if line.get("val_mR") is not None and line["epoch"] < line["epochs"]:  # not the lines about pairs
            told(line)

    trained = train_and_select(trial, checkpoints, each)
    progress = trained.progress
    line = {"epoch": 0, "loss": None, **(progress.curve[-1] if progress.curve else {})}
    if progress.best_mR is None:  # nothing is trained, so nothing was validated yet
        ranks = trained.ranking.rank(trained.ranking.open("val")).ranks
        line["val_mR"] = line[METRIC] = metrics.recalls(ranks, MAIN_RULE)["mR"]
    else:
        line[METRIC] = progress.best_mR
    return {**line, "pairs": trained.pairs, "train_s": progress.train_s, "finished": 1}


class _Told:
    """Reports each epoch once per run, also where the process dies between two epochs."""

    def __init__(self, path: Path, run: str, report: Callable[[dict[str, Any]], None], until: int | None):
        self.path, self.run, self.report, self.until = path, run, report, until
        self.epoch, self.best = -1, None
        if path.exists():
            earlier = json.loads(path.read_text(encoding="utf-8"))
            if earlier["run"] == run:
                self.epoch, self.best = earlier["epoch"], earlier["best"]

    def __call__(self, line: dict[str, Any]) -> None:
        if line["epoch"] > self.epoch or line.get("finished"):
            self._tell(line)
        if self.until is not None and line["epoch"] >= self.until and not line.get("finished"):
            raise _Paused

    def _tell(self, line: dict[str, Any]) -> None:
        self.epoch, self.best = line["epoch"], line[METRIC]
        # Written first: an epoch told twice would disturb a scheduler, one that is left out does not.
        payload = {"run": self.run, "epoch": self.epoch, "best": self.best}
        write_atomically(self.path, json.dumps(payload).encode())
        self.report({key: value for key, value in line.items() if isinstance(value, int | float)})
