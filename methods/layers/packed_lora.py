"""Low-rank updates of packed attention: for LoRA and its kin on open_clip."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from petlbench.methods.layers.packed_attention import PARTS, PackedAttention


class PackedLora(PackedAttention):
    """Every chosen projection W becomes W + scale B A, with A Kaiming-uniform (a = sqrt 5) and B zero.

    Computed as ``W x + B (scale A x)``, so that no gradient of the size of W is ever formed.

    Args:
        attention: The frozen attention of width W.
        rank: Rank r of every update.
        scale: Factor of the update.
        parts: Which of ``q k v out_proj`` get an update of their own, A (r, W) and B (W, r); or ``in_proj`` for one A
            (r, W) and one B (3 W, r) of q, k and v together, the form of peft's wrapper.
        dropout: Rate on the input of every update, drawn for each on its own.
    """

    def __init__(
        self,
        attention: nn.MultiheadAttention,
        rank: int,
        scale: float,
        parts: tuple[str, ...] = PARTS,
        dropout: float = 0.0,
    ):
        super().__init__(attention)
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.ParameterDict({part: kaiming(rank, self.width) for part in parts})
        self.lora_B = nn.ParameterDict(
            {part: torch.zeros(self.width * (3 if part == "in_proj" else 1), rank) for part in parts}
        )

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, W) input to updated queries, keys and values, (B, N, W) each."""
        frozen = super().qkv(x)
        if "in_proj" in self.lora_A:
            updates = self.update("in_proj", x).chunk(3, -1)
            return tuple(y + update for y, update in zip(frozen, updates, strict=True))
        return tuple(
            y + self.update(part, x) if part in self.lora_A else y for part, y in zip("qkv", frozen, strict=True)
        )

    def out(self, x: Tensor) -> Tensor:
        """(B, N, W) joined heads to (B, N, W), updated where chosen."""
        frozen = super().out(x)
        return frozen + self.update("out_proj", x) if "out_proj" in self.lora_A else frozen

    def update(self, part: str, x: Tensor) -> Tensor:
        """scale B A x of one projection."""
        low = functional.linear(self.dropout(x), self.lora_A[part])
        return functional.linear(low * self.scale, self.lora_B[part])


class PackedDora(PackedLora):
    """Every chosen projection W becomes m (W + scale B A) / |W + scale B A|, norms and m per output row.

    As in peft's ``DoraLinearLayer``: m starts at |W|, and no gradient flows through the norm (Liu et al. 2024, sec. 4.3).

    Args:
        attention: The frozen attention of width W.
        rank: Rank of every update.
        scale: Factor of the update.
        parts: Which of ``q k v out_proj`` are decomposed.
    """

    def __init__(self, attention: nn.MultiheadAttention, rank: int, scale: float, parts: tuple[str, ...] = PARTS):
        super().__init__(attention, rank, scale, parts)
        self.lora_magnitude_vector = nn.ParameterDict(
            {part: torch.linalg.vector_norm(self.weight_of(part).detach().float(), dim=1) for part in parts}
        )

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, W) input to decomposed queries, keys and values, (B, N, W) each."""
        base = self.base_layer
        frozen = functional.linear(x, base.in_proj_weight).chunk(3, -1)
        biases = base.in_proj_bias.chunk(3)
        return tuple(self._part(*group, x) for group in zip("qkv", frozen, biases, strict=True))

    def out(self, x: Tensor) -> Tensor:
        """(B, N, W) joined heads to (B, N, W), decomposed where chosen."""
        base = self.base_layer.out_proj
        return self._part("out_proj", functional.linear(x, base.weight), base.bias, x)

    def _part(self, part: str, y: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        if part not in self.lora_A:
            return y + bias
        return torch.addcmul(bias, y + self.update(part, x), self._gain(part))

    def _gain(self, part: str) -> Tensor:
        """(W,) magnitude over the norm of the updated rows."""
        with torch.no_grad(), torch.autocast(self.lora_A[part].device.type, enabled=False):
            weight = torch.addmm(self.weight_of(part), self.lora_B[part], self.lora_A[part], alpha=self.scale)
            norm = torch.linalg.vector_norm(weight, dim=1)
        return self.lora_magnitude_vector[part] / norm


def kaiming(rank: int, width: int) -> Tensor:
    """(rank, width) uniform in +-1 / sqrt(width): the default of ``nn.Linear``, which LoRA starts A from."""
    return nn.init.kaiming_uniform_(torch.empty(rank, width), a=math.sqrt(5))
