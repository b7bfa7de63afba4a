"""What one query against the test split takes, measured when it is evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from petlbench.harness.data import SplitData, normalised
from petlbench.harness.encode import inference
from petlbench.harness.record import QueryPart
from petlbench.methods.backbones.base import Backbone
from petlbench.methods.base import Method
from petlbench.methods.pair import PairMethod

SAMPLE = 32
"""Pictures, and captions, on which encoding is timed."""


def encoding_s(
    method: Method, model: nn.Module, backbone: Backbone, data: SplitData, precision: str, device: torch.device
) -> tuple[float, float]:
    """Seconds per picture and per caption for what is computed of each alone, in one batch of :data:`SAMPLE` at most.

    Frozen outputs that a trial keeps are computed here like any others: a new query has none.
    """
    images = normalised(data.images.gather(range(min(SAMPLE, len(data.split.images)))).to(device), backbone)
    tokens = data.tokens[: min(SAMPLE, len(data.tokens))]
    tokens = (tokens.trimmed() if backbone.trims_text else tokens).to(device)

    def image() -> object:
        if isinstance(method, PairMethod):
            return method.prepare_image(model, method.image_states(model, images))
        return method.encode_image(model, images)

    def text() -> object:
        if isinstance(method, PairMethod):
            return method.prepare_text(model, method.text_states(model, tokens))
        return method.encode_text(model, tokens)

    with inference(model, precision, device):
        return seconds(image, device) / len(images), seconds(text, device) / len(tokens)


def product_s(images: int, texts: int, width: int, device: torch.device) -> float:
    """Seconds per pair of the product of (images, width) and (width, texts) embeddings in fp32."""
    left, right = torch.ones(images, width, device=device), torch.ones(width, texts, device=device)
    return seconds(lambda: left @ right, device) / (images * texts)


def query_part(
    encoding: tuple[float, float],
    pair_s: float,
    gallery: tuple[int, int],
    shortlist: int | None = None,
    first: tuple[float, float, float] | None = None,
) -> QueryPart:
    """Both directions from their parts.

    Args:
        encoding: Seconds per picture and per caption.
        pair_s: Seconds per pair scored.
        gallery: Pictures N and distinct captions U of the split.
        shortlist: Pairs that a query scores after a first stage; None scores the whole gallery.
        first: Of the first stage: seconds per picture, per caption, and per pair.
    """
    images, texts = gallery
    t2i, i2t = (min(shortlist, images), min(shortlist, texts)) if shortlist else (images, texts)
    before_t2i = first[1] + first[2] * images if first else 0.0
    before_i2t = first[0] + first[2] * texts if first else 0.0
    return QueryPart(
        image_encode_s=encoding[0],
        text_encode_s=encoding[1],
        pair_s=pair_s,
        pairs_per_query_t2i=t2i,
        pairs_per_query_i2t=i2t,
        t2i_s=before_t2i + encoding[1] + t2i * pair_s,
        i2t_s=before_i2t + encoding[0] + i2t * pair_s,
    )


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of the second of two runs; the first one warms caches and kernels up."""
    work()
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
