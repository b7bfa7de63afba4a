"""Where labels go: greedy, in a fixed order, on free ground near their point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Box(NamedTuple):
    """A rectangle in points."""

    left: float
    bottom: float
    right: float
    top: float


class Label(NamedTuple):
    """A label of a point, sizes in points."""

    x: float
    y: float
    width: float
    height: float


_ANGLES = np.pi / 4 + 2 * np.pi * np.arange(16) / 16  # begins at the upper right, where readers look first
_RADII = np.array([6.5, 9.0, 12.0, 16.0, 21.0, 27.0, 34.0, 43.0])
_HARD, _SOFT, _OUTSIDE, _FAR = 50.0, 1.0, 1000.0, 0.6
_DIGITS = 6  # so that the last bit of a sine cannot choose between two equally good places


def place_labels(
    labels: Sequence[Label], hard: Sequence[Box], soft: Sequence[Box], inside: Box
) -> list[tuple[float, float]]:
    """Centre of each label.

    Args:
        labels: Most important first; each avoids those before it.
        hard: What no label should cover: markers, other text.
        soft: What a label had better not cover: error bars.
        inside: Where labels may lie.

    Returns:
        Centres in points. A label that finds no free ground takes the least bad place.
    """
    taken, light = list(hard), _array(soft)
    places = []
    for label in labels:
        size = np.array([label.width, label.height])
        # Near places first, so that of equally good ones the nearest wins.
        offsets = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1) * (_RADII[:, None, None] + size / 2)
        centres = (np.array([label.x, label.y]) + offsets.reshape(-1, 2)).round(_DIGITS)
        boxes = np.concatenate([centres - size / 2, centres + size / 2], 1)
        area = label.width * label.height
        gaps = np.maximum(0.0, np.abs(centres - (label.x, label.y)) - size / 2)
        over = _overlaps(boxes, _array(taken)) / area
        crossed = _overlaps(boxes, light) / area
        cost = (
            _FAR * np.hypot(gaps[:, 0], gaps[:, 1])
            + _OUTSIDE * (1 - _overlaps(boxes, _array([inside]))[:, 0] / area)
            + _HARD * ((over > 0) + over).sum(1)
            + _SOFT * (2 * (crossed > 0) + 10 * crossed).sum(1)
        )
        best = int(np.argmin(cost.round(_DIGITS)))
        taken.append(Box(*boxes[best].tolist()))
        places.append((float(centres[best, 0]), float(centres[best, 1])))
    return places


def freest(spots: Sequence[Box], hard: Sequence[Box], soft: Sequence[Box]) -> int:
    """Index of the first of the boxes that covers least."""
    boxes = _array(spots)
    cost = _HARD * _overlaps(boxes, _array(hard)).sum(1) + _overlaps(boxes, _array(soft)).sum(1)
    return int(np.argmin(cost.round(_DIGITS)))


def _array(boxes: Sequence[Box]) -> NDArray[np.float64]:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(A, B) areas shared by each of A boxes with each of B others."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.maximum(0.0, high - low).prod(-1))
