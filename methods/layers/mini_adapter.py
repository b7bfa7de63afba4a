"""The adapters of HarMA: a bottleneck with self-attention over the tokens, and a smaller one inside it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petlbench.methods.backbones.base import BranchState, Hidden

GATE_START = 0.6
"""Every gate starts here, behind a sigmoid (0.646)."""


class SelfAttention(nn.Module):
    """Multi-head self-attention with fused kernels; the form and initialisation of ``nn.MultiheadAttention``.

    Args:
        width: Width of the tokens.
        heads: Must divide ``width``.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, N, R) to (B, N, R); ``visible``, bool and broadcast to (B, heads, N, N), is True where a key may be seen."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MiniAdapter(nn.Module):
    """``u + W2 (b attention(h) + (1 - b) h)`` with ``h = W1 u``, the identity at the start; no other non-linearity.

    Args:
        width: Width R of the tokens, the bottleneck of the adapter that it sits in.
        bottleneck: Width of its own bottleneck.
        heads: Must divide ``bottleneck``.
    """

    def __init__(self, width: int, bottleneck: int, heads: int):
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.attention = SelfAttention(bottleneck, heads)
        self.up = _zero(nn.Linear(bottleneck, width))
        self.gate = nn.Parameter(torch.tensor(GATE_START))

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, N, R) to (B, N, R)."""
        inner = self.down(x)
        return x + self.up(_blend(self.gate, self.attention(inner, visible), inner))


class ModalAdapter(nn.Module):
    """HarMA's adapter (MGA) behind an MLP: ``y + s(block_gate) W_u (a z + (1 - a) u)``, a gated residual correction.

    ``z = gelu(W_d y)``, ``a = s(gate)`` and ``u = A(M(A(z)))`` with one self-attention A used twice and the mini-adapter M
    between, where there is one. The authors mix ``s y_adapted + (1 - s) y``; as the adapted ``y`` holds ``y`` itself, that is
    the same.

    Args:
        width: Width W of the token states.
        bottleneck: Width R of the bottleneck.
        heads: Must divide ``bottleneck``.
        mini: May be shared with other adapters; None leaves it out.
        visible: Which tokens see each other: ``all``, padding too; ``padding``: all but padding; ``causal``: only what comes
            before, and no padding where the tower masks it.
    """

    def __init__(self, width: int, bottleneck: int, heads: int, mini: MiniAdapter | None, visible: str):
        super().__init__()
        self.visible = visible
        self.down = nn.Linear(width, bottleneck)
        self.attention = SelfAttention(bottleneck, heads)
        self.mini = mini
        self.up = _zero(nn.Linear(bottleneck, width))
        self.gate = nn.Parameter(torch.tensor(GATE_START))
        self.block_gate = nn.Parameter(torch.tensor(GATE_START))

    def forward(self, state: BranchState) -> Tensor:
        """The branch's new contribution, (B, N, W)."""
        visible = visible_keys(state.hidden, self.visible)
        first = F.gelu(self.down(state.out))
        mixed = self.attention(first, visible)
        if self.mini is not None:
            mixed = self.mini(mixed, visible)
        mixed = self.attention(mixed, visible)
        return state.out + torch.sigmoid(self.block_gate) * self.up(_blend(self.gate, first, mixed))


def visible_keys(hidden: Hidden, kind: str) -> Tensor | None:
    """Bool mask that broadcasts to (B, heads, N, N), True where a key may be seen; None where all may.

    What is padding is told by the tower's own mask, or by the place of the end token, which is the last real one.
    """
    if kind == "all":
        return None
    steps = torch.arange(hidden.x.shape[1], device=hidden.x.device)
    real = hidden.mask
    if kind == "causal":
        order = steps <= steps[:, None]
        return order[None, None] if real is None else order & real[:, None, None]
    if real is None and hidden.pool_at is not None:
        real = steps <= hidden.pool_at[:, None]
    return None if real is None else real[:, None, None]


def _blend(gate: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return other + torch.sigmoid(gate) * (one - other)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
