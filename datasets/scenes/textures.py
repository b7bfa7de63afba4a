"""Grey texture tiles, made once per process and cropped for every picture; integer arithmetic, so equal everywhere."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from petlbench.datasets.scenes.dice import Dice
from petlbench.datasets.scenes.palette import Ramp
from petlbench.datasets.scenes.worlds import world_named

TILE = 320
"""Side of a tile in units; larger than the frame, so that crops differ."""

Grey = NDArray[np.int64]


def _fractal(key: tuple[int, ...], weights: tuple[int, ...], coarsest: int = 32) -> Grey:
    """(TILE, TILE) int64 in 0..255: value noise; each octave halves the cell, from ``coarsest`` units on."""
    rng = np.random.default_rng(key)
    total = np.zeros((TILE, TILE), dtype=np.int64)
    cell = coarsest
    for weight in weights:
        side = max(2, TILE // max(cell, 1) + 2)
        coarse = Image.fromarray(rng.integers(0, 256, (side, side), dtype=np.uint8))
        total += weight * np.asarray(coarse.resize((TILE, TILE), Image.Resampling.BICUBIC), dtype=np.int64)
        cell //= 2
    return _stretch(total)


def _stretch(values: Grey) -> Grey:
    low, high = int(values.min()), int(values.max())
    return (values - low) * 255 // max(high - low, 1)


def _slope(height: Grey, strength: int) -> Grey:
    """Light from the north-west: 128 on flat ground, brighter on slopes that face it."""
    east = np.roll(height, -1, axis=1) - np.roll(height, 1, axis=1)
    south = np.roll(height, -1, axis=0) - np.roll(height, 1, axis=0)
    return np.clip(128 + (east + south) * strength // 16, 0, 255)


def _dunes(key: tuple[int, ...]) -> Grey:
    """Ridges with a long windward and a short lee face, bent by low-frequency noise."""
    bend = _fractal((*key, 1), (3, 1), 64)
    y, x = np.mgrid[0:TILE, 0:TILE]
    phase = (x * 9 + y * 4 + bend * 3) % 256
    profile = np.where(phase < 190, 70 + phase * 150 // 190, 220 - (phase - 190) * 150 // 66)
    return np.clip(profile + (_fractal((*key, 2), (1, 1, 1), 4) - 128) // 8, 0, 255)


def _canopy(key: tuple[int, ...]) -> Grey:
    """Closed tree crowns, each lit from the north-west."""
    dice = Dice(*key)
    tile = Image.new("L", (TILE * 2, TILE * 2), 30)
    draw = ImageDraw.Draw(tile)
    for _ in range(5200):
        x, y, r = dice.between(0, 2 * TILE), dice.between(0, 2 * TILE), dice.between(4, 9)
        tone = dice.integer(70, 130)
        for grow, shift, shade in ((1.0, 0.0, tone - 50), (0.8, 0.15, tone), (0.45, 0.35, tone + 70)):
            cx, cy, radius = x - shift * r, y - shift * r, r * grow
            box = [round(cx - radius), round(cy - radius), round(cx + radius), round(cy + radius)]
            draw.ellipse(box, fill=shade)
    return np.asarray(tile.reduce(2), dtype=np.int64)


@lru_cache(maxsize=64)
def tile(world: str, kind: str) -> Image.Image:
    """A grey tile of TILE x TILE units.

    Args:
        world: Name of the world; the worlds' tiles differ.
        kind: ``ground``, ``patch``, ``water``, ``dunes``, ``height``, ``slope`` or ``canopy``.
    """
    setting = world_named(world)
    key = (setting.key, sum(kind.encode()))
    if kind == "ground":
        grey = _fractal(key, setting.octaves)
    elif kind == "patch":
        grey = np.clip((_fractal(key, (4, 2, 1), 64) - 128) * 3 + 100, 0, 255)
    elif kind == "water":
        grey = (_fractal(key, (8, 4, 2), 64) * 3 + _fractal((*key, 1), (1, 2), 4)) // 4
    elif kind == "dunes":
        grey = _dunes(key)
    elif kind == "height":
        grey = _relief(setting.key)
    elif kind == "slope":
        grey = _slope(_relief(setting.key), 52)
    elif kind == "canopy":
        grey = _canopy(key)
    else:
        raise ValueError(f"unknown texture {kind!r}")
    return Image.fromarray(grey.astype(np.uint8))


@lru_cache(maxsize=4)
def _relief(key: int) -> Grey:
    """Mountain height with ridges: the fold of value noise at its middle."""
    broad = 255 - 2 * np.abs(_fractal((key, 71), (6, 2), 72) - 128)
    fine = 255 - 2 * np.abs(_fractal((key, 72), (5, 3, 1), 26) - 128)
    return _stretch(broad * 5 + fine * 2)


@lru_cache(maxsize=4)
def grain(world: str) -> Image.Image:
    """RGB sensor noise around 128, TILE x TILE pixels."""
    setting = world_named(world)
    rng = np.random.default_rng((setting.key, 5))
    shared = rng.integers(-setting.grain, setting.grain + 1, (TILE, TILE, 1))
    own = rng.integers(-setting.grain // 2, setting.grain // 2 + 1, (TILE, TILE, 3))
    return Image.fromarray((128 + shared + own).astype(np.uint8))


@lru_cache(maxsize=512)
def ramp_palette(ramp: Ramp) -> bytes:
    """768 bytes: the palette that maps grey 0..255 to the colours from ``ramp[0]`` to ``ramp[1]``."""
    (r0, g0, b0), (r1, g1, b1) = ramp
    level = np.arange(256)[:, None]
    low, high = np.array((r0, g0, b0)), np.array((r1, g1, b1))
    return ((low * (255 - level) + high * level + 127) // 255).astype(np.uint8).tobytes()


def crop(source: Image.Image, dice: Dice, width: int, height: int, flips: tuple[bool, bool]) -> Image.Image:
    """A random ``width`` x ``height`` window, mirrored left-right and top-bottom as asked (moves the light with it)."""
    x = dice.integer(0, source.width - width)
    y = dice.integer(0, source.height - height)
    window = source.crop((x, y, x + width, y + height))
    if flips[0]:
        window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return window.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if flips[1] else window


def coloured(grey: Image.Image, ramp: Ramp) -> Image.Image:
    """The grey picture in the ramp's colours."""
    picture = grey.copy()
    picture.putpalette(ramp_palette(ramp))
    return picture.convert("RGB")


def furrows(dice: Dice, width: int, height: int) -> Image.Image:
    """Crop rows of a field at a random angle and spacing, grey, ``width`` x ``height`` units."""
    step = dice.integer(40, 84)
    lean = dice.integer(-step, step)
    across, along = (step, lean) if dice.chance(0.5) else (lean, step)
    phase = (np.arange(height)[:, None] * along + np.arange(width)[None, :] * across) % 256
    return Image.fromarray(np.abs(phase - 128).astype(np.uint8) + np.uint8(64))
