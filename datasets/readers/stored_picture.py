"""Decoding a picture that is stored inside another file."""

from __future__ import annotations

import io

from PIL import Image

from petlbench.datasets.split import DataError


def decoded(data: bytes, place: str) -> Image.Image:
    """A picture from the bytes of its file, RGB, whole (a truncated one is an error, never a half-grey picture).

    Args:
        data: The bytes.
        place: Where they come from, for the message.

    Raises:
        DataError: They are no picture, or not all of one.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{place}: the {len(data):,} bytes of the picture cannot be decoded ({error}). Write the file again from whole "
            "pictures, or run `benchmark data doctor` to list every unreadable one."
        ) from error
