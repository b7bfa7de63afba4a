"""IEFT's "SE" block: a transformer block over the transposed patch matrix, in which channels attend to channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from petlbench.errors import PetlbenchError

MLP_RATIO = 4
LAYER_NORM_EPS = 1e-6


class HeadsError(PetlbenchError):
    """The heads of a transposed block do not divide its width, the number of patches."""


def heads_for(patches: int, most: int = 12) -> int:
    """The largest divisor of the number of patches up to ``most``: 12 for 144 patches, 7 for 49."""
    return max(heads for heads in range(1, most + 1) if patches % heads == 0)


class TransposedBlock(nn.Module):
    """A pre-norm transformer block of width P on the W channels of (B, P, W) patches, each a token of P numbers.

    With Z the (B, W, P) transpose: ``Z + A(LN(Z))``, then ``Z + MLP(LN(Z))``, transposed back. The W x W attention per head
    mixes channels, the MLP mixes positions, so P and the order of the patches are part of what is learnt (Tang et al. 2023).

    Args:
        patches: Number of patches P.
        heads: Attention heads; must divide P.
        dropout: After both branches and within the MLP, while training; none on attention.
        zero_init: Start both branches' last projections at zero, so that the block starts as the identity.

    Raises:
        HeadsError: ``heads`` does not divide ``patches``.
    """

    def __init__(self, patches: int, heads: int, dropout: float = 0.0, zero_init: bool = False):
        super().__init__()
        if patches % heads:
            raise HeadsError(
                f"se_heads={heads} does not divide the {patches} patches of a picture; choose a divisor, such as "
                f"{heads_for(patches)}, or leave it out"
            )
        self.heads = heads
        self.dropout = dropout
        self.norm1 = nn.LayerNorm(patches, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(patches, 3 * patches)
        self.proj = nn.Linear(patches, patches)
        self.norm2 = nn.LayerNorm(patches, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(patches, MLP_RATIO * patches)
        self.fc2 = nn.Linear(MLP_RATIO * patches, patches)
        for linear in (self.qkv, self.proj, self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if zero_init:
            for linear in (self.proj, self.fc2):
                nn.init.zeros_(linear.weight)

    @staticmethod
    def size(patches: int) -> int:
        """Its parameters: 12 P^2 + 13 P."""
        return 12 * patches**2 + 13 * patches

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, W) patches to (B, P, W)."""
        z = x.transpose(1, 2)
        z = z + self._dropped(self._attended(self.norm1(z)))
        inner = self._dropped(F.gelu(self.fc1(self.norm2(z))))
        z = z + self._dropped(self.fc2(inner))
        return z.transpose(1, 2)

    def _attended(self, z: Tensor) -> Tensor:
        q, k, v = self.qkv(z).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _dropped(self, z: Tensor) -> Tensor:
        return F.dropout(z, self.dropout, self.training)
