"""The folder of a study: what was asked, one file per trial, what it cost. Plain JSON, written atomically by one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from petlbench.errors import PetlbenchError
from petlbench.harness.json_files import RecordError, json_bytes, validated, write_atomically
from petlbench.harness.provenance import now
from petlbench.harness.record import ErrorPart
from petlbench.harness.search.question import Asked, Question
from petlbench.harness.spec import file_name
from petlbench.methods import registry

FOLDER = "search"
"""Of all studies, inside a results folder."""

M = TypeVar("M", bound=BaseModel)

_HINT = "restore it, or delete the study's folder to search anew"


class StudyError(PetlbenchError):
    """A study's file is damaged, or another process is writing it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EpochLine(_Part):
    """One validated epoch."""

    epoch: int
    loss: float | None = None
    val_mR: float
    best_mR: float
    """Of what selection would keep so far, percent: the highest, or the last where ``protocol.selection`` is ``last``."""


class Takeover(_Part):
    """A member of a population took over weights and settings of a better one."""

    epoch: int
    """After which."""
    of: int
    """Number of the better one."""
    config: dict[str, Any]
    """What the member had before."""


class SearchedTrial(_Part):
    """One configuration and what became of it."""

    number: int
    origin: Literal["preset", "optuna", "random", "grid", "pbt"]
    """``preset``: the settings that the method has without a search; always the first. ``pbt``: what the best member of a
    population ended with, trained with these settings from beginning to end."""
    config: dict[str, Any]
    spec_id: str | None = None
    """Of the trial as it was trained; None where the method refused the combination."""
    status: Literal["running", "ok", "pruned", "failed"] = "running"
    """``running`` also stands for interrupted: the next search goes on from the last epoch."""
    epochs: int
    """What it was to train."""
    curve: list[EpochLine] = Field(default_factory=list)
    samples_seen: int = 0
    """Image-caption pairs that were trained on."""
    seconds: float = 0.0
    """Spent on training; without validation and start-up."""
    taken: list[Takeover] = Field(default_factory=list)
    """Of a member of a population; ``config`` is what it has since the last one."""
    note: str = ""
    started: str
    finished: str | None = None
    error: ErrorPart | None = None

    def add_notes(self, *texts: str) -> None:
        """Say more of it; what was said stays."""
        self.note = "; ".join(filter(None, (self.note, *texts)))

    @property
    def best_mR(self) -> float | None:
        """Validation mR of what selection would keep of it, percent."""
        return self.curve[-1].best_mR if self.curve else None

    @property
    def best_epoch(self) -> int | None:
        """The first epoch that has it."""
        return next((line.epoch for line in self.curve if line.val_mR == self.best_mR), None)

    @property
    def tried(self) -> list[dict[str, Any]]:
        """Every configuration that it had."""
        return [*(takeover.config for takeover in self.taken), self.config]

    @property
    def last_epoch(self) -> int:
        """Validated epochs so far."""
        return self.curve[-1].epoch if self.curve else 0


class About(_Part):
    """Content of ``study.json``."""

    schema_version: Literal[1] = 1
    study_id: str
    question: Question
    preset: str
    method_sha256: str
    """Of the method's source file when the study began."""
    created: str
    versions: dict[str, str]
    command: list[str]


class State(_Part):
    """Content of ``state.json``."""

    spent_s: float = 0.0
    """Seconds of the clock that searching has taken, over all interruptions."""
    exhausted: bool = False
    """The space holds no configuration that was not tried."""


class Study:
    """A study and its trials so far; only one from :meth:`open` may be written."""

    def __init__(self, folder: Path, about: About, trials: list[SearchedTrial], state: State):
        self.folder = folder
        self.about = about
        self.trials = trials
        self.state = state
        self._lock = FileLock(folder / ".lock")

    @classmethod
    def open(cls, root: Path, asked: Asked, command: list[str]) -> Study:
        """Find the study of a question below a folder of studies, or begin it, and lock it.

        Raises:
            StudyError: Another process is searching it, or one of its files is damaged.
        """
        base, study_id = asked.question.base, asked.question.study_id
        folder = root / base.dataset.name / base.method.name / f"{file_name(base.backbone.name)}-{study_id[:8]}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StudyError(
                f"{folder}: another process is searching this study; wait for it, or stop it and give the command again"
            ) from error
        if not (folder / "study.json").exists():
            from petlbench.harness.provenance import packages

            about = About(
                study_id=study_id,
                question=asked.question,
                preset=asked.preset,
                method_sha256=registry.source_sha256(asked.cls),
                created=now(),
                versions=packages(),
                command=command,
            )
            _write(folder / "study.json", about)
        study = cls.read(folder)
        study._lock = lock
        return study

    @classmethod
    def read(cls, folder: Path) -> Study:
        """Read a study, without the right to write it.

        Raises:
            StudyError: Naming the file and key, what was found and what to do.
        """
        about = _read(folder / "study.json", About)
        trials = [_read(path, SearchedTrial) for path in sorted((folder / "trials").glob("[0-9]*.json"))]
        if [trial.number for trial in trials] != list(range(len(trials))):
            raise StudyError(f"{folder / 'trials'}: its files should be numbered 0, 1, 2, ... without gaps; {_HINT}")
        state = folder / "state.json"
        return cls(folder, about, trials, _read(state, State) if state.exists() else State())

    def close(self) -> None:
        """Let others write."""
        self._lock.release()

    @property
    def work(self) -> Path:
        """Folder of the checkpoints of unfinished trials."""
        return self.folder / ".work"

    def work_of(self, trial: SearchedTrial) -> str:
        """The part of it that is one trial's, whatever settings it takes over."""
        return str(self.work / f"{trial.number:04d}")

    def add(self, trial: SearchedTrial) -> None:
        """Note a new trial."""
        self.trials.append(trial)
        self.save(trial)

    def save(self, trial: SearchedTrial) -> None:
        """Write one trial's file."""
        _write(self.folder / "trials" / f"{trial.number:04d}.json", trial)

    def note(self, *, spent_s: float | None = None, exhausted: bool | None = None) -> None:
        """Note how long the search has taken in all, or that nothing is left to try."""
        if spent_s is not None:
            self.state.spent_s = round(spent_s, 3)
        if exhausted is not None:
            self.state.exhausted = exhausted
        _write(self.folder / "state.json", self.state)

    def best(self) -> SearchedTrial | None:
        """The trial of the highest validation mR, the earlier one of equals; an early-stopped one only if there is no other.

        A member of a population that took over from another is none: no single configuration would give its score again.
        """
        for status in ("ok", "pruned"):
            if found := [t for t in self.trials if t.status == status and t.best_mR is not None and not t.taken]:
                return max(found, key=lambda t: (t.best_mR, -t.number))
        return None

    def chosen_epoch(self, trial: SearchedTrial) -> int | None:
        """The epoch whose weights selection would keep; None where there is none."""
        last = self.about.question.base.protocol.selection == "last"
        return trial.last_epoch or None if last else trial.best_epoch

    def count(self, status: str) -> int:
        """Trials of a status."""
        return sum(trial.status == status for trial in self.trials)


def _write(path: Path, content: _Part) -> None:
    write_atomically(path, json_bytes(content.model_dump(mode="json")))


def _read(path: Path, model: type[M]) -> M:
    try:
        return validated(model, json.loads(path.read_text(encoding="utf-8")), path, _HINT)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read ({error}); {_HINT}") from error
    except RecordError as error:
        raise StudyError(str(error)) from error
