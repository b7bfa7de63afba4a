"""The picture preparation of CLIP up to the uint8 array: bicubic resize of the short side, centre crop, RGB."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VERSION = "clip-bicubic-centre-1"
"""Part of every cache key: change it whenever a change could move a pixel."""


def prepare_picture(picture: Image.Image, resolution: int) -> NDArray[np.uint8]:
    """Resize and crop as ``clip.load`` and ``open_clip.image_transform(is_train=False)`` do.

    The long side is truncated, the crop offset rounded half to even, both as in torchvision; Pillow's bicubic filter
    antialiases. Tested to give the same bytes as open_clip.

    Args:
        picture: RGB picture of any size.
        resolution: R, side of the result in pixels.

    Returns:
        (R, R, 3) uint8.
    """
    width, height = picture.size
    short = min(width, height)
    if short != resolution:
        width, height = (resolution if side == short else int(resolution * side / short) for side in (width, height))
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    if (width, height) != (resolution, resolution):
        left, top = round((width - resolution) / 2), round((height - resolution) / 2)
        picture = picture.crop((left, top, left + resolution, top + resolution))
    return np.asarray(picture)
