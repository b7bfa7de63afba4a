"""Weights of official pre-norm vision blocks (timm's names, q, k, v packed or apart) put into open_clip ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.methods.backbones.base import Tower

_NAMES = {"norm1": "ln_1", "norm2": "ln_2", "attn.proj": "attn.out_proj", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}


def put_blocks(tower: Tower, official: Mapping[str, Tensor], root: str = "") -> None:
    """Fill every block of ``tower`` from ``{root}blocks.N.*``; what was attached to a block is left as it is."""
    for index, block in enumerate(tower.blocks):
        prefix = f"{root}blocks.{index}."
        _put_block(block, {n.removeprefix(prefix): t for n, t in official.items() if n.startswith(prefix)})


def _put_block(block: nn.Module, official: Mapping[str, Tensor]) -> None:
    own = {}
    for name, tensor in official.items():
        layer, part = name.rsplit(".", 1)
        if (known := _NAMES.get(layer.removeprefix("mlp."))) is not None:
            own[f"{known}.{part}"] = tensor
    for part in ("weight", "bias"):
        apart = [official[k] for k in (f"attn.{p}_proj.{part}" for p in "qkv") if k in official]
        own[f"attn.in_proj_{part}"] = torch.cat(apart) if apart else official[f"attn.qkv.{part}"]
    missing, unexpected = block.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(name.startswith("attached_") for name in missing)


def relative(ours: Tensor, theirs: Any) -> float:
    """Largest difference, relative to the largest expected value."""
    expected = torch.as_tensor(theirs)
    assert ours.shape == expected.shape
    return ((ours - expected).abs().max() / expected.abs().max()).item()
