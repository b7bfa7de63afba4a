"""Losses between the two embeddings of a batch; every method and every loss can be crossed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from petlbench.methods.base import Batch
    from petlbench.methods.recipe import LossConfig


def terms(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    batch: Batch,
    config: LossConfig,
    second: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The named terms of the loss chosen by ``config``; their sum is minimised.

    Args:
        image: (B, E) embeddings, normalised here.
        text: (B, E) embeddings, normalised here.
        scale: Scalar inverse temperature of the contrastive losses; the hinge losses use plain cosines.
        batch: Gives the picture and string ids that tell false negatives.
        config: Name of the loss and its settings.
        second: Embeddings of the second view, where ``config.needs_second_view``.
    """
    with torch.autocast(image.device.type, enabled=False):  # bf16 has steps of 0.125 where logits reach 30
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        similarity = image @ text.T
        scale = scale.float()
        same = same_pair(batch.image_ids, batch.text_ids)
        ignore = same if config.mask_duplicates else None
        if config.name == "infonce":
            return {"infonce": infonce(scale * similarity, ignore)}
        if config.name == "siglip":
            return {"siglip": siglip(scale * similarity + config.siglip_bias, ignore)}
        found: dict[str, Tensor] = {}
        if config.name in ("multi_positive", "harma"):
            positive = same if config.positives == "image_or_text" else _equal(batch.image_ids)
            found["multi_positive"] = multi_positive_infonce(scale * similarity, positive, ignore)
        if config.name in ("adaptive_triplet", "harma"):
            value = adaptive_triplet(similarity, config.margin, config.gamma, ignore)
            found["adaptive_triplet"] = _reduced(value, similarity, config)
        if config.name in ("hinge", "hinge_hardest", "hmmc"):
            hardest = config.name != "hinge"
            value = hinge(similarity, config.margin, hardest=hardest, ignore=ignore)
            found["hinge"] = _reduced(value, similarity, config)
        if config.needs_second_view:
            assert second is not None, "hmmc needs the second view's embeddings"
            for name, first, other in (("hinge_image", image, second[0]), ("hinge_text", text, second[1])):
                within = first @ F.normalize(other.float(), dim=-1).T
                value = hinge(within, config.margin, hardest=True, ignore=ignore)
                found[name] = config.intra_weight * _reduced(value, within, config)
    return found


def _reduced(total: Tensor, similarity: Tensor, config: LossConfig) -> Tensor:
    return total if config.reduction == "sum" else total / len(similarity)


def _equal(ids: Tensor) -> Tensor:
    return ids[:, None] == ids[None, :]


def same_pair(image_ids: Tensor, text_ids: Tensor) -> Tensor:
    """(B, B) bool: pair (i, j) shares its picture or its caption string, so it is no true negative; diagonal True."""
    return _equal(image_ids) | _equal(text_ids)


def infonce(logits: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE with the diagonal as positives (Radford et al. 2021, figure 3).

    Args:
        logits: (B, B) scaled similarities, rows are pictures.
        ignore: (B, B) bool pairs left out of the denominators; the diagonal always stays.
    """
    if ignore is not None:
        logits = logits.masked_fill(ignore & ~_diagonal(logits), float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def multi_positive_infonce(logits: Tensor, positive: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE with several positives per row: mean of -log p over them (Khosla et al. 2020, L_out).

    Args:
        logits: (B, B) scaled similarities, rows are pictures.
        positive: (B, B) symmetric bool with a True diagonal.
        ignore: (B, B) symmetric bool pairs left out of the denominators; positives always stay.
    """
    weight = positive / positive.sum(1, keepdim=True)

    def one_way(scores: Tensor) -> Tensor:
        if ignore is None:
            return -(weight * F.log_softmax(scores, dim=1)).sum(1).mean()
        logs = F.log_softmax(scores.masked_fill(ignore & ~positive, float("-inf")), dim=1)
        return -(weight * logs.masked_fill(~positive, 0.0)).sum(1).mean()  # 0 times -inf would be NaN

    return (one_way(logits) + one_way(logits.T)) / 2


def siglip(logits: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Sigmoid loss: every pair is a yes-or-no question of its own (Zhai et al. 2023, equation 1).

    Args:
        logits: (B, B) scaled and shifted similarities, rows are pictures.
        ignore: (B, B) bool pairs left out; the diagonal always stays.

    Returns:
        Scalar, summed over pairs and divided by B.
    """
    diagonal = _diagonal(logits)
    cost = -F.logsigmoid(torch.where(diagonal, logits, -logits))
    if ignore is not None:
        cost = cost.masked_fill(ignore & ~diagonal, 0.0)
    return cost.sum() / len(logits)


def hinge(similarity: Tensor, margin: float, *, hardest: bool, ignore: Tensor | None = None) -> Tensor:
    """Two-way triplet hinge on cosines, over all in-batch negatives or the hardest per row and column.

    With ``hardest`` it is H(S) of HMMC (Yuan et al. 2023) and VSE++ (Faghri et al. 2018); without, the loss of GaLR.

    Args:
        similarity: (B, B) cosines; the diagonal is positive.
        margin: Wanted distance between a positive and a negative.
        hardest: Take the largest cost of each row and column instead of their sum.
        ignore: (B, B) bool pairs that are no negatives.

    Returns:
        Scalar, summed over the batch.
    """
    by_row, by_column = _costs(similarity, margin, ignore)
    if hardest:
        return by_row.amax(1).sum() + by_column.amax(0).sum()
    return by_row.sum() + by_column.sum()


def adaptive_triplet(similarity: Tensor, margin: float, gamma: float, ignore: Tensor | None = None) -> Tensor:
    """Hinge over all negatives, each weighted by (1 - exp(-cost))^gamma (HarMA, Huang 2024).

    The gradient flows through the weight too, as in the authors' code.

    Args:
        similarity: (B, B) cosines; the diagonal is positive.
        margin: Wanted distance between a positive and a negative.
        gamma: Focusing exponent, at least 1.
        ignore: (B, B) bool pairs that are no negatives.

    Returns:
        Scalar, half the sum over both directions.
    """
    by_row, by_column = _costs(similarity, margin, ignore)
    return torch.stack([(-torch.expm1(-c)).pow(gamma).mul(c).sum() for c in (by_row, by_column)]).sum() / 2


def affiliation(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    labels: Tensor,
    *,
    transposed: bool = False,
) -> Tensor:
    """Pull every embedding to the centre of its class in the other modality (PIR, Pan et al. 2023).

    Sample i is to be told by the centre of its class among those of all samples. Columns of one class are equal, so the
    least value is the mean log of the class sizes, not 0; where all labels differ it is InfoNCE. Centres are means over
    the batch, neither normalised again nor detached, as in the authors' code.

    Args:
        image: (B, E) embeddings, normalised here.
        text: (B, E) embeddings, normalised here.
        scale: Scalar inverse temperature.
        labels: (B,) int64 classes; samples with a negative label take no part.
        transposed: As the authors' code has it: the text term classifies image centres over texts, not texts over image
            centres.

    Returns:
        Scalar; 0, with zero gradients, where no label is known.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1), scale.float()
        known = labels >= 0
        both = known[:, None] & known
        same = (_equal(labels) & both).float()
        weight = same / same.sum(1, keepdim=True).clamp_min(1)
        by_image = scale * image @ (weight @ text).T
        by_text = scale * text @ (weight @ image).T
        if transposed:
            by_text = by_text.T
        left_out = ~(both | _diagonal(by_image))  # the diagonal keeps the rows of unknown classes finite
        total = torch.stack(
            [-F.log_softmax(m.masked_fill(left_out, float("-inf")), 1).diagonal() for m in (by_image, by_text)]
        )
        return (total * known).sum() / (2 * known.sum().clamp_min(1))


def own_classes(labels: Tensor, image_ids: Tensor) -> Tensor:
    """(B,) labels in which each picture without a class is a class of its own, as PIR's annotations have it."""
    return torch.where(labels < 0, labels.max().clamp_min(-1) + 1 + image_ids, labels)


def _costs(similarity: Tensor, margin: float, ignore: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, B) hinge costs against the positive of the row, and of the column; 0 on the diagonal."""
    skip = _diagonal(similarity)
    if ignore is not None:
        skip = skip | ignore
    positive = similarity.diagonal()
    by_row = (margin + similarity - positive[:, None]).clamp_min(0).masked_fill(skip, 0.0)
    by_column = (margin + similarity - positive[None, :]).clamp_min(0).masked_fill(skip, 0.0)
    return by_row, by_column


def _diagonal(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
