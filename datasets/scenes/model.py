"""What a scene is before it is drawn: the facts that both the renderer and the captions are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

GENERATOR_VERSION = 1
"""Raised whenever a change alters any picture or caption; part of every picture's fingerprint."""

FRAME = 128.0
"""Side of a scene in scene units. One unit is one pixel at the native size; x runs east, y runs south."""

Point = tuple[float, float]


class Item(NamedTuple):
    """One drawn object.

    Attributes:
        x: Centre, units east of the left edge.
        y: Centre, units south of the upper edge.
        a: Extent along the heading, units.
        b: Extent across the heading, units.
        angle: Heading in degrees, 0 = east, growing clockwise.
        height: Units above ground; sets the length of the shadow.
        colour: Colour name of the world's palette.
        tone: Uniform [0, 1): varies shade and style between objects of a group.
        points: Outline or centre line for objects that are not boxes, in units.
    """

    x: float
    y: float
    a: float
    b: float
    angle: float
    height: float
    colour: str
    tone: float
    points: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Drawn objects of one kind, and what may truthfully be said of them.

    Attributes:
        kind: Key of the painters and of the lexicon.
        items: The objects.
        counted: Every object lies in the frame and none hides another, so the number may be stated.
        colour: The colour all objects share; None if mixed or not worth a word.
        arrangement: ``row``, ``rows``, ``grid``, ``cluster``, ``scattered``, ``ring``, ``parallel`` or None.
        position: Where the group lies: ``north``, ``south-east``, ``centre``, ...; None where it is spread out.
        direction: For long objects ``north-south``, ``east-west``, ``northwest-southeast``, ``northeast-southwest``.
        trait: An adjective true of every object, such as ``winding``; None for none.
        rank: 0 the subject, 1 worth telling, 2 never told.
    """

    kind: str
    items: tuple[Item, ...]
    counted: bool = True
    colour: str | None = None
    arrangement: str | None = None
    position: str | None = None
    direction: str | None = None
    trait: str | None = None
    rank: int = 1

    @property
    def count(self) -> int:
        """Number of drawn objects."""
        return len(self.items)


class Relation(NamedTuple):
    """``groups[subject]`` is ``word`` (beside, around, across, ...) ``groups[object]``."""

    subject: int
    word: str
    object: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A complete description of one picture; drawing and captions add no facts to it.

    Attributes:
        world: Name of the world the scene belongs to.
        seed: Seed of the whole set.
        index: Number of the picture within the set.
        label: Scene class, or None for a free collage.
        ground: Kind of ground texture.
        ground_colour: Its colour name.
        sun: Shadow vector, units per unit of height.
        groups: Everything drawn, in drawing order.
        relations: True spatial relations between groups.
    """

    world: str
    seed: int
    index: int
    label: str | None
    ground: str
    ground_colour: str
    sun: Point
    groups: tuple[Group, ...]
    relations: tuple[Relation, ...]
