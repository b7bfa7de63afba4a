"""Pictures that show the same, whatever their file: perceptual hashes, and the pairs of pictures that are near duplicates.

The hash is the usual 64-bit DCT hash (pHash): grey picture at 32 x 32 pixels, two-dimensional DCT-II, the 8 x 8 lowest
frequencies, one bit each for above their median. It is bit for bit that of ``imagehash.phash``. Hashes alone take one beach for
another; so a pair counts only if the 32 x 32 pictures correlate as well.

How the two thresholds were chosen is told in ``docs/data_doctor.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from petlbench.datasets.cache import processors
from petlbench.datasets.split import ImageRef

SIDE = 32
"""Side of the small grey pictures, pixels."""

DISTANCE, CORRELATION = 8, 0.6
"""Bits of 64 by which the hashes of near duplicates differ at most, and least correlation of their small grey pictures."""

TURNED_DISTANCE, TURNED_CORRELATION = 4, 0.95
"""Likewise for copies that were turned or mirrored, where seven more orientations invite chance."""

TURNS = 8
"""Orientations of a square: four turns, each as it is and mirrored."""

_LOW = 8
_BLOCK = 1024
_COSINES = np.cos(np.pi / (2 * SIDE) * np.outer(np.arange(_LOW), 2 * np.arange(SIDE) + 1))


class NearPair(NamedTuple):
    """Two pictures that show the same.

    Attributes:
        first: Index into the first pictures.
        second: Index into the second pictures.
        distance: Bits by which the hashes differ.
        correlation: Of the small grey pictures, at most 1.
        turn: Orientation of the second in which they agree, 0 for upright; see :func:`turned`.
    """

    first: int
    second: int
    distance: int
    correlation: float
    turn: int


@dataclass(frozen=True, eq=False)
class Prints:
    """What is kept of N pictures for comparing them.

    Attributes:
        thumbnails: (N, 32, 32) uint8, grey.
        hashes: (N,) uint64.
    """

    thumbnails: NDArray[np.uint8]
    hashes: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, thumbnails: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Prints:
        """Prints from small grey pictures, (N, 32, 32) uint8."""
        stacked = np.asarray(thumbnails, dtype=np.uint8).reshape(-1, SIDE, SIDE)
        return cls(stacked, hashes(stacked))


def thumbnail(picture: Image.Image) -> NDArray[np.uint8]:
    """(32, 32) uint8: a picture, grey (ITU-R 601) and small (Lanczos), whatever its proportions."""
    return np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The 64-bit DCT hashes of small grey pictures.

    Args:
        thumbnails: (N, 32, 32) uint8.

    Returns:
        (N,) uint64; the highest bit belongs to the mean, then row by row.
    """
    low = _COSINES @ thumbnails.astype(np.float64) @ _COSINES.T
    low = low.reshape(len(thumbnails), _LOW * _LOW)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64).reshape(-1)


def turned(thumbnails: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """Small pictures in one of eight orientations: quarter turns 0 to 3, and 4 to 7 mirrored left to right before."""
    mirrored = thumbnails[..., ::-1] if turn >= 4 else thumbnails
    return np.rot90(mirrored, turn % 4, axes=(-2, -1))


def prints(
    images: Sequence[ImageRef], workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Prints:
    """Decode pictures, on all cores, and keep what comparing needs.

    Args:
        images: N pictures.
        workers: Threads; default the processors this process may use.
        progress: Called with (pictures done, pictures in all).

    Raises:
        DataError: A picture is missing or cannot be decoded.
    """
    small = []
    with ThreadPoolExecutor(workers or processors()) as pool:
        for done, one in enumerate(pool.map(lambda image: thumbnail(image.open()), images), 1):
            small.append(one)
            if progress is not None:
                progress(done, len(images))
    return Prints.of(small)


def near_pairs(
    first: Prints,
    second: Prints | None = None,
    *,
    distance: int = DISTANCE,
    correlation: float = CORRELATION,
    turns: int = TURNS,
) -> list[NearPair]:
    """All pairs of near duplicates, each in the orientation in which it correlates most.

    Args:
        first: N pictures.
        second: M pictures; None: pairs among the first, each once (``first < second``).
        distance: Bits by which hashes of upright pictures may differ; for turned ones 4 at most.
        correlation: Least correlation of upright small pictures; of turned ones 0.95 at least. A picture of one colour
            correlates with nothing.
        turns: 8 also finds turned and mirrored pictures, 1 only upright ones.

    Returns:
        In the order of the first, then of the second.
    """
    other = first if second is None else second
    best: dict[tuple[int, int], NearPair] = {}
    ours = _standard(first.thumbnails)
    for turn in range(turns):
        small = turned(other.thumbnails, turn)
        theirs = _standard(small)
        bits_at_most = min(distance, TURNED_DISTANCE) if turn else distance
        least = max(correlation, TURNED_CORRELATION) if turn else correlation
        for i, j, bits in _close(first.hashes, hashes(small) if turn else other.hashes, bits_at_most, second is None):
            alike = float(ours[i] @ theirs[j])
            known = best.get((i, j))
            if alike >= least and (known is None or alike > known.correlation):
                best[i, j] = NearPair(i, j, bits, min(alike, 1.0), turn)
    return [best[key] for key in sorted(best)]


def _close(
    first: NDArray[np.uint64], second: NDArray[np.uint64], distance: int, once: bool
) -> Iterator[tuple[int, int, int]]:
    """Pairs of hashes that differ in few bits, block by block: of +1 and -1 vectors the product is 64 - 2 x distance.

    ``once``: only pairs whose first index is the smaller one.
    """
    theirs = _signs(second).T
    least = 64 - 2 * distance
    for start in range(0, len(first), _BLOCK):
        skipped = start if once else 0
        product = _signs(first[start : start + _BLOCK]) @ theirs[:, skipped:]
        for i, j in np.argwhere(product >= least).tolist():
            if not once or start + i < skipped + j:
                yield start + i, skipped + j, int(64 - product[i, j]) // 2


def _signs(bits: NDArray[np.uint64]) -> NDArray[np.float32]:
    """(N, 64) float32: -1 and +1."""
    unpacked = np.unpackbits(bits.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    return unpacked.astype(np.float32) * 2 - 1


def _standard(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 1024) float32 of mean 0 and length 1; zeros for a picture of one colour."""
    flat = thumbnails.reshape(len(thumbnails), SIDE * SIDE).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    length[length <= SIDE] = np.inf  # below a deviation of one grey level: noise
    scaled: NDArray[np.float32] = np.divide(flat, length, dtype=np.float32)
    return scaled
