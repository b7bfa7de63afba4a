"""The one shape every reader returns: pictures, captions, and which caption belongs to which picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from petlbench.errors import PetlbenchError

SPLITS = ("train", "val", "test")


@runtime_checkable
class ImageRef(Protocol):
    """A picture that can be named, fingerprinted and opened."""

    @property
    def name(self) -> str:
        """What the data set calls the picture; unique within a set."""
        ...

    def fingerprint(self) -> str:
        """A cheap string that changes whenever the pixels may have changed."""
        ...

    def content(self) -> bytes:
        """Bytes that determine the pixels; hashed into the cache key."""
        ...

    def open(self) -> Image.Image:
        """The decoded picture, RGB, native size.

        Raises:
            DataError: The picture is missing or cannot be decoded.
        """
        ...


@dataclass(frozen=True)
class FileImage:
    """A picture file on disk."""

    path: Path
    name: str

    def fingerprint(self) -> str:
        """Path, size and modification time."""
        stat = self._stat()
        return f"{self.path}|{stat.st_size}|{stat.st_mtime_ns}"

    def content(self) -> bytes:
        """The file's bytes."""
        self._stat()
        return self.path.read_bytes()

    def open(self) -> Image.Image:
        """Decode the whole file (a truncated file is an error, never a half-grey picture)."""
        self._stat()
        return decoded(self.path, f"{self.path}: the picture", "Replace the file")

    def _stat(self):
        try:
            return self.path.stat()
        except OSError as error:
            raise DataError(
                f"{self.path}: picture not found, though the annotations name it ({self.name}). "
                "Check the picture folder given by the card's `images` key or by --set dataset.NAME.root=FOLDER."
            ) from error


def class_name(classes: Sequence[str], label: int) -> str:
    """Name of a scene class; ``class 7`` where the set gives the number only."""
    return classes[label] if label < len(classes) else f"class {label}"


class DataError(PetlbenchError):
    """Something is wrong with a data set; the message names the file, the place and the way out."""


def decoded(source: Path | BinaryIO, what: str, way_out: str) -> Image.Image:
    """A whole picture, RGB; ``what`` it is and the ``way_out`` are for the message.

    Raises:
        DataError: It is no picture, or not all of one, or has a channel of more than 8 bits.
    """
    try:
        with Image.open(source) as picture:
            mode = picture.mode
            if mode not in ("F", "I") and not mode.startswith("I;"):
                return picture.convert("RGB")
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{what} cannot be decoded ({error}). {way_out}, or run `benchmark data doctor` to list every unreadable picture."
        ) from error
    # Pillow would cut such values off at 255, so that nearly all of the picture turns white, or black.
    raise DataError(
        f"{what} has one channel of more than 8 bits (mode {mode}), and nothing says which value is white; scale it to 8 bits and "
        "save it anew. `benchmark data doctor` lists every such picture."
    )


@dataclass(frozen=True)
class Split:
    """One split of an image-caption set.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        images: N pictures.
        captions: M caption strings, as published (no lower-casing).
        owner: (M,) int64, the index into ``images`` of the picture each caption describes.
        labels: (N,) int64 scene class per picture, -1 where unknown; None if the set has no classes.
        classes: Names of the scene classes, indexed by label.
    """

    name: str
    images: tuple[ImageRef, ...]
    captions: tuple[str, ...]
    owner: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = field(default=())

    def __post_init__(self):
        if self.owner.shape != (len(self.captions),):
            raise DataError(
                f"split {self.name}: {len(self.captions)} captions but owner has shape {self.owner.shape}; "
                "a reader must give exactly one owning picture per caption"
            )
        if len(self.captions) and not (self.owner.min() >= 0 and self.owner.max() < len(self.images)):
            raise DataError(
                f"split {self.name}: a caption's owner lies outside the {len(self.images)} pictures of the split"
            )
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise DataError(f"split {self.name}: {len(self.images)} pictures but {self.labels.shape} labels")

    @cached_property
    def text_ids(self) -> NDArray[np.int64]:
        """(M,) int64: captions with the same string share an id; ids index :attr:`distinct`."""
        index: dict[str, int] = {}
        return np.array([index.setdefault(text, len(index)) for text in self.captions], dtype=np.int64)

    @cached_property
    def distinct(self) -> tuple[str, ...]:
        """The distinct caption strings in order of first appearance."""
        return tuple(dict.fromkeys(self.captions))

    @cached_property
    def sha256(self) -> str:
        """Hash of names, captions and ownership (not of pixels): equal splits, equal hash."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(f"i\0{image.name}\n".encode())
        for text, owner in zip(self.captions, self.owner, strict=True):
            digest.update(f"c\0{owner}\0{text}\n".encode())
        return digest.hexdigest()
