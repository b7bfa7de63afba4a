"""Decoding a picture that is stored inside another file."""

from __future__ import annotations

import io

from PIL import Image

from petlbench.datasets import split


def decoded(data: bytes, place: str) -> Image.Image:
    """A picture from the bytes of its file, RGB, whole (a truncated one is an error, never a half-grey picture).

    Args:
        data: The bytes.
        place: Where they come from, for the message.

    Raises:
        DataError: They are no picture, or not all of one.
    """
    what = f"{place}: the {len(data):,} bytes of the picture"
    return split.decoded(io.BytesIO(data), what, "Write the file again from whole pictures")
