"""Population-based training (Jaderberg et al. 2017): members are trained side by side, the poor ones take over from the good.

Ray's own scheduler keeps its population in memory and works without a searcher. Here exchanges are made between the segments
in which the members are trained, once all have come to the same epoch: what is exchanged depends on the seed and the scores
alone, not on which worker was faster, and lies in the study's files, so that a killed search goes on as if it had not been.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from petlbench.harness.checkpoint import Checkpoints
from petlbench.harness.leftovers import work_folder
from petlbench.harness.search import space as spaces
from petlbench.harness.search.proposals import Proposals
from petlbench.harness.search.study import SearchedTrial, Takeover
from petlbench.methods.base import Domain

QUANTILE = 0.25
"""Share of the members that take over at an exchange, and of those that are taken over from; at least one."""

FACTORS = (0.8, 1.25)
"""One of them, drawn by the seed, multiplies every real number of the recipe that is taken over."""


class Population(Proposals):
    """Ray Tune's searcher where a study asks for ``pbt``; arguments and attributes as of :class:`Proposals`.

    All trials but one are members. With the weights a member takes over all settings, since the modules must have the same
    sizes; those of the space that are real numbers of the recipe (``train.lr``) are then changed. The last trial trains what the
    best member ended with from beginning to end: only what can be trained again can be the best configuration.
    """

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        settings = self._asked.question.settings
        self._size: int = settings["population"] - 1
        if (last := next((t for t in self._study.trials if t.origin == "pbt"), None)) is not None:
            self._size = last.number  # of a space with fewer points than members
        self._every: int = settings["interval"]
        self._epochs: int = self._asked.question.base.train["epochs"]
        # At this very epoch the exchange may have been cut short: it is made again, as it was.
        furthest = max((t.last_epoch for t in self._members), default=0)
        self._gate = max(self._every, -(-furthest // self._every) * self._every)

    @property
    def _members(self) -> list[SearchedTrial]:
        return self._study.trials[: self._size]

    def _begins_with(self) -> list[spaces.Config]:
        return [config for config, _ in self._given]  # settings of members change: nothing is drawn for those under way

    def suggest(self, trial_id: str) -> Any:
        """The next segment of a member, or the last trial; None while others are waited for."""
        if self._stopped():
            return Searcher.FINISHED
        under_way = {trial.number for trial in self._running.values()}
        waiting = [t for t in self._study.trials if t.status == "running" and t.number not in under_way]
        for trial in waiting:
            if trial.last_epoch < self._gate or trial.number >= self._size:
                return self._begin(trial_id, trial)
        if len(self._study.trials) < self._size:
            begun = self._begin_new(trial_id, self._size)
            if begun != Searcher.FINISHED:
                return begun
            # The space has no further points: those that are there are the population.
            self._size, self.exhausted = len(self._study.trials), False
        if under_way:
            return None
        if waiting:
            self._exchange()
            return self.suggest(trial_id)
        if len(self._study.trials) == self._size:
            self._given = [(config, "pbt")] if (config := self._end_of_best()) is not None else []
        return self._begin_new(trial_id, self._size + 1)

    def _begin(self, trial_id: str, trial: SearchedTrial) -> dict[str, Any]:
        until = self._gate if trial.number < self._size and self._gate < self._epochs else None
        return {**super()._begin(trial_id, trial), "until": until}

    def _draw_first(self, trial_id: str, config: spaces.Config) -> None:
        """Nothing: scores that belong to changing settings would mislead the source."""

    def _ended(self, trial_id: str, trial: SearchedTrial, result: dict[str, Any]) -> bool:
        if "paused" in result:
            del self._running[trial_id]
            return True
        return super()._ended(trial_id, trial, result)

    def _exchange(self) -> None:
        """At an epoch that all members have come to, the worst ones take over from the best ones."""
        epoch = self._gate
        self._gate += self._every
        there = {t.number: t for t in self._members if t.status == "running"}
        score = {
            number: next(line.val_mR for line in trial.curve if line.epoch == epoch) for number, trial in there.items()
        }
        ranked = sorted(there, key=lambda number: (-score[number], number))
        many = min(max(1, int(QUANTILE * len(ranked))), len(ranked) // 2)
        for number in ranked[len(ranked) - many :]:
            member = there[number]
            if any(takeover.epoch == epoch for takeover in member.taken):
                continue  # the exchange was cut short after this one
            draw = random.Random(f"{self._asked.question.base.seed}/{epoch}/{number}")
            better = there[draw.choice(ranked[:many])]
            if score[better.number] <= score[number]:
                continue
            if (checkpoint := self._checkpoint(better, epoch)) is None:
                member.add_notes(
                    f"did not take over from #{better.number} after epoch {epoch}, whose checkpoint is damaged"
                )
                self._study.save(member)
            else:
                self._take_over(member, better, checkpoint, epoch, changed(better.config, self._asked.space, draw))

    def _checkpoint(self, trial: SearchedTrial, epoch: int) -> Path | None:
        """What a member wrote after an epoch, if it is whole."""
        folder = self._folder(trial, trial.config)
        found = Checkpoints(folder).progress()
        return folder / f"epoch-{epoch:05d}" if found is not None and found.epoch == epoch else None

    def _take_over(
        self, member: SearchedTrial, better: SearchedTrial, checkpoint: Path, epoch: int, config: spaces.Config
    ) -> None:
        before = self._folder(member, member.config)
        # The weights first: a member that is said to have taken over has them.
        _copy(checkpoint, self._folder(member, config))
        member.taken.append(Takeover(epoch=epoch, of=better.number, config=member.config))
        member.config = config
        member.spec_id = self._asked.trial(config, self._study.work_of(member)).spec.spec_id
        self._study.save(member)
        if before != self._folder(member, config):
            shutil.rmtree(before, ignore_errors=True)
        self._heard(member)

    def _folder(self, trial: SearchedTrial, config: spaces.Config) -> Path:
        return work_folder(self._asked.trial(config, self._study.work_of(trial)))

    def _end_of_best(self) -> spaces.Config | None:
        """What the best member that took over ended with, if that was not trained from beginning to end already."""
        changing = [t for t in self._members if t.status == "ok" and t.taken and t.best_mR is not None]
        for trial in sorted(changing, key=lambda t: (-(t.best_mR or 0), t.number)):
            if not any(t.config == trial.config and not t.taken for t in self._members):
                return trial.config
        return None


def changed(config: spaces.Config, space: dict[str, Domain], draw: random.Random) -> spaces.Config:
    """A configuration with the real numbers of its recipe multiplied by 0.8 or 1.25, within the ends of their domains."""
    found = dict(config)
    for key, domain in space.items():
        if key.startswith("train.") and domain.kind in ("uniform", "loguniform"):
            low, high = domain.values
            # What the preset has outside of the space may stay there, but is not driven further out.
            low, high = min(low, config[key]), max(high, config[key])
            found[key] = float(f"{min(high, max(low, config[key] * draw.choice(FACTORS))):.6g}")
    return found


def _copy(checkpoint: Path, target: Path) -> None:
    """Make a copy of a checkpoint all that a folder holds."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    fresh = Path(tempfile.mkdtemp(dir=target, prefix=".writing-"))
    shutil.copytree(checkpoint, fresh, dirs_exist_ok=True)
    fresh.rename(target / checkpoint.name)
