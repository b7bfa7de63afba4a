"""Losses between the two embeddings of a batch; every method and every loss can be crossed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from petlbench.methods.base import Batch
    from petlbench.methods.recipe import LossConfig


def contrastive(image: Tensor, text: Tensor, scale: Tensor, batch: Batch, config: LossConfig) -> Tensor:
    """Symmetric contrastive loss chosen by ``config``.

    Args:
        image: (B, E) embeddings, normalised here.
        text: (B, E) embeddings, normalised here.
        scale: Scalar inverse temperature.
        batch: Gives the picture and string ids that tell false negatives.
        config: Name of the loss and whether duplicates are masked.

    Returns:
        Scalar, mean over the batch and both directions.
    """
    with torch.autocast(image.device.type, enabled=False):  # bf16 has steps of 0.125 where logits reach 30
        logits = scale.float() * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    same = same_pair(batch.image_ids, batch.text_ids)
    if config.name == "multi_positive":
        return multi_positive_infonce(logits, same)
    return infonce(logits, same if config.mask_duplicates else None)


def same_pair(image_ids: Tensor, text_ids: Tensor) -> Tensor:
    """(B, B) bool: pair (i, j) shares its picture or its caption string, so it is no true negative; diagonal True."""
    return (image_ids[:, None] == image_ids[None, :]) | (text_ids[:, None] == text_ids[None, :])


def infonce(logits: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE with the diagonal as positives (Radford et al. 2021, figure 3).

    Args:
        logits: (B, B) scaled similarities, rows are pictures.
        ignore: (B, B) bool pairs left out of the denominators; the diagonal always stays.
    """
    if ignore is not None:
        off_diagonal = ignore & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(off_diagonal, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def multi_positive_infonce(logits: Tensor, positive: Tensor) -> Tensor:
    """Symmetric InfoNCE with several positives per row: mean of -log p over them (Khosla et al. 2020, L_out).

    Args:
        logits: (B, B) scaled similarities, rows are pictures.
        positive: (B, B) symmetric bool with a True diagonal.
    """
    weight = positive / positive.sum(1, keepdim=True)

    def one_way(scores: Tensor) -> Tensor:
        return -(weight * F.log_softmax(scores, dim=1)).sum(1).mean()

    return (one_way(logits) + one_way(logits.T)) / 2
