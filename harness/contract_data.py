"""Fake pairs for the contract: enough to tell rows apart, with the duplicates that real data sets have."""

from __future__ import annotations

import torch

from petlbench.methods.backbones.base import Backbone
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
FALSE_CAPTIONS = 3
"""False captions per picture, K."""


def fake_batch(backbone: Backbone, seed: int = 0) -> Batch:
    """Eight pairs for a backbone; one picture and one caption string occur twice, one label is unknown.

    Each picture comes with three captions that are false for it, for methods that score pairs.

    Args:
        backbone: Gives resolution and tokenizer; captions are padded to its whole context.
        seed: Seeds the pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    side = backbone.resolution
    pictures = torch.randn(max(_IMAGE_IDS) + 1, 3, side, side, generator=generator)
    ids = torch.tensor(_IMAGE_IDS)
    tokens, texts = backbone.tokenize(_CAPTIONS), torch.tensor(_TEXT_IDS)
    rows = torch.tensor([[row, *_false_for(row)] for row in range(len(_CAPTIONS))])
    return Batch(
        pictures[ids],
        tokens,
        ids,
        texts,
        torch.tensor(_LABELS),
        candidates=tokens[rows.flatten()],
        candidate_ids=texts[rows],
    )


def _false_for(row: int) -> list[int]:
    """The next captions of other pictures with strings that this row's picture does not own."""
    picture = _IMAGE_IDS[row]
    own = {text for text, image in zip(_TEXT_IDS, _IMAGE_IDS, strict=True) if image == picture}
    others = [(row + step) % len(_CAPTIONS) for step in range(1, len(_CAPTIONS))]
    return [other for other in others if _TEXT_IDS[other] not in own][:FALSE_CAPTIONS]
