"""Reader of the embedded procedural set: no files, everything follows from the card's options."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from petlbench.datasets.scenes.captions import CAPTIONS_PER_PICTURE, captions
from petlbench.datasets.scenes.generator import SceneImage, class_of, describe
from petlbench.datasets.scenes.worlds import World, world_named
from petlbench.datasets.split import SPLITS, Split
from petlbench.datasets.validation import checked

STRIDE = 100_000
"""Each split owns this many indices, so its pictures stay the same when another split is resized."""


class ScenesOptions(BaseModel):
    """Options of the procedural set.

    Attributes:
        seed: Seed of the whole set.
        train: Pictures for training; indices from 0.
        val: Pictures for validation; indices from ``STRIDE``.
        test: Pictures for the final test; indices from ``2 * STRIDE``.
        world: ``scenes``, or ``pretrain`` for the distribution a small CLIP is pretrained on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seed: int = Field(default=0, ge=0)
    train: int = Field(default=1200, ge=0, le=STRIDE)
    val: int = Field(default=240, ge=0, le=STRIDE)
    test: int = Field(default=240, ge=0, le=STRIDE)
    world: Literal["scenes", "pretrain"] = "scenes"


def read_scenes(options: Mapping[str, Any] | None = None) -> dict[str, Split]:
    """Compose the set; pictures are drawn when opened.

    Classes take turns by index, so a split is balanced to within one picture, and exactly so when its size is a
    multiple of the number of classes (30 for ``scenes``).

    Args:
        options: The card's and the user's options, see :class:`ScenesOptions`.

    Returns:
        The splits ``train``, ``val`` and ``test``, five captions per picture. Labels index ``classes``; -1 marks the
        collages of ``pretrain``.

    Raises:
        DataError: An option is unknown or out of range; the message names it, and what was expected.
    """
    chosen = checked(ScenesOptions, dict(options or {}), "options of data set scenes")
    sizes = (chosen.train, chosen.val, chosen.test)
    return {
        name: _split(world_named(chosen.world), chosen.seed, name, range(k * STRIDE, k * STRIDE + size))
        for k, (name, size) in enumerate(zip(SPLITS, sizes, strict=True))
    }


@lru_cache(maxsize=8)  # a worker runs many trials on one set, and composing it takes seconds
def _split(world: World, seed: int, name: str, indices: range) -> Split:
    place = {label: k for k, label in enumerate(world.classes)}
    labels = [class_of(world, index) for index in indices]
    return Split(
        name=name,
        images=tuple(SceneImage(world.name, seed, index) for index in indices),
        captions=tuple(text for index in indices for text in captions(describe(world, seed, index))),
        owner=np.repeat(np.arange(len(indices), dtype=np.int64), CAPTIONS_PER_PICTURE),
        labels=np.array([-1 if label is None else place[label] for label in labels], dtype=np.int64),
        classes=world.classes,
    )
