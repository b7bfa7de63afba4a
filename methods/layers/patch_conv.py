"""Convolutional bypasses: a bottleneck with a small convolution over the neighbours of each token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petlbench.errors import PetlbenchError
from petlbench.methods.backbones.base import BranchState
from petlbench.methods.layers.bottleneck import quick_gelu


class GridError(PetlbenchError):
    """The tokens of a picture do not fill a square grid."""


class _Bypass(nn.Module):
    """``out + scale * up(dropout(g(conv(g(down(normed))))))`` with g QuickGELU; all maps have a bias.

    Down starts Xavier-uniform, the convolution as given by ``identity``, up and biases at zero: it adds nothing at first.
    """

    conv: nn.Conv1d | nn.Conv2d

    def __init__(self, width: int, conv: nn.Conv1d | nn.Conv2d, dropout: float, scale: float, identity: bool):
        super().__init__()
        hidden = conv.in_channels
        self.dropout = dropout
        self.scale = scale
        self.down = nn.Linear(width, hidden)
        self.conv = conv
        self.up = nn.Linear(hidden, width)
        nn.init.xavier_uniform_(self.down.weight)
        if identity:
            nn.init.zeros_(conv.weight)
            with torch.no_grad():
                self._own_tap().copy_(torch.eye(hidden))
        else:
            nn.init.xavier_uniform_(conv.weight)
        for zero in (self.down.bias, conv.bias, self.up.weight, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, state: BranchState) -> Tensor:
        """The branch's new contribution, (B, N, W)."""
        inner = self._mix(quick_gelu(self.down(state.normed)), state.hidden.prefix)
        inner = F.dropout(quick_gelu(inner), self.dropout, self.training)
        return torch.add(state.out, self.up(inner), alpha=self.scale)

    def _own_tap(self) -> Tensor:
        """(h, h) weights that a token's own state is multiplied with."""
        raise NotImplementedError

    def _mix(self, x: Tensor, prefix: int) -> Tensor:
        """(B, N, h) convolved over the tokens."""
        raise NotImplementedError


class PatchBypass(_Bypass):
    """Convpass of an image tower: 3 x 3 over the patch grid; each leading token is a 1 x 1 map of its own.

    Args:
        width: Width W of the token states.
        hidden: Width h of the bottleneck.
        dropout: Before the up-projection, while training.
        scale: Constant factor of what is added.
        identity: Start the convolution as the identity (Xavier-uniform otherwise).
    """

    def __init__(self, width: int, hidden: int, dropout: float, scale: float, identity: bool = True):
        super().__init__(width, nn.Conv2d(hidden, hidden, 3, padding=1), dropout, scale, identity)

    def _own_tap(self) -> Tensor:
        return self.conv.weight[:, :, 1, 1]

    def _mix(self, x: Tensor, prefix: int) -> Tensor:
        patches = x[:, prefix:].transpose(1, 2)
        side = math.isqrt(patches.shape[2])
        if side * side != patches.shape[2]:
            raise GridError(
                f"convpass: {x.shape[1]} tokens, {prefix} of them no patches, leave {patches.shape[2]}, which is no square "
                "grid; give square pictures"
            )
        mixed = self.conv(patches.unflatten(2, (side, side))).flatten(2).transpose(1, 2)
        if not prefix:
            return mixed
        # Of a 3 x 3 kernel on a 1 x 1 map only the centre meets a value.
        lone = F.linear(x[:, :prefix], self._own_tap(), self.conv.bias)
        return torch.cat([lone, mixed], 1)


class CausalBypass(_Bypass):
    """The same for words: width 3 over a token and the two before it, so that no token sees a later one.

    Args:
        width: Width W of the token states.
        hidden: Width h of the bottleneck.
        dropout: Before the up-projection, while training.
        scale: Constant factor of what is added.
        identity: Start the convolution as the identity (Xavier-uniform otherwise).
    """

    def __init__(self, width: int, hidden: int, dropout: float, scale: float, identity: bool = True):
        super().__init__(width, nn.Conv1d(hidden, hidden, 3), dropout, scale, identity)

    def _own_tap(self) -> Tensor:
        return self.conv.weight[:, :, 2]

    def _mix(self, x: Tensor, prefix: int) -> Tensor:
        return self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
