"""A trial from spec to record: protocol, resume, failure, caching, audits."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_trials import Killed, small_trial, tiny_backbone  # noqa: F401 (a fixture)

from petlbench.datasets.cache import prepare
from petlbench.harness import ranking as ranking_module
from petlbench.harness import trial as trial_module
from petlbench.harness.audit import AuditError
from petlbench.harness.metrics import Ranks, recalls
from petlbench.harness.record_files import path_of, read_record
from petlbench.harness.trial import run_trial
from petlbench.methods.backbones.random_models import random_clip
from petlbench.methods.full_finetune import FullFinetune

pytestmark = pytest.mark.usefixtures("tiny_backbone")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))


def test_record_tells_the_whole_story(tmp_path):
    trial = small_trial(tmp_path, "train.epochs=2")
    lines = []
    record = run_trial(trial, lines.append)
    on_disk = read_record(path_of(trial))
    assert on_disk == record
    assert record.status == "ok"
    assert record.spec_id == trial.spec.spec_id
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [e.epoch for e in record.curve] == [1, 2]
    assert record.selection.rule == "best_val"
    assert record.selection.val_mR == max(e.val_mR for e in record.curve)
    ranks = Ranks.load(path_of(trial).with_name(record.artifacts["ranks"]))
    assert recalls(ranks) == pytest.approx(record.metrics["test"].recalls)
    assert record.data.splits["test"].images == 30
    assert record.params.trained == record.params.total
    assert record.params.stored_bytes > 4 * record.params.trained
    assert set(record.audit) == {"count", "identity_start", "gradients", "frozen"}
    assert record.provenance["packages"]["deepspeed"]
    weights = path_of(trial).with_name(record.artifacts["weights"])
    assert weights.stat().st_size == record.params.stored_bytes


def test_time_in_which_nothing_was_computed_is_told(tmp_path, monkeypatch):
    quick = run_trial(small_trial(tmp_path / "quick", "train.epochs=1")).cost
    assert quick.train_cpu_s > 0
    loss = FullFinetune.loss

    def waits(self, model, batch):
        time.sleep(3 * quick.train_s)
        return loss(self, model, batch)

    monkeypatch.setattr(FullFinetune, "loss", waits)
    slow = run_trial(small_trial(tmp_path / "slow", "train.epochs=1")).cost
    assert slow.starved and slow.train_s > 3 * quick.train_s


def test_the_same_spec_gives_the_same_numbers(tmp_path):
    first = run_trial(small_trial(tmp_path / "a"))
    second = run_trial(small_trial(tmp_path / "b"))
    assert first.spec_id == second.spec_id
    assert first.metrics == second.metrics
    assert [e.loss for e in first.curve] == [e.loss for e in second.curve]
    other = run_trial(_reseeded(tmp_path / "c"))
    assert [e.loss for e in other.curve] != [e.loss for e in first.curve]


def _reseeded(results):
    trial = small_trial(results)
    return trial.model_copy(update={"spec": trial.spec.model_copy(update={"seed": 5})})


def test_test_split_is_opened_once_and_only_after_training(tmp_path, monkeypatch):
    events = []

    def spy(split, *args, **kwargs):
        events.append(split.name)
        return prepare(split, *args, **kwargs)

    monkeypatch.setattr("petlbench.harness.data.prepare", spy)
    run_trial(small_trial(tmp_path), lambda line: events.append("epoch"))
    assert events.count("test") == 1
    assert events[-1] == "test"
    assert events.index("epoch") < events.index("test")


def test_test_max_is_labelled_and_selects_on_test(tmp_path):
    record = run_trial(small_trial(tmp_path, "protocol.selection=test_max"))
    assert record.selection.rule == "test_max"
    assert record.selection.val_mR == pytest.approx(record.metrics["test"].recalls["mR"])


def test_last_takes_the_last_epoch(tmp_path):
    record = run_trial(small_trial(tmp_path, "protocol.selection=last"))
    assert (record.selection.rule, record.selection.epoch) == ("last", 3)
    assert record.selection.val_mR == record.curve[-1].val_mR


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_trial_resumes_from_its_last_epoch_and_ends_the_same(tmp_path, precision):
    sets = (f"train.precision={precision}",)
    whole = run_trial(small_trial(tmp_path / "whole", *sets))

    trial = small_trial(tmp_path / "killed", *sets)

    def die_after_two(line):
        if line["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_trial(trial, die_after_two)
    assert not path_of(trial).exists()

    epochs = []
    resumed = run_trial(trial, lambda line: epochs.append(line["epoch"]))
    assert epochs == [3], "only the epoch that was not finished is repeated"
    assert resumed.metrics == whole.metrics
    assert [e.loss for e in resumed.curve] == [e.loss for e in whole.curve]
    assert resumed.cost.steps == whole.cost.steps
    leftovers = list(Path(trial.paths.work).rglob("epoch-*"))
    assert not leftovers, "checkpoints go when the record stands"


def test_a_kill_while_a_checkpoint_is_written_leaves_the_older_one(tmp_path, monkeypatch):
    trial = small_trial(tmp_path)
    from petlbench.harness.engine import Engine

    save, calls = Engine.save, []

    def die_in_second(self, folder):
        calls.append(folder)
        save(self, folder)
        if len(calls) == 2:
            raise Killed

    monkeypatch.setattr(Engine, "save", die_in_second)
    with pytest.raises(Killed):
        run_trial(trial)
    monkeypatch.setattr(Engine, "save", save)
    epochs = []
    run_trial(trial, lambda line: epochs.append(line["epoch"]))
    assert epochs == [2, 3]


def test_a_failed_trial_leaves_a_failed_record_and_raises(tmp_path, monkeypatch):
    trial = small_trial(tmp_path)

    def broken(*args, **kwargs):
        raise RuntimeError("the sensor is on fire")

    monkeypatch.setattr(ranking_module, "evaluate", broken)
    with pytest.raises(RuntimeError, match="sensor"):
        run_trial(trial)
    record = read_record(path_of(trial))
    assert record.status == "failed"
    assert record.error.type == "RuntimeError"
    assert "sensor" in record.error.message
    assert "broken" in record.error.traceback
    monkeypatch.undo()


def test_a_failing_rerun_keeps_the_good_record(tmp_path, monkeypatch):
    trial = small_trial(tmp_path, method="zero_shot")
    run_trial(trial)
    before = path_of(trial).read_bytes()

    def broken(*args, **kwargs):
        raise RuntimeError("the sensor is on fire")

    monkeypatch.setattr(ranking_module, "evaluate", broken)
    with pytest.raises(RuntimeError, match="sensor"):
        run_trial(trial)
    assert path_of(trial).read_bytes() == before


@pytest.mark.parametrize("place", ["query", "adapter", "record"])
def test_a_forced_run_that_fails_late_leaves_record_ranks_and_adapter_as_they_were(tmp_path, monkeypatch, place):
    trial = small_trial(tmp_path, "train.epochs=1", method="linear_probe")
    run_trial(trial)
    files = sorted(path_of(trial).parent.iterdir())
    before = {path: path.read_bytes() for path in files}
    assert len(before) == 3

    def broken(*args, **kwargs):
        raise MemoryError("no room")

    where = {
        "query": (ranking_module.Ranking, "query_cost"),
        "adapter": (trial_module.adapters, "save_adapter"),
        "record": (trial_module, "write_record"),
    }
    monkeypatch.setattr(*where[place], broken)
    with pytest.raises(MemoryError):
        run_trial(trial)
    assert {path: path.read_bytes() for path in files} == before
    monkeypatch.undo()
    monkeypatch.setattr("petlbench.harness.parts.load_backbone", lambda name, **options: random_clip(seed=7))
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))
    run_trial(trial)
    assert sorted(path_of(trial).parent.iterdir()) == files, "and the next run leaves nothing of the failed one"


def test_an_adapter_of_another_form_goes_with_its_record(tmp_path):
    trial = small_trial(tmp_path, "train.epochs=1", method="lora")
    old = path_of(trial).with_name(f"{path_of(trial).stem}.adapter.safetensors")
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an earlier version")
    for _ in range(2):  # a folder is replaced too
        record = run_trial(trial)
        names = {path.name for path in path_of(trial).parent.iterdir()}
        assert names == {path_of(trial).name, *record.artifacts.values()} and not old.exists()


def test_a_second_process_waits_for_the_first_and_takes_its_record(tmp_path):
    trial = small_trial(tmp_path)
    other: list = []

    def start_other(line):
        if line["epoch"] == 1:
            thread = threading.Thread(target=lambda: other.append(run_trial(trial, epochs.append)))
            thread.start()
            threads.append(thread)

    threads: list[threading.Thread] = []
    epochs: list = []
    record = run_trial(trial, start_other)
    threads[0].join(60)
    assert other == [record]
    assert epochs == [], "the second one trained nothing"


@pytest.mark.parametrize("method", ["linear_probe"])
def test_cached_features_give_the_same_scores_as_pixels(tmp_path, method, monkeypatch):
    cached = run_trial(small_trial(tmp_path / "cached", method=method))
    assert cached.cost.cached_features
    assert list((tmp_path / "cache" / "features").glob("*.safetensors"))
    from petlbench.methods.linear_probe import LinearProbe

    monkeypatch.setattr(LinearProbe, "head_only", False)
    pixels = run_trial(small_trial(tmp_path / "pixels", method=method))
    assert not pixels.cost.cached_features
    assert pixels.metrics["test"].recalls == pytest.approx(cached.metrics["test"].recalls)
    np.testing.assert_allclose([e.loss for e in pixels.curve], [e.loss for e in cached.curve], rtol=1e-4)


@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_a_frozen_image_tower_sees_a_picture_once_and_the_scores_are_those_of_pixels(tmp_path, method, monkeypatch):
    kept = run_trial(small_trial(tmp_path / "kept", method=method))
    assert kept.cost.cached_features
    from petlbench.methods.base import Method
    from petlbench.methods.layers.frozen_image import FrozenImageTower

    monkeypatch.setattr(FrozenImageTower, "side_features", Method.side_features)
    pixels = run_trial(small_trial(tmp_path / "pixels", method=method))
    assert not pixels.cost.cached_features
    assert pixels.metrics["test"].recalls == pytest.approx(kept.metrics["test"].recalls)
    np.testing.assert_allclose([e.loss for e in pixels.curve], [e.loss for e in kept.curve], rtol=1e-4)


def test_augmentation_switches_the_feature_cache_off(tmp_path):
    record = run_trial(small_trial(tmp_path, "train.augmentation.horizontal_flip=0.5", method="linear_probe"))
    assert not record.cost.cached_features


def test_zero_shot_needs_no_training(tmp_path):
    record = run_trial(small_trial(tmp_path, method="zero_shot"))
    assert record.selection.rule == "none"
    assert record.params.trained == 0
    assert record.params.stored_bytes == 0
    assert record.curve == []
    assert record.audit["gradients"] == "nothing is trained"
    assert "weights" not in record.artifacts


BROKEN = '''
"""Trains more than it declares."""
from petlbench.methods.base import Method


class Greedy(Method):
    title = "Greedy"

    def build(self, backbone):
        return backbone

    def trainable(self, model):
        return [n for n, _ in model.named_parameters()]

    def expected_trainable(self, backbone):
        return 7
'''


def test_a_failed_audit_fails_the_trial(tmp_path):
    plugin = tmp_path / "greedy.py"
    plugin.write_text(BROKEN)
    trial = small_trial(tmp_path / "results", method="greedy", plugins=[str(plugin)])
    with pytest.raises(AuditError, match=r"greedy: [\d,]+ scalars are trained but expected_trainable\(\) declares 7"):
        run_trial(trial)
    assert read_record(path_of(trial)).error.type == "AuditError"


def test_frozen_weights_that_change_fail_the_trial(tmp_path, monkeypatch):
    fit = trial_module.fit

    def meddling(task, recipe):
        progress = fit(task, recipe)
        with torch.no_grad():
            next(p for p in task.model.parameters() if not p.requires_grad).add_(1)
        return progress

    monkeypatch.setattr(trial_module, "fit", meddling)
    with pytest.raises(AuditError, match="frozen weights or buffers changed"):
        run_trial(small_trial(tmp_path, method="lora"))


def test_record_is_plain_json_without_nan(tmp_path):
    trial = small_trial(tmp_path, method="zero_shot")
    run_trial(trial)

    def refuse(token):
        raise AssertionError(token)

    json.loads(path_of(trial).read_text(), parse_constant=refuse)
