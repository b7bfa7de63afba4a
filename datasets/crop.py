"""Cutting a box out of every picture and scaling it to the full size, for whole uint8 batches.

Both ways follow Pillow's bicubic filter (a = -0.5, weights cut off at the box and renormalised), as torchvision's
``resized_crop`` does. They differ by rounding only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def whole_boxes(size: Tensor, centre: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Round boxes to whole pixels.

    Args:
        size: (B, 2) width and height as shares of the side.
        centre: (B, 2) centres (x, y), in units where the picture reaches from -1 to 1.
        side: Of the pictures, pixels.

    Returns:
        First pixel (B, 2) and extent (B, 2), int64; every box holds at least one pixel and lies inside the picture.
    """
    extent = (size * side).round().long().clamp(1, side)
    first = ((centre - size + 1) / 2 * side).round().long()
    return torch.minimum(first.clamp(min=0), side - extent), extent


def resized(images: Tensor, first: Tensor, extent: Tensor) -> Tensor:
    """Boxes of the pictures, scaled to the pictures' own size.

    Args:
        images: (B, 3, R, R) uint8.
        first: (B, 2) first pixel (x, y) of each box.
        extent: (B, 2) width and height of each box.

    Returns:
        (B, 3, R, R) uint8.
    """
    return each(images, first, extent) if images.device.type == "cpu" else batched(images, first, extent)


def each(images: Tensor, first: Tensor, extent: Tensor) -> Tensor:
    """As :func:`resized`, picture by picture: PyTorch has a fast kernel for that on CPUs, in integers."""
    side = list(images.shape[-2:])
    parts = []
    for picture, (left, top), (width, height) in zip(images, first.tolist(), extent.tolist(), strict=True):
        box = picture[None, :, top : top + height, left : left + width]
        parts.append(functional.interpolate(box, side, mode="bicubic", antialias=True))
    return torch.cat(parts)


def batched(images: Tensor, first: Tensor, extent: Tensor) -> Tensor:
    """As :func:`resized`, as two matrix products for the whole batch: no word between GPU and CPU."""
    side = images.shape[-1]
    across, down = (_weights(first[:, axis], extent[:, axis], side).to(images.device)[:, None] for axis in (0, 1))
    wide = (images.float() @ across.mT).round_().clamp_(0, 255)  # between the axes, as Pillow does
    return (down @ wide).round_().clamp_(0, 255).to(torch.uint8)


def _weights(first: Tensor, extent: Tensor, side: int) -> Tensor:
    """(B, side, side) share of input pixel j in output pixel i, along one axis."""
    steps = torch.arange(side, device=first.device, dtype=torch.float32)
    place = first[:, None] + (steps + 0.5) * (extent[:, None] / side)
    away = (steps + 0.5 - place[:, :, None]).abs()
    near = (1.5 * away - 2.5) * away.square() + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    weight = torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
    inside = (steps >= first[:, None]) & (steps < (first + extent)[:, None])
    weight = weight * inside[:, None]
    return weight / weight.sum(-1, keepdim=True)
