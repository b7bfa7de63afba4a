"""Running the towers over a whole split: each picture once, each distinct caption string once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from petlbench.methods.backbones.base import Backbone, Tokens

if TYPE_CHECKING:
    from petlbench.harness.data import SplitData

EVAL_BATCH = 128


@contextmanager
def inference(model: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    """Evaluation mode, no gradients, autocast where the trial trains under it; the former mode comes back after."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        model.train(was_training)


def over_images(
    data: SplitData,
    backbone: Backbone,
    encode: Callable[..., Tensor],
    device: torch.device,
    batch: int = EVAL_BATCH,
    side: Tensor | None = None,
) -> Tensor:
    """(N, D) fp32 outputs of ``encode`` for every picture of the split, on ``device``.

    With ``side``, (N, S) kept outputs of a frozen network, ``encode`` gets their rows as its second argument.
    """
    from petlbench.harness.data import normalised

    total = len(data.split.images)
    parts = []
    for start in range(0, total, batch):
        raw = data.images.gather(range(start, min(start + batch, total))).to(device)
        beside = () if side is None else (side[start : start + batch].to(device),)
        parts.append(encode(normalised(raw, backbone), *beside).float())
    return torch.cat(parts)


def over_texts(
    data: SplitData,
    backbone: Backbone,
    encode: Callable[[Tokens], Tensor],
    device: torch.device,
    batch: int = EVAL_BATCH,
) -> Tensor:
    """(U, D) fp32 outputs of ``encode`` for every distinct caption, on ``device``.

    Where trimming is exact, captions are encoded in order of length, so that short ones are not padded to long ones.
    """
    order = (
        torch.argsort(data.tokens.mask.sum(1), stable=True) if backbone.trims_text else torch.arange(len(data.tokens))
    )
    out: Tensor | None = None
    for rows in order.split(batch):
        tokens = data.tokens[rows]
        values = encode((tokens.trimmed() if backbone.trims_text else tokens).to(device)).float()
        if out is None:
            out = torch.empty(len(order), values.shape[1], device=device)
        out[rows.to(device)] = values
    assert out is not None, "a split has at least one caption"
    return out
