"""Fake pairs for the contract: enough to tell rows apart, with the duplicates that real data sets have."""

from __future__ import annotations

import torch

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import Batch

_CAPTIONS = (
    "many planes are parked near a large terminal in an airport",
    "a bridge",
    "two white boats lie in the harbour",
    "green farmland with a road through it",
    "dense houses and some trees",
    "a baseball field beside a parking lot with several cars in it",
    "a bridge",  # the string of row 1, another picture
    "an airport seen from above",  # the picture of row 0
)
_IMAGE_IDS = (0, 1, 2, 3, 4, 5, 6, 0)
_TEXT_IDS = (0, 1, 2, 3, 4, 5, 1, 6)
_LABELS = (0, 1, 2, 3, 4, -1, 1, 0)


def fake_batch(backbone: DualEncoder, seed: int = 0) -> Batch:
    """Eight pairs for a backbone; one picture and one caption string occur twice, one label is unknown.

    Args:
        backbone: Gives resolution and tokenizer; captions are padded to its whole context.
        seed: Seeds the pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    side = backbone.resolution
    pictures = torch.randn(max(_IMAGE_IDS) + 1, 3, side, side, generator=generator)
    ids = torch.tensor(_IMAGE_IDS)
    return Batch(pictures[ids], backbone.tokenize(_CAPTIONS), ids, torch.tensor(_TEXT_IDS), torch.tensor(_LABELS))
