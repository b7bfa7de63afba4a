"""From (world, seed, index) to a description, a picture and an image reference."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from petlbench.datasets.scenes import (  # noqa: F401  (the layouts and painters register themselves)
    layouts_built,
    layouts_free,
    layouts_industry,
    layouts_nature,
    layouts_sport,
    layouts_transport,
    layouts_water,
    paint_ground,
    paint_raised,
    paint_vehicles,
)
from petlbench.datasets.scenes.builder import Builder
from petlbench.datasets.scenes.canvas import Canvas
from petlbench.datasets.scenes.dice import Dice
from petlbench.datasets.scenes.layouts import COLLAGE, LAYOUTS
from petlbench.datasets.scenes.model import GENERATOR_VERSION, Scene
from petlbench.datasets.scenes.painters import PAINTERS
from petlbench.datasets.scenes.worlds import World, world_named

NATIVE_SIZE = 128
"""Side of a picture of the set, pixels."""

TEXTURE_KINDS = frozenset({"dunes", "canopy", "grassland", "mountains"})
"""Groups that are the ground itself: told in captions, drawn as ground."""

_FACTS, _LOOKS = 0, 1  # separate streams: a new brush stroke must not change what the scenes contain


def class_of(world: World, index: int) -> str | None:
    """The scene class of a picture: classes take turns, so every full round of indices is balanced.

    Returns:
        The class name, or None where the world has a free collage in that place.
    """
    place = index % (len(world.classes) + world.collages)
    return world.classes[place] if place < len(world.classes) else None


def describe(world: World, seed: int, index: int) -> Scene:
    """Compose picture ``index`` of a set.

    Args:
        world: The distribution.
        seed: Seed of the set, not negative.
        index: Number of the picture, not negative; determines its class.

    Returns:
        The facts of the picture; a pure function of the arguments and :data:`GENERATOR_VERSION`.

    Raises:
        ValueError: ``seed`` or ``index`` is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got seed={seed}, index={index}")
    label = class_of(world, index)
    builder = Builder(world, Dice(world.key, seed, index, _FACTS))
    LAYOUTS[label or COLLAGE](builder)
    builder.fill()
    return builder.scene(seed, index, label)


def draw(scene: Scene, size: int = NATIVE_SIZE) -> Image.Image:
    """The picture of a scene.

    Args:
        scene: What to draw.
        size: Side in pixels.

    Returns:
        RGB picture, ``size`` x ``size``, equal to the last bit on every machine.
    """
    world = world_named(scene.world)
    canvas = Canvas(world, scene, size, Dice(world.key, scene.seed, scene.index, _LOOKS))
    painted = [(PAINTERS[group.kind], group.items) for group in scene.groups if group.kind not in TEXTURE_KINDS]
    for painter, items in painted:
        if painter.cast is None:
            for item in items:
                painter.draw(canvas, item)
        else:
            for item in items:
                painter.cast(canvas, item)
    canvas.lay_shadows()
    for painter, items in painted:
        if painter.cast is not None:
            for item in items:
                painter.draw(canvas, item)
    return canvas.finish()


def render(world: World, seed: int, index: int, size: int = NATIVE_SIZE) -> Image.Image:
    """:func:`describe`, then :func:`draw`."""
    return draw(describe(world, seed, index), size)


@dataclass(frozen=True, slots=True)
class SceneImage:
    """A generated picture as an image reference: small to pickle, drawn when opened.

    Attributes:
        world: Name of the world.
        seed: Seed of the set.
        index: Number of the picture.
    """

    world: str
    seed: int
    index: int

    @property
    def name(self) -> str:
        """Class and number, such as ``airport_17``; unique within a set."""
        label = class_of(world_named(self.world), self.index) or COLLAGE
        return f"{label.replace(' ', '_')}_{self.index}"

    def fingerprint(self) -> str:
        """Everything that determines the pixels."""
        return f"scenes-v{GENERATOR_VERSION}|{self.world}|{self.seed}|{self.index}|{NATIVE_SIZE}"

    def content(self) -> bytes:
        """The fingerprint: the pixels are a function of it."""
        return self.fingerprint().encode()

    def open(self) -> Image.Image:
        """Draw the picture at its native size."""
        return render(world_named(self.world), self.seed, self.index)
