"""Progress of a run: a live table on a terminal, one plain line per event in a log file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from petlbench.harness.recorded import Planned


class Display(Protocol):
    """Receives the events of a run."""

    def start(self, planned: list[Planned], concurrent: int) -> None:
        """The run begins."""

    def started(self, planned: Planned) -> None:
        """A trial begins."""

    def epoch(self, planned: Planned, line: dict[str, Any]) -> None:
        """A trial has finished an epoch; ``line`` is what the fit reports."""

    def scoring(self, planned: Planned, line: dict[str, Any]) -> None:
        """A trial scores pairs; ``line`` holds ``pairs``, ``scored``, ``pairs_per_s`` and ``left_s`` of the split at hand."""

    def finished(self, planned: Planned) -> None:
        """A trial has its record."""

    def failed(self, planned: Planned) -> None:
        """A trial has failed."""

    def stopped(self, planned: Planned) -> None:
        """A trial was stopped by a signal, behind the checkpoint of an epoch."""

    def restarted(self, planned: Planned, times: int, most: int) -> None:
        """The process or the node of a trial was lost; it is started again, ``times`` of at most ``most``."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def stop(self) -> None:
        """The run is over."""


@dataclass
class _Row:
    label: str
    started: float
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    val_mR: float | None = None
    best_mR: float | None = None
    scoring: str = ""


class _Counting:
    """Bookkeeping that both displays share."""

    def __init__(self, console: Console):
        self.console = console
        self.rows: dict[str, _Row] = {}
        self.total = self.done = self.broken = 0
        self.concurrent = 1
        self.epochs_total = self.epochs_done = 0
        self.began = time.monotonic()

    def start(self, planned: list[Planned], concurrent: int) -> None:
        self.total, self.concurrent, self.began = len(planned), concurrent, time.monotonic()
        self.epochs_total = sum(p.trial.spec.train["epochs"] + 1 for p in planned)

    def started(self, planned: Planned) -> None:
        spec = planned.trial.spec
        self.rows[spec.spec_id] = _Row(spec.label, time.monotonic(), epochs=spec.train["epochs"])

    def epoch(self, planned: Planned, line: dict[str, Any]) -> None:
        row = self.rows.setdefault(planned.trial.spec.spec_id, _Row(planned.trial.spec.label, time.monotonic()))
        self.epochs_done += line["epoch"] - row.epoch
        row.epoch, row.epochs = line["epoch"], line["epochs"]
        row.loss, row.best_mR = line.get("loss"), line.get("best_mR")
        row.val_mR = line.get("val_mR", row.val_mR)
        row.scoring = ""

    def scoring(self, planned: Planned, line: dict[str, Any]) -> None:
        row = self.rows.setdefault(planned.trial.spec.spec_id, _Row(planned.trial.spec.label, time.monotonic()))
        row.scoring = f"{line['scored']:,} of {line['pairs']:,} pairs, {line['pairs_per_s']:,.0f}/s, {_clock(line['left_s'])} left"

    def finished(self, planned: Planned) -> None:
        self._leave(planned)
        self.done += 1

    def failed(self, planned: Planned) -> None:
        self._leave(planned)
        self.broken += 1

    def stopped(self, planned: Planned) -> None:
        row = self.rows.pop(planned.trial.spec.spec_id, None)
        if row is not None and row.epoch:
            self.note(f"{planned.trial.spec.label} stopped after epoch {row.epoch}")

    def restarted(self, planned: Planned, times: int, most: int) -> None:
        row = self.rows.pop(planned.trial.spec.spec_id, None)
        self.epochs_done -= row.epoch if row else 0
        self.note(
            f"{planned.trial.spec.label} lost its process or its node and is started again ({times} of at most {most} times)"
        )

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _leave(self, planned: Planned) -> _Row | None:
        row = self.rows.pop(planned.trial.spec.spec_id, None)
        self.epochs_done += planned.trial.spec.train["epochs"] + 1 - (row.epoch if row else 0)
        return row

    def eta(self) -> str:
        """Remaining time from epochs done so far (evaluation of a trial counts as one epoch)."""
        if not self.epochs_done:
            return "--"
        elapsed = time.monotonic() - self.began
        return _clock(elapsed * (self.epochs_total - self.epochs_done) / self.epochs_done)

    def summary(self) -> str:
        return (
            f"trials {self.done}/{self.total} done, {len(self.rows)} running, {self.broken} failed; "
            f"elapsed {_clock(time.monotonic() - self.began)}, left about {self.eta()}"
        )


class LiveDisplay(_Counting):
    """A table that is redrawn in place."""

    _live: Live | None = None

    def start(self, planned: list[Planned], concurrent: int) -> None:
        super().start(planned, concurrent)
        self._live = Live(get_renderable=self._draw, console=self.console, refresh_per_second=4, transient=True)
        self._live.start()

    def failed(self, planned: Planned) -> None:
        super().failed(planned)
        self.console.print(Text.assemble(("failed", "red"), f" {planned.trial.spec.label}"))

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self.console.print(Text(self.summary()))

    def _draw(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("running", "epoch", "loss", "val mR", "best mR", "time", "scoring"):
            table.add_column(name, justify="left" if name in ("running", "scoring") else "right", no_wrap=True)
        for row in self.rows.values():
            table.add_row(
                row.label,
                f"{row.epoch}/{row.epochs}",
                _number(row.loss, 3),
                _number(row.val_mR, 2),
                _number(row.best_mR, 2),
                _clock(time.monotonic() - row.started),
                row.scoring,
            )
        return Group(Text(self.summary(), style="bold"), table)


class PlainDisplay(_Counting):
    """One line per event, for log files and pipes."""

    def start(self, planned: list[Planned], concurrent: int) -> None:
        super().start(planned, concurrent)
        self._say(f"{self.total} trial{'s' * (self.total != 1)}, {concurrent} at a time")

    def started(self, planned: Planned) -> None:
        super().started(planned)
        self._say(f"{planned.trial.spec.label} started")

    def epoch(self, planned: Planned, line: dict[str, Any]) -> None:
        super().epoch(planned, line)
        row = self.rows[planned.trial.spec.spec_id]
        self._say(
            f"{row.label} epoch {row.epoch}/{row.epochs} loss {_number(row.loss, 4)} val mR {_number(row.val_mR, 2)}"
            f" best {_number(row.best_mR, 2)}"
        )

    def scoring(self, planned: Planned, line: dict[str, Any]) -> None:
        super().scoring(planned, line)
        row = self.rows[planned.trial.spec.spec_id]
        self._say(f"{row.label} scores {row.scoring}")

    def finished(self, planned: Planned) -> None:
        super().finished(planned)
        self._say(f"{planned.trial.spec.label} done; {self.summary()}")

    def failed(self, planned: Planned) -> None:
        super().failed(planned)
        self._say(f"{planned.trial.spec.label} FAILED; {self.summary()}")

    def note(self, text: str) -> None:
        self._say(text)

    def stop(self) -> None:
        self._say(self.summary())

    def _say(self, text: str) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, highlight=False, soft_wrap=True)


def make_display(console: Console) -> Display:
    """Live on a terminal, plain elsewhere."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


def _number(value: float | None, digits: int) -> str:
    return "--" if value is None else f"{value:.{digits}f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
