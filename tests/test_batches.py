"""What a training batch holds and in which order batches come."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from petlbench.datasets.augment import Augmentation
from petlbench.datasets.readers.scenes import read_scenes
from petlbench.datasets.split import Split
from petlbench.harness.data import SplitData, epoch_order, make_batch, training_batches
from petlbench.harness.features import Pooled, pooled_features
from petlbench.harness.kept import Kept
from petlbench.methods.backbones.base import Tokens
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.recipe import Recipe

CPU = torch.device("cpu")


def split_of(counts):
    owner = np.repeat(np.arange(len(counts)), counts)
    captions = tuple(f"caption {i}" for i in range(len(owner)))
    return Split("train", tuple(range(len(counts))), captions, owner.astype(np.int64))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=20),
    batch=st.integers(1, 12),
    seed=st.integers(0, 5),
    epoch=st.integers(1, 5),
)
def test_epochs_visit_what_they_promise(counts, batch, seed, epoch):
    split = split_of(counts)
    for sampling, total in (("caption", len(split.captions)), ("image", len(split.images))):
        order = epoch_order(split, sampling, batch, seed, epoch)
        rows = np.concatenate(order)
        assert len(np.unique(rows)) == len(rows), "no caption twice in an epoch"
        if sampling == "image":
            assert len(np.unique(split.owner[rows])) == len(rows), "no picture twice in an epoch over pictures"
        whole = total // batch
        assert len(rows) == (whole * batch if whole else total)
        assert {len(b) for b in order} == ({batch} if whole else {total})


def test_order_depends_on_seed_and_epoch_only():
    split = split_of([5] * 30)
    first = epoch_order(split, "image", 10, 1, 1)
    np.testing.assert_array_equal(first, epoch_order(split, "image", 10, 1, 1))
    assert not np.array_equal(first, epoch_order(split, "image", 10, 1, 2))
    assert not np.array_equal(first, epoch_order(split, "image", 10, 2, 1))


def test_every_caption_of_a_picture_gets_its_turn():
    split = split_of([3, 3])
    chosen = {int(r) for epoch in range(1, 60) for b in epoch_order(split, "image", 2, 0, epoch) for r in b}
    assert chosen == set(range(6))


@pytest.fixture(scope="module")
def scenes():
    return read_scenes({"train": 30, "val": 30, "test": 30})["train"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "batch-cache"))


@pytest.mark.parametrize("make", [random_clip, random_two_tower])
def test_a_batch_pairs_captions_with_their_pictures(scenes, make):
    backbone = make()
    data = SplitData.open(scenes, backbone)
    rows = np.array([0, 7, 8, 149])
    batch = make_batch(data, backbone, rows, Recipe(), CPU)
    np.testing.assert_array_equal(batch.image_ids.numpy(), scenes.owner[rows])
    np.testing.assert_array_equal(batch.text_ids.numpy(), scenes.text_ids[rows])
    np.testing.assert_array_equal(batch.labels.numpy(), scenes.labels[scenes.owner[rows]])
    mean = torch.tensor(backbone.provenance.mean)[:, None, None]
    std = torch.tensor(backbone.provenance.std)[:, None, None]
    for index, owner in enumerate(scenes.owner[rows]):
        pixels = torch.from_numpy(data.images.array[owner].copy()).permute(2, 0, 1) / 255
        torch.testing.assert_close(batch.images[index], (pixels - mean) / std)
    words = backbone.tokenize([scenes.captions[r] for r in rows])
    length = batch.tokens.ids.shape[1]
    assert length == int(words.mask.sum(1).max()), "cut to the longest caption of the batch"
    torch.testing.assert_close(batch.tokens.ids, words.ids[:, :length])


def test_augmentation_is_drawn_from_seed_and_epoch(scenes):
    backbone = random_clip()
    data = SplitData.open(scenes, backbone)
    recipe = Recipe(batch_size=8, sampling="image", augmentation=Augmentation(horizontal_flip=0.5, brightness=0.4))

    def pictures(seed, epoch):
        return torch.cat([b.images for b in training_batches(data, backbone, recipe, seed, epoch, CPU)])

    torch.testing.assert_close(pictures(0, 1), pictures(0, 1))
    plain = Recipe(batch_size=8, sampling="image")
    bare = torch.cat([b.images for b in training_batches(data, backbone, plain, 0, 1, CPU)])
    assert not torch.equal(pictures(0, 1), bare)


def test_cached_features_belong_to_the_very_tokens(scenes):
    """The weights' hash does not tell the tokenizer, which may be mended."""
    backbone = random_clip()
    data = SplitData.open(scenes, backbone)
    other = replace(data, tokens=Tokens(data.tokens.ids.clone(), data.tokens.mask))
    other.tokens.ids[:, 1] = 7
    first = pooled_features(data, backbone, "fp32", CPU)
    assert torch.equal(pooled_features(data, backbone, "fp32", CPU).text, first.text)
    second = pooled_features(other, backbone, "fp32", CPU)
    assert torch.equal(second.image, first.image) and not torch.equal(second.text, first.text)


def test_pooled_features_stand_in_for_pixels(scenes):
    backbone = random_clip()
    data = SplitData.open(scenes, backbone)
    pooled = Pooled(torch.randn(30, 4), torch.randn(len(scenes.distinct), 5))
    rows = np.array([3, 3, 90])
    batch = make_batch(data, backbone, rows, Recipe(), CPU, kept=Kept(pooled=pooled))
    assert batch.images is None
    assert batch.tokens is None
    torch.testing.assert_close(batch.image_pooled, pooled.image[scenes.owner[rows]])
    torch.testing.assert_close(batch.text_pooled, pooled.text[scenes.text_ids[rows]])
