"""Random changes of training pictures: whole uint8 batches at once, on CPU or GPU, different for every sample.

Sizes and factors follow torchvision v2 (``RandomResizedCrop.make_params``, ``adjust_brightness`` and its kin), whose own
transforms would draw one set of parameters for the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Generator, Tensor

from petlbench.datasets.crop import resized, whole_boxes
from petlbench.datasets.randaugment import RandAugment, rand_augment

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]

_TRIES = 10  # as torchvision: draws of a crop before falling back to the largest centred one


class Augmentation(BaseModel):
    """Which random changes are made to training pictures; the default makes none.

    Attributes:
        random_resized_crop: Least and greatest share of the area that a crop keeps, or None. Crops are scaled back
            to the full size with bicubic interpolation. Boxes hold whole pixels.
        crop_ratio: Least and greatest width by height of a crop.
        horizontal_flip: Probability of mirroring left to right.
        vertical_flip: Probability of mirroring top to bottom.
        rotate90: Probability of a turn by 90, 180 or 270 degrees (each a third of it); pictures from above have no up.
        brightness: Factor drawn from [1 - x, 1 + x].
        contrast: As ``brightness``, about the mean grey of the picture.
        saturation: As ``brightness``, about the grey picture.
        randaugment: Rounds of randomly chosen changes, made last, or None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    random_resized_crop: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: Probability = 0
    vertical_flip: Probability = 0
    rotate90: Probability = 0
    brightness: Strength = 0
    contrast: Strength = 0
    saturation: Strength = 0
    randaugment: RandAugment | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        crop, ratio = self.random_resized_crop, self.crop_ratio
        if crop is not None and not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(f"random_resized_crop is {crop}; expected shares of the area, 0 < least <= greatest <= 1")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"crop_ratio is {ratio}; expected 0 < least <= greatest")
        return self

    @property
    def is_identity(self) -> bool:
        """Whether pictures are left as they are."""
        moves = self.random_resized_crop or self.horizontal_flip or self.vertical_flip or self.rotate90
        rounds = self.randaugment is not None and self.randaugment.ops and self.randaugment.probability
        return not (moves or self.brightness or self.contrast or self.saturation or rounds)


def augment(images: Tensor, config: Augmentation, generator: Generator) -> Tensor:
    """Randomly changed pictures; the same generator state gives the same result.

    Args:
        images: (B, 3, R, R) uint8.
        config: Which changes to make.
        generator: Source of chance, on the CPU or on the device of the pictures. The draws of a CPU generator do
            not depend on where the pictures lie.

    Returns:
        (B, 3, R, R) uint8; the input itself when there is nothing to do.

    Raises:
        ValueError: The pictures are not uint8, not square or have not three channels.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"augment expects uint8 pictures (B, 3, R, R), found {images.dtype} {tuple(images.shape)}")
    if config.is_identity or not len(images):
        return images
    images = _turned(images, config.rotate90, generator)
    images = _mirrored(images, config.horizontal_flip, -1, generator)
    images = _mirrored(images, config.vertical_flip, -2, generator)
    if config.random_resized_crop:
        size, centre = _crop(len(images), config.random_resized_crop, config.crop_ratio, generator)
        images = resized(images, *whole_boxes(size, centre, images.shape[-1]))
    strengths = {name: getattr(config, name) for name in _ADJUST if getattr(config, name)}
    if strengths:
        pixels = images.float()
        for name, strength in strengths.items():
            factor = 1 + strength * (2 * _uniform(len(images), generator) - 1)
            pixels = _ADJUST[name](pixels, factor.to(images.device).view(-1, 1, 1, 1)).clamp_(0, 255)
        images = pixels.round_().to(torch.uint8)
    if config.randaugment is not None:
        images = rand_augment(images, config.randaugment, generator)
    return images


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``(images / 255 - mean) / std``, in one pass.

    Args:
        images: (B, 3, R, R) uint8.
        mean: Mean per channel, for pixels in [0, 1].
        std: Standard deviation per channel, likewise.
        dtype: Of the result.

    Returns:
        (B, 3, R, R) in the memory order of ``images``.
    """
    centre = torch.tensor(mean, dtype=torch.float32, device=images.device).view(3, 1, 1)
    deviation = torch.tensor(std, dtype=torch.float32, device=images.device).view(3, 1, 1)
    shift, scale = -centre / deviation, 1 / (255 * deviation)
    if images.device.type == "cpu" and images.permute(0, 2, 3, 1).is_contiguous():
        return _normalised_rows(images, shift.flatten(), scale.flatten()).to(dtype)
    return torch.addcmul(shift, images.float(), scale).to(dtype)


def _normalised_rows(images: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The same, to the bit, for pictures whose channels lie together: long rows instead of three numbers at a time.

    Picture by picture, so that what lies between stays in the processor's cache.
    """
    batch, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    shift, scale = shift.repeat(width), scale.repeat(width)
    result = torch.empty(rows.shape, dtype=torch.float32)
    for picture, place in zip(rows, result, strict=True):
        torch.addcmul(shift, picture.float(), scale, out=place)
    return result.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _uniform(batch: int, generator: Generator) -> Tensor:
    return torch.rand(batch, generator=generator, device=generator.device)


def _changed(images: Tensor, chosen: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The pictures, those that are chosen changed."""
    if images.device.type == "cpu":  # only those, one by one
        result = images.clone()
        for index in chosen.nonzero().flatten().tolist():
            result[index] = change(images[index])
        return result
    # By `where`, not by index: an index would make a GPU wait for the CPU.
    return torch.where(chosen.to(images.device).view(-1, 1, 1, 1), change(images), images)


def _mirrored(images: Tensor, chance: float, dim: int, generator: Generator) -> Tensor:
    if not chance:
        return images
    return _changed(images, _uniform(len(images), generator) < chance, lambda pictures: pictures.flip(dim))


def _turned(images: Tensor, chance: float, generator: Generator) -> Tensor:
    if not chance:
        return images
    draw = _uniform(len(images), generator) / chance  # below 1: a turn, by the third it falls in
    quarters = torch.where(draw < 1, 1 + (3 * draw).long().clamp(max=2), 0)
    for quarter in (1, 2, 3):  # each picture is of one quarter at most
        images = _changed(images, quarters == quarter, partial(torch.rot90, k=quarter, dims=(-2, -1)))
    return images


def _crop(
    batch: int, scale: tuple[float, float], ratio: tuple[float, float], generator: Generator
) -> tuple[Tensor, Tensor]:
    """Sizes and centres of crops, each (B, 2) as (x, y), in units where the picture reaches from -1 to 1."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(_TRIES, batch, generator=generator, device=generator.device)

    area, shape = uniform(*scale), uniform(math.log(ratio[0]), math.log(ratio[1])).exp()
    sizes = torch.stack([(area * shape).sqrt(), (area / shape).sqrt()], -1)
    fits = (sizes <= 1).all(-1)
    first = torch.where(fits.any(0), fits.int().argmax(0), 0)
    size = sizes[first, torch.arange(batch, device=first.device)].clamp(max=1)  # clamped only where no draw fits
    place = 2 * torch.rand(batch, 2, generator=generator, device=generator.device) - 1
    return size, place * (1 - size)


def _brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return pixels * factor


def _contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(pixels).mean((-3, -2, -1), keepdim=True), pixels, factor)


def _saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(pixels), pixels, factor)


def _grey(pixels: Tensor) -> Tensor:
    # Importing torchvision brings torch's compiler with it: seconds that plans and lists need not wait for.
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    return rgb_to_grayscale(pixels)


_ADJUST = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation}
