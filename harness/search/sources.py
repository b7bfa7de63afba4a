"""What draws configurations: Optuna through Ray, or a list that is gone through once."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Protocol

from petlbench.harness.search import space as spaces
from petlbench.harness.search.objective import METRIC
from petlbench.harness.search.question import Asked
from petlbench.harness.search.study import SearchedTrial


class Source(Protocol):
    """Draws configurations, and learns from what became of them."""

    def ask(self, key: str) -> spaces.Config | None:
        """The next configuration, called ``key`` from now on; None where there is no other."""

    def epoch(self, key: str, epoch: int, value: float) -> None:
        """A configuration reached a value, percent."""

    def end(self, key: str, status: str, value: float | None) -> None:
        """A configuration is done with: ``ok``, ``pruned`` or ``failed``."""


class Grid:
    """Goes through a finite list once."""

    def __init__(self, points: list[spaces.Config]):
        self._points = deque(points)

    def ask(self, key: str) -> spaces.Config | None:  # noqa: D102
        return self._points.popleft() if self._points else None

    def epoch(self, key: str, epoch: int, value: float) -> None:  # noqa: D102
        pass

    def end(self, key: str, status: str, value: float | None) -> None:  # noqa: D102
        pass


class Optuna:
    """Ray's OptunaSearch, which learns the past of an interrupted study before anything else.

    Args:
        asked: Space, searcher and seed.
        past: Trials that are done with.
        first: Configurations to begin with, in this order.
    """

    def __init__(self, asked: Asked, past: list[SearchedTrial], first: list[spaces.Config]):
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = asked.question.base.seed
        samplers = optuna.samplers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # The sequence of independent draws depends on the seed alone, so that an interrupted one goes on where it was.
            # TPE begins with such draws too: those of another seed, once there is a past.
            sampler = (
                samplers.RandomSampler(seed)
                if asked.question.searcher == "random"
                else samplers.TPESampler(seed=seed + len(past), constant_liar=True)
            )
        self._inner = OptunaSearch(
            spaces.distributions(asked.space),
            metric=METRIC,
            mode="max",
            sampler=sampler,
            points_to_evaluate=first or None,
        )
        for trial in past:
            if spaces.contains(asked.space, trial.config) and (trial.curve or trial.status == "failed"):
                values = [line.best_mR for line in trial.curve]
                self._inner.add_evaluated_point(
                    trial.config,
                    trial.best_mR or 0.0,
                    error=trial.status == "failed",
                    pruned=trial.status == "pruned",
                    intermediate_values=values[:1] + values,  # by place in the list, and epochs count from 1
                )

    def ask(self, key: str) -> spaces.Config | None:  # noqa: D102
        return self._inner.suggest(key)

    def epoch(self, key: str, epoch: int, value: float) -> None:  # noqa: D102
        self._inner.on_trial_result(key, {METRIC: value, "training_iteration": epoch})

    def end(self, key: str, status: str, value: float | None) -> None:  # noqa: D102
        # Without a value, Optuna takes a trial without error as pruned and keeps its epochs.
        result = {METRIC: value} if status == "ok" and value is not None else None
        self._inner.on_trial_complete(key, result, error=status == "failed")
