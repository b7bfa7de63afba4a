"""ViLT (Kim, Son and Kim, ICML 2021): one transformer over the words of a caption and the patches of a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.methods.backbones.base import Hidden, PairEncoder, Provenance, Tokens
from petlbench.methods.backbones.vilt_tower import ViltTower

MEAN = STD = (0.5, 0.5, 0.5)
"""Of the pictures: values from -1 to 1."""

HEAD_STD = 0.02
"""Standard deviation of a head that starts at random, as in ViLT."""

ItmHead = tuple[Tensor, Tensor]
"""Weight (2, W) and bias (2,) of the image-text matching head; row 1 says "match"."""


class ViltEncoder(PairEncoder):
    """ViLT with its ranking head.

    Module names: ``vilt`` (``transformers.ViltModel``) and ``rank_output``, the linear map of the pooled output to a score.
    Every method trains and counts ``rank_output``, whatever it starts from, so it is not among :meth:`new_parameters` and
    counts do not depend on the checkpoint.

    Args:
        name: What the user calls the backbone.
        vilt: ``transformers.ViltModel``.
        tokenize: Maps strings to :class:`Tokens`, class token first.
        provenance: Origin of the weights.
        itm_head: Image-text matching head of the checkpoint, (2, W) and (2,); ``rank_output`` starts as its row 1. Without
            one it starts at random, with zero bias.
        seed: Seeds ``rank_output`` where it starts at random.
    """

    trims_text = True  # attention masks padding
    joint: ViltTower

    def __init__(
        self,
        name: str,
        vilt: Any,
        tokenize: Callable[[Sequence[str]], Tokens],
        provenance: Provenance,
        itm_head: ItmHead | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.name = name
        self.provenance = provenance
        self.vilt = vilt
        self.tokenizer = tokenize
        self.joint = ViltTower(vilt)
        self.width = self.joint.width
        self.heads = self.joint.heads
        side = provenance.resolution // int(vilt.config.patch_size)
        self.grid = (side, side)
        self.patches = side * side
        # A plain attribute: no part of the scoring model, kept for losses that want to start from it.
        self.itm_head = itm_head
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.rank_output = nn.Linear(self.width, 1)
            nn.init.normal_(self.rank_output.weight, std=HEAD_STD)
            nn.init.zeros_(self.rank_output.bias)
        if itm_head is not None:
            with torch.no_grad():
                self.rank_output.weight.copy_(itm_head[0][1:])
                self.rank_output.bias.copy_(itm_head[1][1:])

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """(len(texts), context length) tokens; captions that are too long are cut, keeping the end token."""
        return self.tokenizer(texts)

    def embed_image(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) normalised pictures to (B, 1 + P, W): class token, then patches in raster order."""
        return self.joint.embed_image(images)

    def embed_text(self, tokens: Tokens) -> Tensor:
        """B captions to (B, L, W) embedded words."""
        return self.joint.embed_text(tokens)

    def join(self, text: Tensor, mask: Tensor | None, image: Tensor) -> Hidden:
        """The first block's input: words, then class token and patches.

        Args:
            text: (B, L, W) from :meth:`embed_text`.
            mask: (B, L) bool, True on real words; None where every word is real, which is cheaper.
            image: (B, 1 + P, W) from :meth:`embed_image`.
        """
        return self.joint.join(text, mask, image)

    def head(self, hidden: Hidden) -> Tensor:
        """(B,) scores of the last block's states: final norm and pooler at the first token after the prefix, then ranking."""
        return self.rank(self.joint.pool(hidden))

    def rank(self, pooled: Tensor) -> Tensor:
        """(..., W) pooled outputs to (...,) scores in fp32."""
        with torch.autocast(pooled.device.type, enabled=False):
            return self.rank_output(pooled.float()).squeeze(-1)

    def score_pairs(self, images: Tensor, tokens: Tokens) -> Tensor:
        """(B,) scores of B pictures, (B, 3, R, R) normalised floats, each with its own caption; higher is better."""
        return self.rank(self.joint.pooled((images, tokens)))
