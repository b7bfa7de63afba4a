"""Every token of both towers in the joint embedding space, beside the pooled embedding: what heads over tokens need."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from petlbench.methods.backbones.base import DualEncoder, Tokens


class JointTokens(NamedTuple):
    """One modality in the joint space.

    Attributes:
        pooled: (B, E) the backbone's embedding, not normalised.
        tokens: (B, N, E) each token projected as if it had been pooled.
        mask: (B, N) bool, True on real tokens; None where all are.
        read_at: (B,) int64 token that stands for the whole; None where it is the first.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor | None = None
    read_at: Tensor | None = None


def image_tokens(backbone: DualEncoder, images: Tensor) -> JointTokens:
    """(B, 3, H, W) pictures to their joint tokens, the class token (in Swin the mean) first."""
    tower = backbone.image
    hidden = tower.run(tower.embed(images))
    states = tower.finish(hidden)
    if tower.pooled_width == 2 * tower.width:  # DINOv2: what is projected is a token beside the mean of the patches
        mean = states[:, hidden.prefix :].mean(1, keepdim=True)
        tokens = backbone.project_image(torch.cat([states, mean.expand_as(states)], -1))
        return JointTokens(tokens[:, 0], tokens)
    return JointTokens(backbone.project_image(tower.pool(hidden)), backbone.project_image(states))


def text_tokens(backbone: DualEncoder, inputs: Tokens) -> JointTokens:
    """Captions to their joint tokens; CLIP's causal tower is read at the end token, BERT at the first."""
    tower = backbone.text
    hidden = tower.run(tower.embed(inputs))
    tokens = backbone.project_text(tower.finish(hidden))
    if hidden.pool_at is not None:
        rows = torch.arange(len(tokens), device=tokens.device)
        return JointTokens(tokens[rows, hidden.pool_at], tokens, inputs.mask, hidden.pool_at)
    return JointTokens(backbone.project_text(tower.pool(hidden)), tokens, inputs.mask)
