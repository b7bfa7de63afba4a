"""Studies small enough for a test, with or without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_trials import SMALL

from petlbench.harness.experiment import Experiment, load_experiment
from petlbench.harness.provenance import now
from petlbench.harness.search.proposals import Proposals
from petlbench.harness.search.question import Asked, ask
from petlbench.harness.search.study import FOLDER, EpochLine, SearchedTrial, Study


def small_search(results: Path, *sets: str, method: str = "clip_adapter", **options: Any) -> Experiment:
    """An experiment over tiny splits of the rendered scenes."""
    defaults = ("train.epochs=3", "train.sampling=image")
    return load_experiment(None, [*SMALL, *defaults, *sets], methods=[method], results=str(results), **options)


def asked_for(results: Path, *sets: str, **options: Any) -> Asked:
    """The one question of a small experiment."""
    (one,), _ = ask(small_search(results, *sets, **options))
    return one


class Silent:
    """A display of a search that keeps the names of what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.told.append(name)


def open_study(results: Path, asked: Asked) -> Study:
    return Study.open(results / FOLDER, asked, ["benchmark", "search"])


def put_trial(
    study: Study, config: dict[str, Any], scores: list[float], status: str = "ok", **fields: Any
) -> SearchedTrial:
    """A trial as a search would leave it; its best score so far is kept per epoch."""
    curve = [
        EpochLine(epoch=n, loss=1.0 / n, val_mR=score, best_mR=max(scores[:n])) for n, score in enumerate(scores, 1)
    ]
    trial = SearchedTrial(
        number=len(study.trials),
        origin="optuna" if study.trials else "preset",
        config=config,
        spec_id=fields.pop("spec_id", "0" * 64),
        status=status,
        epochs=fields.pop("epochs", 3),
        curve=curve,
        samples_seen=48 * len(scores),
        seconds=1.5,
        started=now(),
        **fields,
    )
    study.add(trial)
    return trial


def proposals_of(study: Study, asked: Asked, over=lambda: False) -> tuple[Proposals, list[SearchedTrial]]:
    """What Ray Tune would ask, and a list of every change it would announce."""
    heard: list[SearchedTrial] = []
    found = Proposals(study, asked, run="r", dress=lambda trial: trial, heard=heard.append, over=over)
    return found, heard


def line(epoch: int, score: float, **more: Any) -> dict[str, Any]:
    """What a worker reports; ``best_mR`` is the score unless given."""
    return {"epoch": epoch, "loss": 0.5, "val_mR": score, "best_mR": score, "pairs": 48 * epoch, "train_s": 1.0, **more}
