"""Deterministic weights and inputs: the same numbers in the script that ran official code and in the test that does not.

``RandomState`` is frozen by NumPy's compatibility policy, so its numbers never change between versions.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def filled(shapes: Mapping[str, Sequence[int]], seed: int, scale: float = 0.05) -> dict[str, Tensor]:
    """Normal fp32 tensors of deviation ``scale``; each depends on its name and the seed alone, not on its neighbours."""
    return {name: _normal(shape, seed, name) * scale for name, shape in shapes.items()}


def inputs(shape: Sequence[int], seed: int) -> Tensor:
    """A standard normal fp32 tensor."""
    return _normal(shape, seed, "input")


def integers(shape: Sequence[int], high: int, seed: int) -> Tensor:
    """Uniform int64 in [0, high)."""
    return torch.from_numpy(np.random.RandomState(seed).randint(0, high, tuple(shape)).astype(np.int64))


def _normal(shape: Sequence[int], seed: int, name: str) -> Tensor:
    state = np.random.RandomState((seed * 1_000_003 + zlib.crc32(name.encode())) % 2**32)
    return torch.from_numpy(state.standard_normal(tuple(shape)).astype(np.float32))
