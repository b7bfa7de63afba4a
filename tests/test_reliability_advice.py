"""Trials that cannot go on: what is wrong is known by its many names, and the record says what to do."""

import errno

import pytest
import torch
from reliable import a_trial, holds_at_most, one_cache, path_of, work_of  # noqa: F401 (a fixture)
from small_trials import tiny_backbone  # noqa: F401 (a fixture)

from petlbench.harness.disk import DiskFull, room_for, why_full
from petlbench.harness.engine import TrainingError
from petlbench.harness.oom import OutOfMemory, is_out_of_memory
from petlbench.harness.record import read_record
from petlbench.harness.trial import run_trial
from petlbench.methods.full_finetune import FullFinetune

pytestmark = pytest.mark.usefixtures("tiny_backbone")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full"),
        (OSError(errno.EDQUOT, "x"), "the quota is used up"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "the disk is full"),
        (RuntimeError("shape mismatch"), None),
        (PermissionError(errno.EACCES, "Permission denied"), None),
    ],
)
def test_errors_of_full_disks_are_known_by_their_many_names(tmp_path, error, reason):
    assert why_full(error) == reason
    with pytest.raises(DiskFull if reason else type(error)), room_for("it", tmp_path, 1):
        raise error


def test_where_single_pairs_do_not_fit_the_trial_fails_with_advice(tmp_path, monkeypatch):
    holds_at_most(monkeypatch, 0)
    trial = a_trial(tmp_path)
    with pytest.raises(
        OutOfMemory, match=r"a single pair at a time is too much.*train\.precision=bf16.*--gpus-per-trial"
    ):
        run_trial(trial)
    assert read_record(path_of(trial)).error.type == "OutOfMemory"


def test_a_loss_that_cannot_be_cut_fails_with_advice_and_is_not_changed(tmp_path, monkeypatch):
    sizes = holds_at_most(monkeypatch, 8)

    whole = FullFinetune.loss
    monkeypatch.setattr(FullFinetune, "loss", lambda self, model, batch: whole(self, model, batch))
    with pytest.raises(
        OutOfMemory, match=r"10 of 10 pairs at a time, and its loss\(\) compares.*lower train\.batch_size"
    ):
        run_trial(a_trial(tmp_path))
    assert [size for size in sizes if size > 8] == [10]


def test_memory_that_ends_in_validation_is_told_with_advice(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("petlbench.harness.ranking.evaluate", full)
    with pytest.raises(OutOfMemory, match=r"outside of the training steps\. What can help"):
        run_trial(a_trial(tmp_path))


def test_the_allocator_of_the_host_is_understood():
    """The real one, asked for more than there is."""
    with pytest.raises(RuntimeError) as told:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(told.value)
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("shape mismatch"))


def test_a_loss_that_becomes_nan_fails_the_trial_with_advice(tmp_path, monkeypatch):
    trial = a_trial(tmp_path)

    def spoil(line):
        compare = FullFinetune.compare
        nan = float("nan")
        monkeypatch.setattr(
            FullFinetune, "compare", lambda *args: {name: value * nan for name, value in compare(*args).items()}
        )

    with pytest.raises(TrainingError, match=r"not finite at step 4 .*lower train\.lr"):
        run_trial(trial, spoil)
    record = read_record(path_of(trial))
    assert (record.status, record.error.type) == ("failed", "TrainingError") and not record.metrics
    assert [p.name for p in work_of(trial).glob("epoch-*")] == ["epoch-00001"]
