"""Trials small enough to run whole inside a test: a few dozen rendered scenes on a two-block random CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petlbench.harness.experiment import load_experiment
from petlbench.harness.plan import Plan, make_plan
from petlbench.harness.record import Record
from petlbench.harness.resources import Resources
from petlbench.harness.shares import Node, Share, shares
from petlbench.harness.spec import Named, Paths, Trial, TrialSpec
from petlbench.harness.trial import run_trial
from petlbench.methods.backbones.random_models import random_clip

SMALL = ("dataset.scenes.train=48", "dataset.scenes.val=30", "dataset.scenes.test=30", "train.batch_size=16")
SETS = tuple(part for assignment in SMALL if assignment.startswith("dataset") for part in ("--set", assignment))
"""The sizes of the splits as options of a verb."""


def small_plan(
    results: Path, *sets: str, methods: list[str] | None = None, force: bool = False, **options: Any
) -> Plan:
    """A plan over tiny splits of the rendered scenes; three epochs of one caption per picture unless said otherwise."""
    defaults = ("train.epochs=3", "train.sampling=image")
    return make_plan(
        load_experiment(
            None,
            [*SMALL, *defaults, *sets],
            methods=methods or ["full_finetune"],
            results=str(results),
            **{"seeds": [0], **options},
        ),
        force=force,
    )


def small_trial(results: Path, *sets: str, method: str = "full_finetune", **options: Any) -> Trial:
    """The one trial of a small plan."""
    (planned,) = small_plan(results, *sets, methods=[method], **options).planned
    return planned.trial


def _random_clip(name: str, *, seed: int = 0, **options: Any):
    return random_clip(seed=7)


def trial_stub() -> Trial:
    """A trial that only takes its share."""
    spec = TrialSpec(method=Named(name="m"), dataset=Named(name="d"), backbone=Named(name="b"), train={}, seed=0)
    return Trial(spec=spec, paths=Paths(results="/r", work="/w", dataset_card="d"))


def share(resources: Resources, cpus: int, gpus: int, trials: int) -> Share:
    """What each of so many trials of one method gets of one machine."""
    (found,) = shares(resources, [Node("this machine", cpus, gpus)], [trial_stub()] * trials).values()
    return found


SHORT = ("train.epochs=3", "dataset.scenes.train=30", "train.batch_size=10")


def a_trial(folder: Path, *sets: str, **options: Any) -> Trial:
    """Three epochs of three steps each."""
    return small_trial(folder, *SHORT, *sets, **options)


class Killed(BaseException):
    """Stands for a signal: not an Exception, so nothing is recorded."""


def killed_after(trial: Trial, epoch: int) -> None:
    """Run a trial whose process ends behind an epoch."""

    def die(line: dict[str, Any]) -> None:
        if line["epoch"] == epoch:
            raise Killed

    with pytest.raises(Killed):
        run_trial(trial, die)


def same(found: Record, expected: Record) -> bool:
    """Whether two records have the same results, bit for bit."""
    curves = [[(e.epoch, e.loss, e.parts, e.lr, e.val_mR) for e in record.curve] for record in (found, expected)]
    return found.metrics == expected.metrics and curves[0] == curves[1] and found.selection == expected.selection


@pytest.fixture
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a random CLIP of two narrow blocks in the place of whichever backbone a trial asks for."""
    monkeypatch.setattr("petlbench.harness.parts.load_backbone", _random_clip)


def forget_answers(record: Path) -> None:
    """Make the ranks beside a record those of the time before first answers were stored."""
    file = record.with_name(record.stem + ".ranks.npz")
    with np.load(file) as held:
        older = {name: array for name, array in held.items() if not name.endswith("_top")}
    np.savez_compressed(file, **older)
