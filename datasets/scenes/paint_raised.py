"""Painters of things that throw a shadow: buildings, trees, vessels, vehicles, tanks."""

from __future__ import annotations

import math

from petlbench.datasets.scenes.canvas import Canvas, box, placed, shade
from petlbench.datasets.scenes.model import Item, Point
from petlbench.datasets.scenes.paint_ground import WHITE, aside, circle, oval
from petlbench.datasets.scenes.painters import cast_box, cast_disc, paints
from petlbench.datasets.scenes.palette import Rgb


def _facing(c: Canvas, angle: float) -> float:
    """Brightness of a slope whose downhill side looks along ``angle``: lit where it faces the sun."""
    turn = math.radians(angle)
    toward = -(math.cos(turn) * c.sun[0] + math.sin(turn) * c.sun[1]) / (math.hypot(*c.sun) or 1.0)
    return 0.93 + 0.2 * toward


def _gable(c: Canvas, it: Item, colour: Rgb) -> None:
    """Two roof faces that meet in a ridge along the heading."""
    for side in (-1, 1):
        v = side * it.b / 4
        face = placed(box(0, v, it.a, it.b / 2, 0), it.x, it.y, it.angle)
        c.poly(face, shade(colour, _facing(c, it.angle + 90 * side)))
    c.line(placed([(-it.a / 2, 0), (it.a / 2, 0)], it.x, it.y, it.angle), shade(colour, 1.22), 0.4)


@paints("house", "hotel", cast=cast_box)
def house(c: Canvas, it: Item) -> None:
    """A house with a gable or hip roof."""
    colour = c.colour(it.colour, it.tone)
    if (it.tone * 10) % 1 >= c.world.hip:
        _gable(c, it, colour)
        return
    a, b, ridge = it.a / 2, it.b / 2, max(0.0, it.a - it.b) / 2
    left, right = (-ridge, 0.0), (ridge, 0.0)
    faces: tuple[tuple[float, list[Point]], ...] = (
        (-90, [(-a, -b), (a, -b), right, left]),
        (90, [(-a, b), (a, b), right, left]),
        (180, [(-a, -b), (-a, b), left]),
        (0, [(a, -b), (a, b), right]),
    )
    for heading, face in faces:
        c.poly(placed(face, it.x, it.y, it.angle), shade(colour, _facing(c, it.angle + heading)))


def _lean(c: Canvas, it: Item) -> Item:
    """The roof's place: tall bodies lean away from the picture's centre, as they do off nadir."""
    lean = c.world.tilt * it.height / 64
    return it._replace(x=it.x + (it.x - 64) * lean, y=it.y + (it.y - 64) * lean)


@paints("block", "terminal", "station", cast=cast_box)
def block(c: Canvas, it: Item) -> None:
    """A flat-roofed building with parapet and roof plant."""
    colour = c.colour(it.colour, it.tone)
    roof = _lean(c, it)
    c.poly(box(it.x, it.y, it.a, it.b, it.angle), shade(colour, 0.55))
    c.poly(box((it.x + roof.x) / 2, (it.y + roof.y) / 2, it.a, it.b, it.angle), shade(colour, 0.62))
    c.poly(box(roof.x, roof.y, it.a, it.b, it.angle), shade(colour, 1.12))
    c.poly(box(roof.x, roof.y, it.a - 1.6, it.b - 1.6, it.angle), shade(colour, 0.9))
    for k in range(1 + int(it.tone * 3)):
        u, v = it.a * (0.28 - 0.27 * k), it.b * (0.2 if k % 2 else -0.16)
        x, y = placed([(u, v)], roof.x, roof.y, it.angle)[0]
        c.poly(box(x + 0.5, y + 0.5, 2.6, 2.0, it.angle), shade(colour, 0.55))
        c.poly(box(x, y, 2.6, 2.0, it.angle), shade(colour, 1.2))


@paints("warehouse", "platform", cast=cast_box)
def warehouse(c: Canvas, it: Item) -> None:
    """A long hall with a shallow ribbed roof."""
    colour = c.colour(it.colour, it.tone)
    _gable(c, it, colour)
    ribs = max(2, round(it.a / 4.5))
    for i in range(1, ribs):
        u = it.a * (i / ribs - 0.5)
        c.line(placed([(u, -it.b / 2), (u, it.b / 2)], it.x, it.y, it.angle), shade(colour, 0.84), 0.34)


def _cast_church(c: Canvas, it: Item) -> None:
    c.cast(box(it.x, it.y, it.a, it.b * 0.5, it.angle), it.height)
    x, y = placed([(it.a * 0.14, 0)], it.x, it.y, it.angle)[0]
    c.cast(box(x, y, it.a * 0.28, it.b, it.angle), it.height)
    tower = placed([(-it.a * 0.5, 0)], it.x, it.y, it.angle)[0]
    c.cast(box(*tower, it.b * 0.3, it.b * 0.3, it.angle), it.height * 3)


@paints("church", cast=_cast_church)
def church(c: Canvas, it: Item) -> None:
    """A cross-shaped gable roof with a tower at the western end of the nave."""
    colour = c.colour(it.colour, it.tone)
    _gable(c, it._replace(b=it.b * 0.5), colour)
    x, y = placed([(it.a * 0.14, 0)], it.x, it.y, it.angle)[0]
    _gable(c, it._replace(x=x, y=y, a=it.b, b=it.a * 0.28, angle=it.angle + 90), colour)
    tower = placed([(-it.a * 0.5, 0)], it.x, it.y, it.angle)[0]
    size = it.b * 0.42
    half = size / 2
    for k in range(4):
        face = placed([(-half, -half), (half, -half), (0, 0)], *tower, it.angle + 90 * k)
        c.poly(face, shade(colour, _facing(c, it.angle + 90 * k - 90) * 0.86))
    c.line(placed([(-1.6, 0), (1.6, 0)], *tower, it.angle), (246, 240, 214), 0.6)
    c.line(placed([(0.5, -1.1), (0.5, 1.1)], *tower, it.angle), (246, 240, 214), 0.6)


def _cast_stadium(c: Canvas, it: Item) -> None:
    c.cast(placed(oval(it.a, it.b), it.x, it.y, it.angle), it.height)


@paints("stadium", cast=_cast_stadium)
def stadium(c: Canvas, it: Item) -> None:
    """Tiered stands around a football field, partly roofed."""
    colour = c.colour(it.colour, it.tone)
    ring = it.b * 0.2
    for step, tone in ((0.0, 1.12), (0.24, 0.9), (0.5, 1.02), (0.76, 0.84)):
        inset = 2 * ring * step
        c.poly(placed(oval(it.a - inset, it.b - inset), it.x, it.y, it.angle), shade(colour, tone))
    inset = ring * 1.2
    rim, inner = oval(it.a, it.b), oval(it.a - 2 * ring, it.b - 2 * ring)
    for i in range(0, len(rim), 2):
        c.line(placed([rim[i], inner[i]], it.x, it.y, it.angle), shade(colour, 0.72), 0.4)
    a, b = it.a - 2 * ring, it.b - 2 * ring
    low, high = c.world.grounds["grass"]["green"]
    c.poly(placed(oval(a, b), it.x, it.y, it.angle), shade(low, 1.1))
    from_pitch = it._replace(a=a * 0.84, b=b * 0.78)
    for i in range(6):
        u = from_pitch.a * ((i + 0.5) / 6 - 0.5)
        c.poly(
            placed(box(u, 0, from_pitch.a / 6 + 0.3, from_pitch.b, 0), it.x, it.y, it.angle),
            shade(high, 0.86 if i % 2 else 1.04),
        )
    frame = box(0, 0, from_pitch.a * 0.94, from_pitch.b * 0.9, 0)
    c.line(placed([*frame, frame[0]], it.x, it.y, it.angle), WHITE, 0.5)
    c.line(placed([(0, -from_pitch.b * 0.45), (0, from_pitch.b * 0.45)], it.x, it.y, it.angle), WHITE, 0.5)
    ring_mark = circle(0, 0, b * 0.13, 10)
    c.line(placed(ring_mark, it.x, it.y, it.angle), WHITE, 0.5)


@paints("tank", cast=cast_disc)
def tank(c: Canvas, it: Item) -> None:
    """A cylindrical tank: wall, roof shaded across, rim and vent."""
    colour = c.colour(it.colour, it.tone)
    r = it.a / 2
    roof = _lean(c, it)
    c.disc(it.x, it.y, r, shade(colour, 0.6))
    c.disc(roof.x, roof.y, r, shade(colour, 1.06))
    c.disc(roof.x, roof.y, r * 0.9, shade(colour, 0.96))
    away = 90 - math.degrees(math.atan2(c.sun[0], c.sun[1]))
    c.poly([(roof.x, roof.y), *circle(roof.x, roof.y, r * 0.9, 8, away - 70, away + 70)], shade(colour, 0.86))
    c.disc(roof.x, roof.y, max(0.6, r * 0.12), shade(colour, 0.7))


@paints("chimney", cast=cast_disc)
def chimney(c: Canvas, it: Item) -> None:
    """A chimney: a small ring with a long shadow."""
    c.disc(it.x, it.y, it.a / 2, c.colour(it.colour, it.tone))
    c.disc(it.x, it.y, it.a / 4, (40, 40, 42))


@paints("tree", "bush", cast=cast_disc)
def tree(c: Canvas, it: Item) -> None:
    """A tree crown."""
    c.crown(it.x, it.y, it.a / 2, c.world.grounds["forest"][it.colour], it.tone)


@paints("bale", cast=cast_disc)
def bale(c: Canvas, it: Item) -> None:
    """A round hay bale."""
    colour = c.colour(it.colour, it.tone)
    c.disc(it.x, it.y, it.a / 2, shade(colour, 0.78))
    c.disc(it.x - c.sun[0] * 0.5, it.y - c.sun[1] * 0.5, it.a * 0.36, shade(colour, 1.0))


@paints("palm", cast=cast_disc)
def palm(c: Canvas, it: Item) -> None:
    """A palm: a star of fronds."""
    low, high = c.world.grounds["forest"]["green"]
    for k in range(7):
        tip = circle(it.x, it.y, it.a / 2, 1, it.tone * 90 + k * 51.4, 0)[0]
        c.line([(it.x, it.y), tip], high if k % 2 else shade(low, 1.6), 1.0)
    c.disc(it.x, it.y, 0.6, shade(low, 1.2))


@paints("rock", cast=cast_disc)
def rock(c: Canvas, it: Item) -> None:
    """A boulder."""
    colour = c.colour(it.colour, it.tone)
    shape = [
        (u * (0.8 + 0.3 * ((k * 37 + int(it.tone * 99)) % 7) / 7), v) for k, (u, v) in enumerate(circle(0, 0, 1, 7))
    ]
    c.poly(placed(shape, it.x, it.y, it.angle, it.a / 2), shade(colour, 0.82))
    c.poly(placed(shape, it.x - c.sun[0] * 0.4, it.y - c.sun[1] * 0.4, it.angle, it.a * 0.32), shade(colour, 1.18))


@paints("pier", cast=cast_box)
def pier(c: Canvas, it: Item) -> None:
    """A jetty."""
    c.poly(box(it.x, it.y, it.a, it.b, it.angle), c.colour(it.colour, it.tone))


def _cast_deck(c: Canvas, it: Item) -> None:
    half = it.b / 2
    c.cast_outline([*aside(it.points, half), *reversed(aside(it.points, -half))], it.height)


@paints("bridge", "overpass", cast=_cast_deck)
def deck(c: Canvas, it: Item) -> None:
    """A road deck above water or above another road: parapets and lane marks."""
    grey = shade(c.world.grounds["asphalt"]["grey"][1], 1.1)
    c.line(it.points, (214, 212, 204), it.b)
    c.line(it.points, grey, it.b - 1.6)
    c.dashes(it.points, WHITE, 0.5, 3.2, 2.6)


@paints("fountain", cast=cast_disc)
def fountain(c: Canvas, it: Item) -> None:
    """A round basin."""
    r = it.a / 2
    c.disc(it.x, it.y, r, (214, 208, 196))
    c.disc(it.x, it.y, r * 0.82, c.colour("turquoise", it.tone))
    c.disc(it.x, it.y, r * 0.3, (236, 244, 246))


@paints("monument", cast=cast_box)
def monument(c: Canvas, it: Item) -> None:
    """A stepped plinth with a pillar."""
    for grow, tone in ((1.9, 0.86), (1.4, 0.98), (0.6, 1.15)):
        c.poly(box(it.x, it.y, it.a * grow, it.b * grow, it.angle), shade(c.colour(it.colour, it.tone), tone))


@paints("parasol", cast=cast_disc)
def parasol(c: Canvas, it: Item) -> None:
    """A beach umbrella with alternating panels."""
    colour = c.colour(it.colour, it.tone)
    c.disc(it.x, it.y, it.a / 2, colour)
    for k in range(3):
        panel = circle(it.x, it.y, it.a / 2, 2, k * 120, k * 120 + 50)
        c.poly([(it.x, it.y), *panel], shade(colour, 1.35) if colour[0] < 200 else (244, 240, 232))
