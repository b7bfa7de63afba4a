"""Weights and inputs of IEFT's golden values: for the script that runs the authors' code, and for the test that does not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from golden.fill import filled, inputs, integers

SEED = 7
PATCHES = 144
VOCAB, LENGTH = 64, 10
LENGTHS = (10, 4, 7, 6, 9, 5, 8, 10, 3, 7, 10, 6)
"""Real words of each caption in turn."""
SIZES: dict[str, dict[str, Any]] = {
    "narrow": {"width": 48, "patch": 4, "scale": 0.1, "pictures": 3, "false": 3},
    "full": {"width": 768, "patch": 32, "scale": 0.05, "pictures": 1, "false": 1},
}
RULES = (
    (r".*(norm\d?|LayerNorm|norm\d\.body)\.weight", 1.0, 1.0),
    (r"transformer\.SE_blocks\..*(qkv|proj|fc\d)\.weight", 2.0, 0.0),
    (r"local_net\..*dwconv\.weight", 6.0, 0.0),
)
"""Factor on and then term added to the filled values of the names that match: norms near 1, and enhancements that count."""
PERIOD = 100_003
"""Drawn values of a tensor, which then repeat; prime, so that no two rows are equal. Drawing all would take seconds."""


def weights(shapes: Mapping[str, Sequence[int]], scale: float) -> dict[str, Tensor]:
    """Fp32 tensors by their official names."""
    state = filled({name: [min(math.prod(shape), PERIOD)] for name, shape in shapes.items()}, SEED, scale)
    for name, shape in shapes.items():
        size = math.prod(shape)
        tensor = state[name].repeat(-(-size // PERIOD))[:size].view(*shape)
        for pattern, factor, term in RULES:
            if re.fullmatch(pattern, name):
                tensor = factor * tensor + term
        state[name] = tensor
    return state


def pictures(size: Mapping[str, Any]) -> Tensor:
    """(N, 3, R, R), standard normal."""
    side = 12 * size["patch"]
    return inputs((size["pictures"], 3, side, side), SEED)


def captions(size: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(N * (1 + K), L) ids and bool mask, picture by picture, the true one first."""
    count = size["pictures"] * (1 + size["false"])
    ids = 1 + integers((count, LENGTH), VOCAB - 1, SEED)  # 0 is padding, whose embedding never trains there
    return ids, torch.arange(LENGTH) < torch.tensor(LENGTHS[:count])[:, None]


def orders(count: int) -> Tensor:
    """(count, P) permutations of the patches."""
    return torch.stack([inputs((PATCHES,), SEED + 1 + index).argsort() for index in range(count)])
