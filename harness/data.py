"""A split as a trial uses it: shared uint8 pictures, tokens of the distinct captions, batches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from petlbench.datasets.augment import augment, normalise
from petlbench.datasets.cache import CachedImages, prepare
from petlbench.datasets.captions import cleaned
from petlbench.datasets.split import Split
from petlbench.harness.distributed.shard import own_rows
from petlbench.harness.distributed.world import here
from petlbench.harness.false_captions import FalseCaptions
from petlbench.harness.kept import NOTHING, Kept
from petlbench.methods.backbones.base import Backbone, Tokens
from petlbench.methods.base import Batch
from petlbench.methods.recipe import Recipe


@dataclass(frozen=True)
class SplitData:
    """One split, ready for a backbone.

    Attributes:
        split: Captions, ownership, labels.
        images: (N, R, R, 3) uint8 pictures, mapped from the cache that all trials of the machine share.
        tokens: Tokens of the U distinct captions, in order of their ids.
    """

    split: Split
    images: CachedImages
    tokens: Tokens

    @property
    def tokens_hash(self) -> str:
        """XXH3 of all token ids, for the keys of what is cached of them."""
        return xxhash.xxh3_128_hexdigest(self.tokens.ids.numpy().tobytes())

    @classmethod
    def open(
        cls,
        split: Split,
        backbone: Backbone,
        captions: Literal["raw", "cleaned"] = "raw",
        workers: int | None = None,
    ) -> SplitData:
        """Prepare (or find) the pictures at the backbone's resolution and tokenise each distinct caption once.

        Args:
            split: As it was read.
            backbone: Gives resolution and tokenizer.
            captions: ``cleaned`` takes the split with cleaned captions; strings that become equal count as one.
            workers: Processes that decode pictures.
        """
        if captions == "cleaned":
            split = cleaned(split)
        return cls(split, prepare(split, backbone.resolution, workers=workers), backbone.tokenize(split.distinct))


def epoch_order(split: Split, sampling: str, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Caption indices of every batch of one epoch; a function of seed and epoch alone, so that a resumed trial agrees.

    Args:
        split: The training split.
        sampling: ``caption``: all M captions. ``image``: one random caption of each of the N pictures.
        batch_size: Pairs per batch; a last, smaller batch is dropped unless it is the only one.
        seed: The trial's seed.
        epoch: Counted from 1.
    """
    rng = np.random.default_rng([seed, epoch])
    if sampling == "image":
        order = np.argsort(split.owner, kind="stable")
        counts = np.bincount(split.owner, minlength=len(split.images))
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        has = np.flatnonzero(counts)
        chosen = order[starts[has] + rng.integers(0, counts[has])]
    else:
        chosen = np.arange(len(split.captions))
    chosen = rng.permutation(chosen)
    whole = len(chosen) // batch_size
    if whole == 0:
        return [chosen]
    return list(chosen[: whole * batch_size].reshape(whole, batch_size))


def training_batches(
    data: SplitData,
    backbone: Backbone,
    recipe: Recipe,
    seed: int,
    epoch: int,
    device: torch.device,
    kept: Kept = NOTHING,
    false: FalseCaptions | None = None,
) -> Iterator[Batch]:
    """The batches of one epoch on ``device``; the next one is gathered while the current one is trained on.

    Where several processes train together, each gets its own rows of every batch. ``false`` draws the false captions of a
    method that scores pairs; it must be that of this seed and epoch.
    """
    order = epoch_order(data.split, recipe.sampling, recipe.batch_size, seed, epoch)
    generator = torch.Generator(device=device).manual_seed(seed * 1_000_003 + epoch)

    def whole(rows: NDArray[np.int64]) -> Batch:
        return make_batch(data, backbone, rows, recipe, device, generator, kept, false)

    def collect(rows: NDArray[np.int64]) -> Batch:
        drawn = false is not None or not recipe.augmentation.is_identity
        return own_rows(whole, rows, drawn=drawn, world=here())

    if device.type == "cpu":  # a second thread would only compete for the cores that train
        yield from map(collect, order)
        return
    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(collect, order[0])
        for rows in order[1:]:
            current, upcoming = upcoming.result(), ahead.submit(collect, rows)
            yield current
        yield upcoming.result()


def make_batch(
    data: SplitData,
    backbone: Backbone,
    rows: NDArray[np.int64],
    recipe: Recipe,
    device: torch.device,
    generator: torch.Generator | None = None,
    kept: Kept = NOTHING,
    false: FalseCaptions | None = None,
) -> Batch:
    """Gather the pairs of the given captions; pictures travel as uint8 and are augmented and normalised on the device.

    Args:
        data: The split.
        backbone: Gives normalisation and trimming.
        rows: (B,) captions, by their places in the split.
        recipe: Gives the augmentation.
        device: Where the batch shall lie.
        generator: Draws the augmentation; None leaves the pictures as they are.
        kept: Outputs of frozen modules for the whole split, which stand in for pixels and words.
        false: Draws false captions, for methods that score pairs.
    """
    split = data.split
    owner, text = split.owner[rows], split.text_ids[rows]
    batch = Batch(
        images=None,
        tokens=None,
        image_ids=torch.from_numpy(owner).to(device),
        text_ids=torch.from_numpy(text).to(device),
        labels=None if split.labels is None else torch.from_numpy(split.labels[owner]).to(device),
        image_side=None if kept.side is None else kept.side[torch.from_numpy(owner)].to(device),
    )
    if kept.pooled is not None:
        return replace(
            batch,
            image_pooled=kept.pooled.image[torch.from_numpy(owner)].to(device),
            text_pooled=kept.pooled.text[torch.from_numpy(text)].to(device),
        )
    candidates = None if false is None else torch.from_numpy(np.concatenate([text[:, None], false.draw(owner)], 1))
    if kept.states is not None and candidates is not None:
        pictures, texts = kept.states.images(torch.from_numpy(owner)), kept.states.texts(candidates.flatten())
        return replace(
            batch,
            candidate_ids=candidates.to(device),
            image_states={name: value.to(device) for name, value in pictures.items()},
            candidate_states={name: value.to(device) for name, value in texts.items()},
        )
    raw = data.images.gather(owner).to(device, non_blocking=True)
    images = normalised(augment(raw, recipe.augmentation, generator) if generator else raw, backbone)
    batch = replace(batch, images=images, tokens=_words(data, backbone, torch.from_numpy(text)).to(device))
    if candidates is None:
        return batch
    words = _words(data, backbone, candidates.flatten()).to(device)
    return replace(batch, candidates=words, candidate_ids=candidates.to(device))


def _words(data: SplitData, backbone: Backbone, ids: Tensor) -> Tokens:
    tokens = data.tokens[ids]
    return tokens.trimmed() if backbone.trims_text else tokens


def normalised(raw: Tensor, backbone: Backbone) -> Tensor:
    """(B, 3, R, R) uint8 to float by the backbone's own mean and deviation."""
    return normalise(raw, backbone.provenance.mean, backbone.provenance.std)
