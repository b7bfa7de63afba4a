"""From a model and a split to ranks and recalls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from petlbench.datasets.split import Split
from petlbench.harness import metrics
from petlbench.harness.data import SplitData
from petlbench.harness.encode import inference, over_images, over_texts
from petlbench.harness.kept import NOTHING, Kept
from petlbench.harness.metrics import Ranks
from petlbench.harness.ranks import rank_all
from petlbench.harness.record import MetricsPart, SplitPart, TwoStagePart
from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import Method

if TYPE_CHECKING:
    from petlbench.harness.first_stage import FirstScores
    from petlbench.harness.pair_progress import PairCost

MAIN_RULE = "index"
OTHER_RULES = ("optimistic", "pessimistic", "expected", "duplicate_aware")


@dataclass(frozen=True)
class Evaluated:
    """A split ranked by a model.

    Attributes:
        ranks: Exact under the scoring named by ``scoring``.
        scoring: How the score of a pair comes about.
        two_stage: Of a shortlist, what it was and what it lost.
        cost: Of pairs, the time they took.
        first: What ranked before a shortlist.
    """

    ranks: Ranks
    scoring: Literal["embeddings", "pairs", "two_stage"] = "embeddings"
    two_stage: TwoStagePart | None = None
    cost: PairCost | None = None
    first: FirstScores | None = None


def embeddings(
    method: Method,
    model: nn.Module,
    backbone: DualEncoder,
    data: SplitData,
    precision: str,
    device: torch.device,
    kept: Kept = NOTHING,
) -> tuple[Tensor, Tensor]:
    """(N, E) of every picture and (U, E) of every distinct caption, fp32 on ``device``, not L2-normalised.

    Args:
        method: Gives the encoders.
        model: What its ``build`` returned.
        backbone: Gives normalisation and trimming.
        data: The split.
        precision: Of the trial.
        device: Where the model lies.
        kept: Outputs of frozen modules for this split.
    """
    with inference(model, precision, device):
        if kept.pooled is not None:
            image = method.head_image(model, kept.pooled.image.to(device)).float()
            return image, method.head_text(model, kept.pooled.text.to(device)).float()
        image = over_images(
            data, backbone, lambda x, beside=None: method.encode_image_beside(model, x, beside), device, side=kept.side
        )
        return image, over_texts(data, backbone, lambda t: method.encode_text(model, t), device)


def evaluate(
    method: Method,
    model: nn.Module,
    backbone: DualEncoder,
    data: SplitData,
    precision: str,
    device: torch.device,
    kept: Kept = NOTHING,
    top: int = 0,
) -> Evaluated:
    """Exact ranks of a dual encoder in both directions; similarities in fp32.

    Arguments as of :func:`embeddings`, and first answers to keep of every query.
    """
    image, text = embeddings(method, model, backbone, data, precision, device, kept)
    return Evaluated(rank_all(image, text, data.split.owner, data.split.text_ids, top=top))


def metrics_part(evaluated: Evaluated) -> MetricsPart:
    """Recalls under the main tie rule and, beside them, under the others."""
    ranks = evaluated.ranks
    return MetricsPart(
        recalls=metrics.recalls(ranks, MAIN_RULE),
        other_rules={rule: metrics.recalls(ranks, rule) for rule in OTHER_RULES},
        tie_rule=MAIN_RULE,
        metric_version=metrics.METRIC_VERSION,
        scoring=evaluated.scoring,
        two_stage=evaluated.two_stage,
    )


def split_part(split: Split, references: bool) -> SplitPart:
    """What a record says of a split; with ``references``, also what a perfect scorer and one of classes reach on it."""
    part = SplitPart(
        images=len(split.images),
        captions=len(split.captions),
        distinct_captions=len(split.distinct),
        sha256=split.sha256,
    )
    if references:
        part.ceiling = metrics.ceiling(split.owner, split.text_ids)
        if split.labels is not None:
            part.class_only = metrics.class_oracle(split.owner, split.labels)
    return part
