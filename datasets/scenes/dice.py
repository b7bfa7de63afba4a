"""A fast, platform-independent source of scalar randomness."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_BLOCK = 256


class Dice:
    """Scalar draws from one seeded generator, taken in blocks: a numpy call per number would dominate the run time.

    Only ``Generator.random`` is used; its stream is integer arithmetic, hence equal on every machine.

    Args:
        key: Integers that seed the generator; equal keys, equal draws.
    """

    def __init__(self, *key: int):
        self._rng = np.random.default_rng(key)
        self._stock: list[float] = []

    def unit(self) -> float:
        """Uniform on [0, 1)."""
        if not self._stock:
            self._stock = self._rng.random(_BLOCK).tolist()
        return self._stock.pop()

    def between(self, low: float, high: float) -> float:
        """Uniform on [low, high)."""
        return low + (high - low) * self.unit()

    def integer(self, low: int, high: int) -> int:
        """Uniform on low..high, both ends included."""
        return low + int(self.unit() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.unit() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self.unit() * len(options))]

    def shuffle(self, items: MutableSequence[T]) -> None:
        """Fisher-Yates, in place."""
        for i in range(len(items) - 1, 0, -1):
            j = int(self.unit() * (i + 1))
            items[i], items[j] = items[j], items[i]
