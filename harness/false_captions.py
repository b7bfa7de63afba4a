"""Draws the false captions against which a method that scores pairs learns to rank the true one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from petlbench.datasets.split import DataError, Split


class FalseCaptions:
    """K captions per picture, uniform over all caption slots of the split with replacement, as ViLT draws them.

    A function of seed and epoch alone, if batches are drawn in their order, so that a resumed trial agrees.

    Args:
        split: The training split.
        count: False captions per picture, K.
        own_allowed: Also draw strings that the picture itself owns, as the released code of ViLT does.
        seed: The trial's seed.
        epoch: Counted from 1; 0 for audits.

    Raises:
        DataError: Some picture owns every string of the split, so that nothing is false for it.
    """

    def __init__(self, split: Split, count: int, own_allowed: bool, seed: int, epoch: int):
        self.split, self.count = split, count
        self._rng = np.random.default_rng([seed, epoch, 1])  # apart from the order of the epoch
        self._own = None if own_allowed else own_strings(split)
        if self._own is not None and (self._own >= 0).sum(1).max() >= len(split.distinct):
            image = split.images[int((self._own >= 0).sum(1).argmax())]
            raise DataError(
                f"picture {image.name}: owns all {len(split.distinct)} distinct captions of split {split.name}, so no caption "
                "is false for it; use a larger split, or the method option own_as_false=true"
            )

    def draw(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B, K) ids of distinct strings for B pictures, given by their (B,) places in the split."""
        found = self._slots((len(images), self.count))
        if self._own is not None:
            own = self._own[images][:, None, :]
            while (wrong := (found[:, :, None] == own).any(2)).any():
                found[wrong] = self._slots(int(wrong.sum()))
        return found

    def _slots(self, shape: int | tuple[int, int]) -> NDArray[np.int64]:
        return self.split.text_ids[self._rng.integers(0, len(self.split.captions), shape)]


def own_strings(split: Split) -> NDArray[np.int64]:
    """(N, most) ids of the distinct strings of every picture, filled up with -1."""
    pairs = np.unique(np.stack([split.owner, split.text_ids], 1), axis=0)
    counts = np.bincount(pairs[:, 0], minlength=len(split.images))
    own = np.full((len(split.images), max(1, int(counts.max(initial=0)))), -1, dtype=np.int64)
    place = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
    own[pairs[:, 0], place] = pairs[:, 1]
    return own
