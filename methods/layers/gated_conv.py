"""Restormer's gated feed-forward with a depth-wise convolution (GDFN), on the patches of a picture."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5


class GatedConv(nn.Module):
    """``X + P2(GELU(U1) * U2)`` with ``[U1, U2] = DW(P1(LN(X)))``: Zamir et al., Restormer, CVPR 2022, eq. 2.

    P1 and P2 are maps of each patch, DW a 3 x 3 convolution of each channel over the grid with zeros around it; none has
    a bias. LN is over channels, with weight and bias.

    Args:
        width: Width W of the patch states.
        hidden: Channels h behind the gate; P1 makes twice as many.
        grid: Rows and columns of the patch grid.
        zero_init: Start P2 at zero, so that the layer starts as the identity.
    """

    def __init__(self, width: int, hidden: int, grid: tuple[int, int], zero_init: bool = False):
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.project_in = nn.Linear(width, 2 * hidden, bias=False)  # starts as PyTorch's 1 x 1 convolution does
        self.conv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Linear(hidden, width, bias=False)
        if zero_init:
            nn.init.zeros_(self.project_out.weight)

    @staticmethod
    def size(width: int, hidden: int) -> int:
        """Its parameters: 3 W h + 18 h + 2 W."""
        return 3 * width * hidden + 18 * hidden + 2 * width

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, W) patches in raster order to (B, P, W)."""
        u = self.project_in(self.norm(x)).transpose(1, 2).unflatten(2, self.grid)
        u1, u2 = self.conv(u).flatten(2).transpose(1, 2).chunk(2, dim=2)
        return x + self.project_out(F.gelu(u1) * u2)
