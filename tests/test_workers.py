"""Ray Tune, inside it Ray Train, inside it DeepSpeed: a trial of two workers gives the record of one."""

import io
from pathlib import Path

import pytest
import ray_work
from rich.console import Console
from small_trials import small_plan

from petlbench.harness.distributed.workers import _cause, lost_worker
from petlbench.harness.experiment import Resources
from petlbench.harness.progress import PlainDisplay
from petlbench.harness.record_files import read_record
from petlbench.harness.schedule import run_trials
from petlbench.harness.trial import run_trial

SETS = ("train.epochs=2", "train.augmentation.horizontal_flip=0.5", "train.accumulate=2", "engine.zero_stage=1")

BREAKS = '''
"""Breaks in the second worker."""
from petlbench.harness.distributed.world import here
from petlbench.methods.full_finetune import FullFinetune


class Breaks(FullFinetune):
    title = "Breaks"

    def views(self, model, batch):
        if here().rank == 1:
            raise ZeroDivisionError("the second worker is on fire")
        return super().views(model, batch)
'''


def test_the_cause_of_an_end_is_what_was_raised_else_a_loss_which_is_started_again():
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

    broken = RuntimeError("[gloo] Connection closed by peer")
    dead = WorkerHealthCheckFailedError("worker 1: lost its connection", ActorDiedError())
    hung = WorkerHealthCheckTimeoutError("worker 1")
    raised = ZeroDivisionError("on fire")
    group = RuntimeError("two workers failed")
    for failures in ([broken, dead], [dead, broken], [dead], [hung], [broken, hung], [broken]):
        cause = _cause(failures, group)
        assert lost_worker(cause), failures
    assert isinstance(_cause([broken, dead], group), ActorDiedError)
    for failures in ([broken, raised], [raised, dead]):
        assert _cause(failures, group) is raised and not lost_worker(raised)
    assert _cause([], group) is group


@pytest.fixture
def two_cores():
    with ray_work.local_ray(cpus=2):
        yield


def test_two_ray_workers_give_the_record_of_one(tmp_path, two_cores, monkeypatch):
    plugin = tmp_path / "breaks.py"
    plugin.write_text(BREAKS)
    asked = {"methods": ["lora", "breaks"], "plugins": [str(plugin)]}
    pair = small_plan(tmp_path / "two", *SETS, "resources.workers_per_trial=2", **asked).planned
    seen = []
    display = PlainDisplay(Console(file=io.StringIO()))
    monkeypatch.setattr(
        display, "epoch", lambda planned, line: seen.append((planned.trial.spec.method.name, line["epoch"]))
    )
    outcome = run_trials(pair, Resources(workers_per_trial=2), display)

    assert outcome.finished == 1
    ((label, reason),) = outcome.failed
    assert label.startswith("breaks/")
    assert reason == "ZeroDivisionError: the second worker is on fire"
    assert seen == [("lora", 1), ("lora", 2)]
    found = read_record(pair[0].path)
    assert (found.cost.workers, found.status) == (2, "ok")
    assert read_record(pair[1].path).error.type == "ZeroDivisionError"
    leftovers = [p for p in Path(pair[0].trial.paths.work).rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert not leftovers, "checkpoints and Ray Train's files go when the record stands"

    (one,) = small_plan(tmp_path / "one", *SETS, methods=["lora"]).planned
    expected = run_trial(one.trial)
    assert found.spec_id == expected.spec_id
    for line, other in zip(found.curve, expected.curve, strict=True):
        assert (line.loss, line.val_mR) == pytest.approx((other.loss, other.val_mR), rel=1e-4)
    assert found.metrics["test"].recalls == pytest.approx(expected.metrics["test"].recalls)
    assert found.audit == expected.audit
    assert found.params == expected.params
