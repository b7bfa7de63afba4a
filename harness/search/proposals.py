"""Which configuration comes next: the searcher that Ray Tune asks, backed by the study's own files instead of Ray's state."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from petlbench.harness.disk import DiskFull
from petlbench.harness.failure import error_in
from petlbench.harness.provenance import now
from petlbench.harness.record import ErrorPart
from petlbench.harness.search import space as spaces
from petlbench.harness.search.objective import METRIC
from petlbench.harness.search.question import Asked
from petlbench.harness.search.sources import Grid, Optuna, Source
from petlbench.harness.search.study import EpochLine, SearchedTrial, Study
from petlbench.methods.base import MethodError

_REPEATS = 200
"""Proposals in a row of what was tried already, after which a space counts as exhausted."""


class Proposals(Searcher):
    """Ray Tune's searcher of one study: unfinished trials first, then the preset's settings, then new ones.

    It is also the one who writes the study's files, since Tune tells it of every epoch and every end.

    Args:
        study: Locked; its trials so far are neither repeated nor forgotten.
        asked: The question.
        run: Names this run of the command.
        dress: Puts what the machine decides (threads) into a trial.
        heard: Called after every change of a trial.
        over: Whether the time is up.
        link: How workers find the driver's desk on a cluster; None where all is local.
        halted: Whether a signal has asked to stop; what ends then without having finished goes on another time.

    Attributes:
        exhausted: Nothing new is left in the space.
        disk_full: What a trial that met a full disk said; no other is begun then.
    """

    def __init__(
        self,
        study: Study,
        asked: Asked,
        run: str,
        dress: Callable[[Any], Any],
        heard: Callable[[SearchedTrial], None],
        over: Callable[[], bool],
        link: dict[str, str] | None = None,
        halted: Callable[[], bool] = lambda: False,
    ):
        super().__init__(metric=METRIC, mode="max")
        self._study, self._asked, self._run, self._link = study, asked, run, link
        self._dress, self._heard, self._over, self._halted = dress, heard, over, halted
        self._running: dict[str, SearchedTrial] = {}
        self._drawn: dict[str, str] = {}
        """Ray's id of a trial to the source's key, where the source drew its configuration."""
        self._asks = itertools.count()
        self.exhausted = False
        self.disk_full: str | None = None
        self._waiting = deque(t for t in study.trials if t.status == "running")
        past = [t for t in study.trials if t.status != "running"]
        defaults = spaces.current(asked.question.base, asked.space)
        self._given: list[tuple[spaces.Config, str]] = [] if study.trials else [(defaults, "preset")]
        """What comes before new proposals, with its origin."""
        first = self._begins_with()
        self._source = self._make_source(past, [c for c in first if spaces.contains(asked.space, c)])

    def _begins_with(self) -> list[spaces.Config]:
        """What is tried before anything is drawn."""
        return [t.config for t in self._waiting] + [config for config, _ in self._given]

    def _make_source(self, past: list[SearchedTrial], first: list[spaces.Config]) -> Source:
        if not self._asked.space:
            return Grid(first)
        if self._asked.question.searcher == "grid":
            points = spaces.grid(
                self._asked.space, self._asked.question.settings["grid_points"], self._asked.question.base.seed
            )
            known = [*first, *(config for trial in past for config in trial.tried)]
            return Grid([*first, *(p for p in points if p not in known)])
        return Optuna(self._asked, past, first)

    def suggest(self, trial_id: str) -> Any:
        """The next trial for a Ray worker; ``FINISHED`` where the budget is spent or nothing new is left."""
        if self._stopped():
            return Searcher.FINISHED
        if self._waiting:
            trial = self._waiting.popleft()
            self._draw_first(trial_id, trial.config)
            return self._begin(trial_id, trial)
        return self._begin_new(trial_id, self._asked.trials)

    def _stopped(self) -> bool:
        return self._over() or self._halted() or self.disk_full is not None

    def _begin_new(self, trial_id: str, limit: int | None) -> Any:
        """A new trial, while there are fewer than ``limit``; else ``FINISHED``."""
        while limit is None or len(self._study.trials) < limit:
            if self._given:
                config, origin = self._given.pop()
                self._draw_first(trial_id, config)
            elif (drawn := self._new(trial_id)) is None:
                self.exhausted = True
                break
            else:
                config, origin = drawn, self._asked.question.searcher
            trial = SearchedTrial.model_validate(
                {"number": len(self._study.trials), "origin": origin, "config": config, "epochs": 0, "started": now()}
            )
            try:
                spec = self._asked.trial(config, self._study.work_of(trial)).spec
            except MethodError as error:  # a combination that the method refuses counts: it was tried
                trial.error = ErrorPart(type=type(error).__name__, message=str(error), traceback="")
                self._study.add(trial)
                self._finish(trial_id, trial, "failed")
                continue
            trial.spec_id, trial.epochs = spec.spec_id, spec.train["epochs"]
            self._study.add(trial)
            return self._begin(trial_id, trial)
        return Searcher.FINISHED

    def _draw_first(self, trial_id: str, config: spaces.Config) -> None:
        """Have the source hand out a configuration that it was given to begin with, so that it learns its outcome."""
        if spaces.contains(self._asked.space, config):
            self._drawn[trial_id] = key = self._key(trial_id)
            drawn = self._source.ask(key)
            assert drawn == config, (drawn, config)

    def _key(self, trial_id: str) -> str:
        return f"{trial_id}~{next(self._asks)}"

    def _new(self, trial_id: str) -> spaces.Config | None:
        """A configuration that was not tried; for one that was, the source learns the outcome again."""
        # A source that begins anew in a later run first proposes all that it has proposed before.
        for _ in range(_REPEATS + len(self._study.trials)):
            key = self._key(trial_id)
            config = self._source.ask(key)
            if config is None:
                return None
            known = next((t for t in self._study.trials if config in t.tried), None)
            if known is None:
                self._drawn[trial_id] = key
                return config
            self._source.end(key, known.status, known.best_mR)
        return None

    def _begin(self, trial_id: str, trial: SearchedTrial) -> dict[str, Any]:
        self._running[trial_id] = trial
        self._heard(trial)
        whole = self._dress(self._asked.trial(trial.config, self._study.work_of(trial)))
        return {"number": trial.number, "run": self._run, "link": self._link, "trial": whole.model_dump(mode="json")}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch was validated, or the trial has come to its end."""
        trial = self._running.get(trial_id)
        if trial is None or self._ended(trial_id, trial, result):
            return
        self._note(trial, result)
        if trial_id in self._drawn:
            self._source.epoch(self._drawn[trial_id], result["epoch"], result[METRIC])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial returned, was stopped by the scheduler, or its process died for good.

        Tune does not call this where the whole search is interrupted or the time is up: those trials stay unfinished.
        """
        trial = self._running.get(trial_id)
        if trial is None or (result and self._ended(trial_id, trial, result)):
            return
        if error and not self._halted():
            message = "its process died and did not come through when started again (out of memory, or killed)"
            trial.error = ErrorPart(type="WorkerDied", message=message, traceback="")
            self._finish(trial_id, trial, "failed")
            return
        if result:
            self._note(trial, result)
        if self._halted():
            del self._running[trial_id]
        elif trial.curve:
            self._finish(trial_id, trial, "pruned")

    def _ended(self, trial_id: str, trial: SearchedTrial, result: dict[str, Any]) -> bool:
        """Whether a report was a trial's last one."""
        if result.get("error_type") == DiskFull.__name__:
            # It says nothing of the configuration: the trial stays unfinished, and goes on where there is room.
            self.disk_full = result["error_message"]
            del self._running[trial_id]
        elif "failed" in result:
            trial.error = error_in(result)
            self._finish(trial_id, trial, "failed")
        elif "finished" in result:
            self._note(trial, result)
            self._finish(trial_id, trial, "ok")
        return "failed" in result or "finished" in result

    def _note(self, trial: SearchedTrial, result: dict[str, Any]) -> None:
        if result["epoch"] > trial.last_epoch or not trial.curve:
            picked = {key: result.get(key) for key in ("epoch", "loss", "val_mR", METRIC)}
            trial.curve.append(EpochLine.model_validate(picked))
            trial.samples_seen = max(trial.samples_seen, result.get("pairs", 0))
            trial.seconds = result.get("train_s", trial.seconds)
            self._study.save(trial)
            self._heard(trial)

    def _finish(self, trial_id: str, trial: SearchedTrial, status: Any) -> None:
        self._running.pop(trial_id, None)
        trial.status, trial.finished = status, now()
        if (key := self._drawn.pop(trial_id, None)) is not None:
            self._source.end(key, status, trial.best_mR)
        self._study.save(trial)
        self._heard(trial)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Searcher, (METRIC, "max"))  # Tune pickles its searcher for a restore that is never used here

    def __deepcopy__(self, memo: dict[int, Any]) -> Proposals:
        return self

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's files say it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""
