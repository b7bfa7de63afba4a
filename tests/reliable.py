"""Trials that something befalls, and how memory ends for them."""

from pathlib import Path

import pytest
import torch
from small_trials import small_trial

from petlbench.harness import fit as fit_module
from petlbench.harness.record import record_path
from petlbench.harness.spec import Trial
from petlbench.methods.full_finetune import FullFinetune

SETS = ("train.epochs=3", "dataset.scenes.train=30", "train.batch_size=10")


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory):
    """The pictures are the same in every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETLBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def a_trial(folder: Path, *sets: str, **options) -> Trial:
    return small_trial(folder, *SETS, *sets, **options)


def path_of(trial: Trial) -> Path:
    return record_path(Path(trial.paths.results), trial.spec.model_dump(mode="json"), trial.spec.spec_id)


def work_of(trial: Trial) -> Path:
    return Path(trial.paths.work) / trial.spec.spec_id[:16]


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
