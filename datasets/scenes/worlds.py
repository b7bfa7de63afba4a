"""The two picture distributions: `scenes` for the benchmark, `pretrain` for pretraining a small CLIP."""

from __future__ import annotations

from dataclasses import dataclass

from petlbench.datasets.scenes import palette
from petlbench.datasets.scenes.palette import Ramp, Rgb

CLASSES = (
    "airport",
    "baseball field",
    "beach",
    "bridge",
    "church",
    "commercial area",
    "dense residential",
    "desert",
    "farmland",
    "forest",
    "golf course",
    "industrial area",
    "lake",
    "meadow",
    "medium residential",
    "mountain",
    "parking lot",
    "playground",
    "pond",
    "port",
    "railway station",
    "resort",
    "river",
    "roundabout",
    "sparse residential",
    "square",
    "stadium",
    "storage tanks",
    "tennis court",
    "viaduct",
)
"""The scene classes of `scenes`, after those of RSICD and RSITMD (and AID, NWPU-RESISC45 for the roundabout)."""

HELD_OUT = (
    "baseball field",
    "church",
    "commercial area",
    "golf course",
    "parking lot",
    "port",
    "resort",
    "roundabout",
    "stadium",
    "viaduct",
)
"""Classes that never occur as a class in `pretrain`; their objects appear there in collages only."""


@dataclass(frozen=True, eq=False, repr=False)
class World:
    """A distribution of pictures and captions.

    Attributes:
        name: ``scenes`` or ``pretrain``.
        key: Seeds everything that is random in this world.
        classes: Scene classes in label order.
        collages: Free collages per round of ``classes``; picture ``index % (classes + collages)`` has that place.
        grounds: Ground kind -> colour name -> colour ramp.
        colours: Colour name -> RGB variants of objects.
        zoom: Range of object scale.
        shadow: Range of shadow length per unit of height.
        octaves: Weights of the ground noise from 32-unit patches down to 1-unit grain.
        gain: Range of sensor gain, per channel.
        lift: Range of haze (added to dark tones), grey levels.
        grain: Amplitude of sensor noise, grey levels.
        soften: Chance that the picture is slightly out of focus.
        hip: Share of houses with a hip roof instead of a gable.
        many: Skew of counts: above 1 prefers more objects, below 1 fewer.
        tilt: Off-nadir lean of tall buildings, units per unit of height.
        plain: Chance that one of a picture's five captions is a plain one that other pictures share.
        terse: Chance that a caption may do with two facts instead of three.
    """

    name: str
    key: int
    classes: tuple[str, ...]
    collages: int
    grounds: dict[str, dict[str, Ramp]]
    colours: dict[str, tuple[Rgb, ...]]
    zoom: tuple[float, float]
    shadow: tuple[float, float]
    octaves: tuple[int, ...]
    gain: tuple[float, float]
    lift: tuple[float, float]
    grain: int
    soften: float
    hip: float
    many: float
    tilt: float
    plain: float
    terse: float

    def __repr__(self):
        return f"World({self.name!r})"


SCENES = World(
    name="scenes",
    key=1,
    classes=CLASSES,
    collages=0,
    grounds=palette.GROUNDS,
    colours=palette.COLOURS,
    zoom=(0.88, 1.15),
    shadow=(0.55, 1.0),
    octaves=(6, 4, 3, 2, 2, 2),
    gain=(0.88, 1.1),
    lift=(0, 16),
    grain=5,
    soften=0.25,
    hip=0.35,
    many=1.0,
    tilt=0.16,
    plain=0.2,
    terse=0.08,
)

PRETRAIN = World(
    name="pretrain",
    key=2,
    classes=tuple(name for name in CLASSES if name not in HELD_OUT),
    collages=16,
    grounds=palette.PRETRAIN_GROUNDS,
    colours=palette.PRETRAIN_COLOURS,
    zoom=(0.7, 1.4),
    shadow=(0.2, 0.7),
    octaves=(2, 2, 4, 5, 3, 1),
    gain=(0.72, 1.2),
    lift=(0, 42),
    grain=11,
    soften=0.5,
    hip=0.8,
    many=0.7,
    tilt=-0.3,
    plain=0.25,
    terse=0.6,
)

WORLDS = {world.name: world for world in (SCENES, PRETRAIN)}


def world_named(name: str) -> World:
    """The world of that name.

    Raises:
        ValueError: There is none; the message lists those there are.
    """
    try:
        return WORLDS[name]
    except KeyError:
        raise ValueError(f"unknown world {name!r}; choose one of: {', '.join(WORLDS)}") from None
