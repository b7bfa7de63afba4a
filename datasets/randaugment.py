"""RandAugment (Cubuk et al. 2020) in the form that HarMA and its ancestors train with, for whole uint8 batches.

Kinds, magnitudes, fill and probability were read in ``dataset/randaugment.py`` and ``dataset/__init__.py`` of
seekerhuang/HarMA. Two things differ there: sharpened values beyond 0 to 255 wrap around (here they are clipped), and
bilinear weights are rounded to 1/32 pixel (here they are not).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from torch import Generator, Tensor
from torch.nn import functional

KINDS = (
    "identity",
    "autocontrast",
    "equalize",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
)
"""What a round may do, each with the same chance."""

_LEVELS = 10
_FILL = 128.0  # grey, where a geometric change uncovers nothing of the picture


class RandAugment(BaseModel):
    """Rounds of one randomly chosen change each.

    Attributes:
        ops: Rounds; kinds are drawn with replacement.
        magnitude: Strength of every kind from 0 to 10. At 7: shear 0.21, shift 7 pixels of 224 (in proportion at other
            sizes), rotation 21 degrees, brightness and sharpness factor 1.36. Geometric changes draw their direction.
        probability: Of a round's change to be made at all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ops: NonNegativeInt = 2
    magnitude: Annotated[float, Field(ge=0, le=_LEVELS)] = 7
    probability: Annotated[float, Field(ge=0, le=1)] = 0.5


def rand_augment(images: Tensor, config: RandAugment, generator: Generator, sparse: bool | None = None) -> Tensor:
    """Randomly changed pictures; the same generator state gives the same result.

    Args:
        images: (B, 3, R, R) uint8.
        config: How many changes, how strong, how often.
        generator: Source of chance, on the CPU or on the device of the pictures.
        sparse: Compute a change for the pictures that it befalls only, which a GPU would have to wait for; None: on
            the CPU. The result is the same.

    Returns:
        (B, 3, R, R) uint8.
    """
    sparse = images.device.type == "cpu" if sparse is None else sparse
    batch = len(images)
    for _ in range(config.ops):
        drawn = torch.rand(3, batch, generator=generator, device=generator.device).to(images.device)
        kind = (drawn[0] * len(KINDS)).long().clamp(max=len(KINDS) - 1)
        kind = torch.where(drawn[1] < config.probability, kind, 0)
        sign = torch.where(drawn[2] < 0.5, -1.0, 1.0)
        for name, change in _CHANGES.items():
            fixed = partial(change, factor=config.magnitude / _LEVELS * 1.8 + 0.1)
            images = _changed(images, kind == KINDS.index(name), fixed, sparse)
        maps = _maps(kind, sign * config.magnitude / _LEVELS, images.shape[-1])
        images = _changed(images, kind >= KINDS.index("shear_x"), _moved, sparse, maps)
    return images


def _changed(
    images: Tensor, chosen: Tensor, change: Callable[..., Tensor], sparse: bool, *parameters: Tensor
) -> Tensor:
    """The change made to the chosen pictures."""
    if sparse:
        rows = chosen.nonzero().squeeze(1)
        if not len(rows):
            return images
        return images.index_copy(0, rows, change(images[rows], *(p[rows] for p in parameters)))
    return torch.where(chosen.view(-1, 1, 1, 1), change(images, *parameters), images)


def _looked_up(images: Tensor, table: Tensor) -> Tensor:
    """Every value replaced by its entry in the (B, 3, 256) table of its picture and channel."""
    return table.to(torch.uint8).gather(2, images.flatten(2).long()).view_as(images)


def _autocontrast(images: Tensor, factor: float) -> Tensor:
    flat = images.flatten(2)
    low, high = (v.to(torch.float64)[..., None] for v in (flat.amin(2), flat.amax(2)))
    values = torch.arange(256, dtype=torch.float64, device=images.device).expand(*flat.shape[:2], 256)
    scale = 255 / (high - low).clamp(min=1)
    return _looked_up(images, torch.where(high > low, (values * scale - low * scale).clamp(0, 255), values))


def _equalize(images: Tensor, factor: float) -> Tensor:
    batch, channels = images.shape[:2]
    offset = 256 * torch.arange(batch * channels, device=images.device).view(batch, channels, 1)
    places = (images.flatten(2).long() + offset).flatten()
    counts = torch.zeros(batch * channels * 256, dtype=torch.int64, device=images.device)
    counts = counts.scatter_add_(0, places, torch.ones_like(places)).view(batch, channels, 256)
    highest = images.flatten(2).amax(2, keepdim=True).long()
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)) // 255  # the highest value's pixels do not count
    below = counts.cumsum(2) - counts + step // 2
    values = torch.arange(256, device=images.device).expand_as(counts)
    return _looked_up(images, torch.where(step > 0, (below // step.clamp(min=1)).clamp(max=255), values))


def _brightness(images: Tensor, factor: float) -> Tensor:
    values = (torch.arange(256, dtype=torch.float32, device=images.device) * factor).clamp(max=255)
    return _looked_up(images, values.expand(*images.shape[:2], 256))


def _sharpness(images: Tensor, factor: float) -> Tensor:
    """Away from the 3 x 3 mean whose middle weighs 5 of 13; the outermost pixels stay."""
    if images.shape[-1] < 3:
        return images
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    pixels = images.float()
    smooth = (functional.conv2d(pixels, kernel, groups=3) / 13).round_()
    out = images.clone()
    inner = torch.lerp(smooth, pixels[..., 1:-1, 1:-1], factor)
    out[..., 1:-1, 1:-1] = inner.clamp_(0, 255).to(torch.uint8)
    return out


_CHANGES = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "brightness": _brightness,
    "sharpness": _sharpness,
}


def _maps(kind: Tensor, strength: Tensor, side: int) -> Tensor:
    """(B, 2, 3) from places in the changed picture to places in the old one, pixels counted from 0.

    Shears leave the first row or column where it is; a rotation turns about (R / 2, R / 2).
    """

    def only(name: str, values: Tensor) -> Tensor:
        return torch.where(kind == KINDS.index(name), values, 0.0)

    shear_x, shear_y = only("shear_x", 0.3 * strength), only("shear_y", 0.3 * strength)
    shift = 10 * side / 224 * strength
    angle = only("rotate", math.radians(30) * strength)
    sine, cosine = angle.sin(), angle.cos()
    middle = side / 2
    across = torch.stack([cosine, -sine - shear_x, middle * (1 - cosine + sine) + only("translate_x", shift)], -1)
    down = torch.stack([sine - shear_y, cosine, middle * (1 - cosine - sine) + only("translate_y", shift)], -1)
    return torch.stack([across, down], 1)


def _moved(images: Tensor, maps: Tensor) -> Tensor:
    """Bilinear look-up at the mapped places; grey outside the picture."""
    side = images.shape[-1]
    steps = torch.arange(side, dtype=torch.float32, device=images.device)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], -1)
    grid = torch.einsum("hwk,bck->bhwc", places, maps) * (2 / max(1, side - 1)) - 1
    moved = functional.grid_sample(images.float() - _FILL, grid, "bilinear", "zeros", align_corners=True)
    return (moved + _FILL).round_().clamp_(0, 255).to(torch.uint8)
