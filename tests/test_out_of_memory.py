"""Memory that runs out: fewer pairs at a time where the gradient stays, else advice."""

import pytest
import torch
from small_trials import Killed, a_trial, tiny_backbone  # noqa: F401 (a fixture)

from petlbench.harness import fit as fit_module
from petlbench.harness.oom import OutOfMemory, is_out_of_memory
from petlbench.harness.record_files import path_of, read_record
from petlbench.harness.trial import run_trial
from petlbench.methods.full_finetune import FullFinetune

pytestmark = pytest.mark.usefixtures("tiny_backbone", "one_cache")


def holds_at_most(monkeypatch, pairs: int, error: type[Exception] = torch.OutOfMemoryError) -> list[int]:
    """A machine on which more than so many pictures at once in training do not fit; the sizes that were tried."""
    encode, epoch, sizes = FullFinetune.encode_image, fit_module._train_epoch, []

    def limited(self, model, images):
        if training:
            sizes.append(len(images))
            if len(images) > pairs:
                raise error("CUDA out of memory. Tried to allocate 20.00 GiB")
        return encode(self, model, images)

    def within(*args):
        training.append(True)
        try:
            return epoch(*args)
        finally:
            training.clear()

    training: list[bool] = []
    monkeypatch.setattr(FullFinetune, "encode_image", limited)
    monkeypatch.setattr(fit_module, "_train_epoch", within)
    return sizes


def test_out_of_memory_halves_what_goes_through_at_once_and_keeps_the_batch(tmp_path, undisturbed, monkeypatch):
    sizes = holds_at_most(monkeypatch, 4)
    record = run_trial(a_trial(tmp_path))
    assert [size for size in sizes if size > 4] == [10, 5]
    assert record.cost.micro_batch == 2, "10, 5, 2"
    assert [note.split("(")[0] for note in record.notes] == [
        "out of memory in epoch 1 with 10 pairs at a time ",
        "out of memory in epoch 1 with 5 pairs at a time ",
    ]
    assert "with the gradient of the whole batch of 10" in record.notes[0]
    assert record.spec_id == undisturbed.spec_id
    assert [e.loss for e in record.curve] == pytest.approx([e.loss for e in undisturbed.curve], rel=1e-4)
    assert record.metrics["test"].recalls == pytest.approx(undisturbed.metrics["test"].recalls, abs=3.4)


def test_memory_that_runs_out_later_repeats_that_epoch_only_and_a_resumed_trial_remembers(
    tmp_path, undisturbed, monkeypatch
):
    trial = a_trial(tmp_path)
    sizes, lines = [], []
    peaks = iter([(2**50, 2**50)])
    real = fit_module.peak_memory
    monkeypatch.setattr(fit_module, "peak_memory", lambda device: next(peaks, None) or real(device))

    def report(line):
        lines.append(line)
        if line["epoch"] == 1:
            sizes.extend([holds_at_most(monkeypatch, 5)])
        if line["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_trial(trial, report)
    assert [line["epoch"] for line in lines] == [1, 2]
    sizes[0].clear()
    record = run_trial(trial)
    assert max(sizes[0]) == 5, "what did not fit is not tried again"
    assert len(record.notes) == 1 and "in epoch 2" in record.notes[0]
    assert record.cost.peak_memory < 2**50, "that of the smaller number, not of the epoch before"
    assert [e.loss for e in record.curve] == pytest.approx([e.loss for e in undisturbed.curve], rel=1e-4)


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
