"""Self-attention on the weights of an ``nn.MultiheadAttention``, with projections that a method can change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from petlbench.methods.backbones.open_clip_towers import attended
from petlbench.methods.base import MethodError

PARTS = ("q", "k", "v", "out_proj")
"""The four projections of an attention, as packed attention calls them."""


class PackedAttention(nn.Module):
    """Stands in for an ``nn.MultiheadAttention`` and computes the same, through :meth:`qkv` and :meth:`out`.

    open_clip packs q, k and v into one matrix, and PyTorch's own forward reads the weights of the output projection
    without calling it, so a wrapper around a submodule has no effect. Here both projections are calls that a subclass
    overrides; the frozen weights stay where they are, in ``base_layer``.

    Args:
        attention: Batch-first self-attention with packed weights of width W.

    Raises:
        MethodError: The attention is of another form.
    """

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        plain = attention.batch_first and attention.in_proj_weight is not None
        if not plain or attention.bias_k is not None or attention.add_zero_attn:
            raise MethodError(
                "packed attention: expected a batch-first nn.MultiheadAttention with one in_proj_weight, without bias_k and "
                f"without add_zero_attn, found {attention}; choose another backbone or targets=mlp"
            )
        self.base_layer = attention

    @property
    def width(self) -> int:
        """Width W of the token states."""
        return self.base_layer.embed_dim

    def weight_of(self, part: str) -> Tensor:
        """(W, W) frozen matrix of one of :data:`PARTS`, a view."""
        if part == "out_proj":
            return self.base_layer.out_proj.weight
        index = PARTS.index(part)
        return self.base_layer.in_proj_weight[index * self.width : (index + 1) * self.width]

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, W) input to queries, keys and values, (B, N, W) each."""
        return functional.linear(x, self.base_layer.in_proj_weight, self.base_layer.in_proj_bias).chunk(3, -1)

    def out(self, x: Tensor) -> Tensor:
        """(B, N, W) joined heads to (B, N, W)."""
        return functional.linear(x, self.base_layer.out_proj.weight, self.base_layer.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        **other: Any,
    ) -> tuple[Tensor, None]:
        """Fused attention of ``query`` on itself.

        Args:
            query: (B, N, W); ``key`` and ``value`` must be the same tensor.
            key: See ``query``.
            value: See ``query``.
            need_weights: Must be False: the attention maps are never computed.
            attn_mask: (N, N) or (B * heads, N, N), added to the logits; a boolean one hides where it is True.
            other: Further arguments of ``nn.MultiheadAttention``, only at their defaults.

        Raises:
            MethodError: Cross-attention, attention maps or a padding mask are asked for.
        """
        unused = [name for name, given in other.items() if given is not None and given is not False]
        another = not (_same(query, key) and _same(query, value))
        if another or need_weights or unused:
            raise MethodError(
                "packed attention: only self-attention without attention maps is supported; found "
                f"need_weights={need_weights}, another key or value: {another}, "
                f"further arguments: {', '.join(unused) or 'none'}"
            )
        base = self.base_layer
        q, k, v = self.qkv(query)
        if attn_mask is not None:
            attn_mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(q.dtype)
        joined = attended(q, k, v, base.num_heads, attn_mask, base.dropout if self.training else 0.0)
        return self.out(joined), None


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether both are one tensor, or views of the same values, as which ZeRO 3 hands the arguments of a module on."""
    if one is other:
        return True
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
