"""From a model and a split to ranks and recalls."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from petlbench.harness import metrics
from petlbench.harness.data import SplitData
from petlbench.harness.encode import inference, over_images, over_texts
from petlbench.harness.features import Pooled
from petlbench.harness.metrics import Ranks
from petlbench.harness.ranks import rank_all
from petlbench.harness.record import MetricsPart
from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import Method

MAIN_RULE = "index"
OTHER_RULES = ("optimistic", "pessimistic", "expected", "duplicate_aware")


def evaluate(
    method: Method,
    model: nn.Module,
    backbone: DualEncoder,
    data: SplitData,
    precision: str,
    device: torch.device,
    pooled: Pooled | None = None,
    side: Tensor | None = None,
) -> Ranks:
    """Exact ranks in both directions; embeddings under the trial's precision, similarities in fp32.

    Args:
        method: Gives the encoders.
        model: What its ``build`` returned.
        backbone: Gives normalisation and trimming.
        data: The split.
        precision: Of the trial.
        device: Where the model lies.
        pooled: Kept outputs of frozen towers, for head-only methods.
        side: (N, S) kept outputs of a frozen side network, one row per picture.
    """
    with inference(model, precision, device):
        if pooled is not None:
            image = method.head_image(model, pooled.image.to(device)).float()
            text = method.head_text(model, pooled.text.to(device)).float()
        else:
            image = over_images(
                data, backbone, lambda x, beside=None: method.encode_image_beside(model, x, beside), device, side=side
            )
            text = over_texts(data, backbone, lambda t: method.encode_text(model, t), device)
    return rank_all(image, text, data.split.owner, data.split.text_ids)


def metrics_part(ranks: Ranks) -> MetricsPart:
    """Recalls under the main tie rule and, beside them, under the others."""
    return MetricsPart(
        recalls=metrics.recalls(ranks, MAIN_RULE),
        other_rules={rule: metrics.recalls(ranks, rule) for rule in OTHER_RULES},
        tie_rule=MAIN_RULE,
        metric_version=metrics.METRIC_VERSION,
    )
