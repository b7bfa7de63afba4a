"""A small image network that groups pixels around local centres (Ma et al., Image as Set of Points, ICLR 2023), as CUP uses it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 128
"""Of the first stage; the second has twice as much."""
CENTRES = (4, 2)
"""Side of the grid of centres in every region, per stage."""
FOLDS = (8, 4)
"""Regions per side and stage."""
HEADS = 4
HEAD_WIDTH = 32
MLP_RATIO = 8
LAYER_SCALE = 1e-5
_STRIDE = 4

OFFICIAL_BLOCK = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "cluster.points.": "token_mixer.f.",
    "cluster.values.": "token_mixer.v.",
    "cluster.out.": "token_mixer.proj.",
    "cluster.alpha": "token_mixer.sim_alpha",
    "cluster.beta": "token_mixer.sim_beta",
    "mlp.0.": "mlp.fc1.",
    "mlp.2.": "mlp.fc2.",
    "scale1": "layer_scale_1",
    "scale2": "layer_scale_2",
}
"""Our names within a block to those of CUP's code."""


class ContextCluster(nn.Module):
    """Two stages of one block each: pictures (B, 3, R, R) to vectors (B, D).

    Points are pixels with their coordinates, reduced four-fold by a convolution; between the stages two-fold. The form and
    its numbers are those of CUP's code.

    Args:
        out: Width D of the result.
        width: Channels of the first stage; :data:`WIDTH` in CUP's code.
    """

    def __init__(self, out: int, width: int = WIDTH):
        super().__init__()
        widths = (width, 2 * width)
        self.reduce = nn.ModuleList(
            [nn.Conv2d(5, widths[0], _STRIDE, _STRIDE), nn.Conv2d(widths[0], widths[1], 3, 2, padding=1)]
        )
        self.stages = nn.ModuleList([_Block(w, c, f) for w, c, f in zip(widths, CENTRES, FOLDS, strict=True)])
        self.norm = nn.GroupNorm(1, widths[-1])
        self.head = nn.Linear(widths[-1], out)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) normalised pictures to (B, D)."""
        side_y, side_x = images.shape[-2:]
        # Coordinates from -0.5 to 0.5, the row first.
        y = torch.linspace(-0.5, 0.5, side_y, device=images.device, dtype=images.dtype)
        x = torch.linspace(-0.5, 0.5, side_x, device=images.device, dtype=images.dtype)
        place = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(images), -1, -1, -1)
        points = torch.cat([images, place], 1)
        for reduce, block in zip(self.reduce, self.stages, strict=True):
            points = block(reduce(points))
        return self.head(self.norm(points).mean((-2, -1)))


class _Block(nn.Module):
    """Clustering, then an MLP per point; both behind a norm over all channels and points, and scaled into the residual."""

    def __init__(self, width: int, centres: int, fold: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(1, width)
        self.cluster = _Cluster(width, centres, fold)
        self.norm2 = nn.GroupNorm(1, width)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width))
        self.scale1 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.scale2 = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, H, H) to the same shape."""
        x = x + self.scale1[:, None, None] * self.cluster(self.norm1(x))
        change = self.scale2 * self.mlp(self.norm2(x).movedim(1, -1))
        return x + change.movedim(-1, 1)


class _Cluster(nn.Module):
    """Every point goes to the most similar centre of its region, adds to it, and reads it back, by similarity.

    Within a region and head, with values v, centre values c and similarities s (0 but for the chosen centre):
    ``centre = (sum_n s_n v_n + c) / (sum_n s_n + 1)``, ``out_n = s_n centre``.
    """

    def __init__(self, width: int, centres: int, fold: int):
        super().__init__()
        inner = HEADS * HEAD_WIDTH
        self.fold = fold
        self.points = nn.Conv2d(width, inner, 1)
        self.values = nn.Conv2d(width, inner, 1)
        self.out = nn.Conv2d(inner, width, 1)
        self.alpha = nn.Parameter(torch.ones(1))
        self.beta = nn.Parameter(torch.zeros(1))
        self.centres = centres

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, H, H) to the same shape."""
        batch, _, height, width = x.shape
        rows, columns = _divisor(height, self.fold), _divisor(width, self.fold)

        def regions(points: Tensor) -> Tensor:
            """(B heads rows columns, C, H / rows, W / columns)."""
            split = points.view(batch * HEADS, HEAD_WIDTH, rows, height // rows, columns, width // columns)
            return split.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

        points, values = regions(self.points(x)), regions(self.values(x))
        centres, centre_values = self._pooled(points).flatten(2), self._pooled(values).flatten(2).transpose(1, 2)
        cosine = F.normalize(centres, dim=1).transpose(1, 2) @ F.normalize(points.flatten(2), dim=1)
        similarity = torch.sigmoid(self.beta + self.alpha * cosine)  # (regions, centres, points)
        chosen = torch.zeros_like(similarity).scatter_(1, similarity.argmax(1, keepdim=True), 1.0)
        similarity = similarity * chosen
        gathered = similarity @ values.flatten(2).transpose(1, 2) + centre_values
        gathered = gathered / (similarity.sum(-1, keepdim=True) + 1)
        out = (similarity.transpose(1, 2) @ gathered).transpose(1, 2)  # (regions, C, points)
        out = out.reshape(batch * HEADS, rows, columns, HEAD_WIDTH, height // rows, width // columns)
        return self.out(out.permute(0, 3, 1, 4, 2, 5).reshape(batch, HEADS * HEAD_WIDTH, height, width))

    def _pooled(self, region: Tensor) -> Tensor:
        """(R, C, h, w) to the means around the centres, (R, C, centres, centres)."""
        height, width, n = region.shape[-2], region.shape[-1], self.centres
        if height % n or width % n:
            return F.adaptive_avg_pool2d(region, n)
        # The same where the cells are equal; the library's kernel takes ten times as long on regions of a few points.
        return region.unflatten(-2, (n, height // n)).unflatten(-1, (n, width // n)).mean((-3, -1))


def _divisor(side: int, wanted: int) -> int:
    """The largest number of regions per side, up to the wanted one, that divides the grid."""
    return max(n for n in range(1, min(side, wanted) + 1) if side % n == 0)


def cluster_scalars(out: int, first: int = WIDTH) -> int:
    """Number of scalars, by hand from CUP's numbers: reductions, two blocks, last norm and head."""
    second = 2 * first
    total = 5 * 16 * first + first + first * 9 * second + second + 2 * second + (second + 1) * out
    for width in (first, second):
        total += 4 * width + 2 * (width * 128 + 128) + 128 * width + width + 2  # norms, clustering
        total += 16 * width * width + 9 * width + 2 * width  # MLP and scales
    return total
