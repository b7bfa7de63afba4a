"""What scoring pairs costs, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_S = 0.5
"""Seconds of scoring that are measured before the first estimate is told; a run that is over sooner tells only its end."""
EVERY_S = 10.0
"""Seconds between later messages."""


@dataclass
class PairCost:
    """Seconds of wall-clock time spent on a split, and on how many items.

    Attributes:
        image_s: On what is computed of each picture alone.
        text_s: On what is computed of each caption alone.
        pair_s: On what is computed of pairs.
        images: Pictures prepared.
        texts: Captions prepared; more than there are where memory did not hold them all.
        pairs: Pairs scored.
    """

    image_s: float = 0.0
    text_s: float = 0.0
    pair_s: float = 0.0
    images: int = 0
    texts: int = 0
    pairs: int = 0


@dataclass(frozen=True)
class PairProgress:
    """How far the scoring of a split has come; ``str()`` of it is the line to show.

    Attributes:
        split: Name of the split.
        images: Pictures N.
        texts: Distinct captions U.
        pairs: Pairs to score, those that were found done among them.
        found: Pairs that an earlier run had scored.
        done: Pairs that have a score now.
        pairs_per_s: While pairs are left, the expected rate of these; at the end, the measured one of this run.
        left_s: Expected seconds left.
        spent_s: Seconds of this run.
        first: Whether this is the estimate at the start.
    """

    split: str
    images: int
    texts: int
    pairs: int
    found: int
    done: int
    pairs_per_s: float
    left_s: float
    spent_s: float
    first: bool = False

    def __str__(self) -> str:
        if self.done == self.pairs:
            return f"{self.split}: {self.pairs:,} pairs scored in {clock(self.spent_s)}, {self._rate}"
        if not self.first:
            return f"{self.split}: {self.done:,} of {self.pairs:,} pairs, {self._rate}, about {clock(self.left_s)} left"
        kept = f", {self.found:,} of them kept from an earlier run" if self.found else ""
        whole = self.pairs == self.images * self.texts
        how = "=" if whole else "->"
        return (
            f"{self.split}: {self.images:,} pictures x {self.texts:,} captions {how} {self.pairs:,} pairs{kept}, "
            f"{self._rate}, about {clock(self.left_s)}"
        )

    @property
    def _rate(self) -> str:
        digits = 0 if self.pairs_per_s >= 10 else 2
        return f"{self.pairs_per_s:,.{digits}f} pairs/s"


class ProgressMeter:
    """Turns finished blocks into estimates.

    A pair weighs as much as its states hold scalars, so that an estimate made on long captions holds for short ones. The
    first block also sets kernels and memory up, so it is left out of the rate as soon as there is a second one.

    Args:
        split: Name.
        shape: N pictures and U distinct captions.
        total: Pairs to score in all.
        missing: (N, U) bool, pairs that have no score yet.
        groups: Ids of the captions of each group.
        lengths: Words of each group's captions.
        say: Receives the progress; None for silence.
        cost: What scoring has cost so far; ``pairs`` and ``pair_s`` are added to it here.
    """

    def __init__(
        self,
        split: str,
        shape: tuple[int, int],
        total: int,
        missing: Tensor,
        groups: Sequence[Tensor],
        lengths: Sequence[int],
        say: Callable[[PairProgress], None] | None,
        cost: PairCost,
    ):
        self.split, self.shape, self.total, self.say, self.cost = split, shape, total, say, cost
        per_text = missing.sum(0)
        self.left = [int(per_text[ids].sum()) for ids in groups]
        self.found = self.done = total - sum(self.left)
        self.lengths = lengths
        self.images_left = int(missing.any(1).sum())
        self.weights = [1.0] * len(groups)
        self.began = time.perf_counter()
        self.blocks: list[tuple[float, float]] = []  # first block, all later ones: (weight, seconds)
        self.told: float | None = None
        self._before = cost.images, cost.image_s
        self._measured: set[int] = set()

    def weigh(self, image: int, text: int, group: int) -> None:
        """Note the scalars of a picture and of a caption of a group; those of unmeasured groups go by their length."""
        self._measured.add(group)
        for other, length in enumerate(self.lengths):
            if other == group or other not in self._measured:
                self.weights[other] = image + text * length / self.lengths[group]

    def add(self, group: int, pairs: int, seconds: float) -> None:
        """A block of a group is scored."""
        self.cost.pairs += pairs
        self.cost.pair_s += seconds
        self.left[group] -= pairs
        self.done += pairs
        weight = pairs * self.weights[group]
        if len(self.blocks) < 2:
            self.blocks.append((weight, seconds))
        else:
            before = self.blocks[1]
            self.blocks[1] = (before[0] + weight, before[1] + seconds)
        if self.say is None or self.done == self.total:
            return
        moment = time.perf_counter()
        enough = len(self.blocks) > 1 and moment - self.began >= FIRST_S
        if enough and (self.told is None or moment - self.told >= EVERY_S):
            first, self.told = self.told is None, moment
            self.say(self._progress(first))

    def end(self) -> None:
        """All is scored."""
        if self.say is not None:
            self.say(self._progress(False))

    def _progress(self, first: bool) -> PairProgress:
        spent = time.perf_counter() - self.began
        left = self.total - self.done
        if left:
            weight, seconds = self.blocks[-1]
            left_s = seconds / weight * sum(n * w for n, w in zip(self.left, self.weights, strict=True))
            left_s += self._image_s_left()
            rate = left / left_s if left_s else 0.0
        else:
            left_s, rate = 0.0, (self.done - self.found) / spent if spent else 0.0
        return PairProgress(
            self.split, *self.shape, self.total, self.found, self.done, rate, left_s, spent, first=first
        )

    def _image_s_left(self) -> float:
        """Seconds for the pictures that are not prepared yet, at the rate of the others."""
        images, seconds = self.cost.images - self._before[0], self.cost.image_s - self._before[1]
        return seconds / images * max(0, self.images_left - images) if images else 0.0


def clock(seconds: float) -> str:
    """``0:07``, ``12:34`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def now(device: torch.device) -> float:
    """Seconds of a running clock, after the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
