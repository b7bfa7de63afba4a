"""Progress of a search: a line per finished trial, and on a terminal what is running now."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from petlbench.harness.failure import first_line
from petlbench.harness.search.question import Asked
from petlbench.harness.search.study import SearchedTrial, Study
from petlbench.methods import registry


class SearchDisplay:
    """Receives the events of a search.

    Args:
        console: Where to print; on a terminal the running trials are shown below the lines and redrawn.
        studies: How many there are in all.
    """

    def __init__(self, console: Console, studies: int):
        self._console = console
        self._studies = studies
        self._nth = 0
        self._live: Live | None = None
        self._running: dict[int, SearchedTrial] = {}
        self._taken: dict[int, int] = {}
        self._label = self._budget = ""

    def begin(self, study: Study, asked: Asked) -> None:
        """A study is taken up."""
        self._nth += 1
        self._label = asked.question.label
        limit, allowed = asked.trials, asked.budget.time
        self._budget = " and ".join(
            text
            for text in (
                f"{limit} trial{'s' * (limit != 1)}" if limit is not None else "",
                f"{allowed:.0f} s" if allowed is not None else "",
            )
            if text
        )
        done = len(study.trials) - study.count("running")
        earlier = f"; {done} done before, {study.count('running')} to go on with" if study.trials else ""
        self._say(f"search {self._nth}/{self._studies} {self._label}: {self._budget}{earlier}")
        if study.about.method_sha256 != registry.source_sha256(asked.cls):
            self._say(f"note: the file of method {asked.cls.name} has changed since this study began")
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=2, transient=True)
            self._live.start()

    def heard(self, study: Study, trial: SearchedTrial) -> None:
        """A trial began, went on or ended."""
        if trial.status == "running":
            self._running[trial.number] = trial
            if (
                trial.taken
                and trial.taken[-1].epoch == trial.last_epoch
                and len(trial.taken) > self._taken.get(trial.number, 0)
            ):
                self._taken[trial.number] = len(trial.taken)
                self._say(
                    f"{self._label} #{trial.number} takes over from #{trial.taken[-1].of} after {trial.last_epoch} epochs: "
                    f"{shown(trial.config)}"
                )
            return
        self._running.pop(trial.number, None)
        best = study.best()
        reached = f"mR {trial.best_mR:.2f}" if trial.best_mR is not None else "no score"
        why = f" ({trial.error.type}: {first_line(trial.error.message)})" if trial.error else ""
        leader = f"; best {best.best_mR:.2f} (#{best.number})" if best else ""
        self._say(
            f"{self._label} #{trial.number} {shown(trial.config)}: {trial.status} after {trial.last_epoch}/{trial.epochs} "
            f"epochs, {reached}{why}{leader}"
        )

    def note(self, text: str) -> None:
        """Something that is to be known now."""
        self._say(text)

    def end(self, study: Study) -> None:
        """A study is left, finished or not."""
        self.stop()
        counts = ", ".join(
            f"{n} {status}" for status in ("ok", "pruned", "failed", "running") if (n := study.count(status))
        )
        self._say(f"{self._label}: {counts or 'no trial'}; {study.state.spent_s:.0f} s in all")

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._running.clear()
        self._taken.clear()

    def _draw(self) -> Text:
        lines = [
            f"  #{t.number} epoch {t.last_epoch}/{t.epochs} mR {'--' if t.best_mR is None else f'{t.best_mR:.2f}'} "
            f"{shown(t.config)}"
            for t in self._running.values()
        ]
        return Text("\n".join([f"{self._label} ({self._budget})", *lines]))

    def _say(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def shown(config: dict[str, Any]) -> str:
    """A configuration in a few words; ``method.`` and ``train.`` are left out."""
    parts = [f"{key.partition('.')[2]}={f'{v:.3g}' if isinstance(v, float) else v}" for key, v in config.items()]
    return " ".join(parts) or "no settings to choose"
