"""Painters of flat things: roads, water, fields, courts, paving."""

from __future__ import annotations

import math

from petlbench.datasets.scenes.canvas import Canvas, box, placed, shade
from petlbench.datasets.scenes.model import Item, Point
from petlbench.datasets.scenes.painters import paints

WHITE = (232, 232, 228)


def circle(x: float, y: float, r: float, steps: int = 24, start: float = 0, end: float = 360) -> list[Point]:
    """Points on an arc, degrees."""
    turns = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(x + r * math.cos(t), y + r * math.sin(t)) for t in turns]


def oval(a: float, b: float) -> list[Point]:
    """A running-track outline about the origin: two straights closed by half circles."""
    half = max(0.0, (a - b) / 2)
    return circle(half, 0, b / 2, 12, -90, 90) + circle(-half, 0, b / 2, 12, 90, 270)


@paints("road")
def road(c: Canvas, it: Item) -> None:
    """A paved road with verge and, where it is wide enough, a dashed centre line."""
    surface = c.world.grounds["asphalt"]["grey"][1] if it.colour == "grey" else c.colour(it.colour, it.tone)
    c.line(it.points, shade(surface, 1.35), it.b + 1.2)
    c.line(it.points, surface, it.b)
    if it.colour == "grey" and it.b >= 4:
        c.dashes(it.points, WHITE, 0.5, 3.2, 3.2)
    if it.b >= 9:
        for side in (-1, 1):
            c.line(aside(it.points, side * (it.b / 2 - 0.9)), WHITE, 0.4)


def aside(points: tuple[Point, ...], distance: float) -> list[Point]:
    """The polyline shifted sideways as a whole, by the normal of its chord."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    nx, ny = -(y1 - y0) / length * distance, (x1 - x0) / length * distance
    return [(x + nx, y + ny) for x, y in points]


@paints("path")
def path(c: Canvas, it: Item) -> None:
    """An unpaved track or footpath."""
    c.line(it.points, c.colour(it.colour, it.tone), it.b)


@paints("track")
def rails(c: Canvas, it: Item) -> None:
    """A railway track: ballast, sleepers, two rails."""
    c.line(it.points, (128, 118, 108), it.b)
    c.dashes(it.points, (84, 72, 64), it.b * 0.62, 0.9, 1.5)
    for side in (-1, 1):
        c.line(aside(it.points, side * it.b * 0.2), (196, 192, 188), 0.36)


@paints("runway")
def runway(c: Canvas, it: Item) -> None:
    """A runway with edge lines, centre dashes and threshold bars."""
    dark = shade(c.world.grounds["asphalt"]["grey"][0], 0.86 + 0.2 * it.tone)
    c.line(it.points, shade(dark, 1.3), it.b + 1.6)
    c.line(it.points, dark, it.b)
    c.dashes(it.points, WHITE, 0.7, 5, 4)
    for side in (-0.42, 0.42):
        c.line(aside(it.points, side * it.b), WHITE, 0.4)
    turn = math.radians(it.angle)
    for end in (-1, 1):
        x, y = it.x + math.cos(turn) * end * it.a * 0.4, it.y + math.sin(turn) * end * it.a * 0.4
        for bar in (-0.32, -0.19, 0.19, 0.32):
            c.poly(placed(box(0, bar * it.b, 5, it.b * 0.08, 0), x, y, it.angle), WHITE)


@paints("river", "lake", "pond")
def water(c: Canvas, it: Item) -> None:
    """A body of water with a bank and a darker middle."""
    ramp = c.world.grounds["water"][it.colour]
    closed = [*it.points, it.points[0]]
    c.line(closed, shade(c.world.grounds["soil"]["brown"][1], 0.8 + 0.3 * it.tone), 2.4)
    c.area(it.points, "water", (shade(ramp[0], 1.1), shade(ramp[1], 1.12)), depth=0.4)


@paints("sea")
def sea(c: Canvas, it: Item) -> None:
    """Open water; ``points`` are the shore followed by two far corners."""
    low, high = c.world.grounds["water"][it.colour]
    shore = it.points[:-2]
    c.line(shore, shade(c.world.grounds["sand"]["pale"][0], 0.8), 5)
    c.area(it.points, "water", (shade(low, 1.15), shade(high, 1.2)), depth=0.5)
    if it.b > 0:  # a beach has surf, a harbour none
        out_x, out_y = it.points[-1][0] - shore[0][0], it.points[-1][1] - shore[0][1]
        reach = math.hypot(out_x, out_y) or 1.0
        for away, fill, width in (
            (3.2, shade(high, 1.5), 4.0),
            (0.6, (240, 244, 244), 1.4),
            (5.0, (214, 226, 228), 0.7),
        ):
            c.line([(x + out_x / reach * away, y + out_y / reach * away) for x, y in shore], fill, width)


@paints("field")
def field(c: Canvas, it: Item) -> None:
    """A parcel of farmland with crop rows."""
    c.area(it.points, "furrows", c.world.grounds["crop"][it.colour])
    c.line([*it.points, it.points[0]], shade(c.world.grounds["soil"]["brown"][0], 0.95), 0.7)


@paints("pivot")
def pivot(c: Canvas, it: Item) -> None:
    """A centre-pivot field: a disc with its arm."""
    low, high = c.world.grounds["crop"][it.colour]
    c.area(circle(it.x, it.y, it.a / 2), "ground", (shade(low, 0.9), shade(high, 1.1)))
    edge = circle(it.x, it.y, it.a / 2, 1, it.angle, it.angle)[0]
    c.line([(it.x, it.y), edge], shade(high, 1.35), 0.6)


@paints("woods")
def woods(c: Canvas, it: Item) -> None:
    """A closed stand of trees."""
    c.line([*it.points, it.points[0]], shade(c.world.grounds["forest"][it.colour][0], 1.0), 2.0)
    c.area(it.points, "canopy", c.world.grounds["forest"][it.colour])


@paints("lawn", "fairway", "clearing")
def lawn(c: Canvas, it: Item) -> None:
    """Mown grass; a fairway is the lighter one."""
    low, high = c.world.grounds["grass"]["green"]
    c.area(it.points, "ground", (shade(low, 1.15), high) if it.colour == "green" else (high, shade(high, 1.24)))


@paints("green")
def green(c: Canvas, it: Item) -> None:
    """A putting green with its flag hole."""
    _, high = c.world.grounds["grass"]["green"]
    c.area(it.points, "ground", (shade(high, 1.25), shade(high, 1.42)))
    c.disc(it.x, it.y, 0.7, (250, 250, 250))


@paints("bunker")
def bunker(c: Canvas, it: Item) -> None:
    """A sand trap with a shaded lip."""
    c.line([*it.points, it.points[0]], shade(c.world.grounds["grass"]["green"][0], 0.9), 1.2)
    c.poly(it.points, shade(c.world.grounds["sand"]["pale"][1], 0.96 + 0.08 * it.tone))


@paints("pool")
def pool(c: Canvas, it: Item) -> None:
    """A swimming pool with a pale rim; kidney-shaped where an outline is given."""
    shape = list(it.points) or box(it.x, it.y, it.a, it.b, it.angle)
    c.line([*shape, shape[0]], (226, 222, 212), 2.2)
    bright = c.colour(it.colour, it.tone)
    c.area(shape, "water", (shade(bright, 0.86), shade(bright, 1.08)))


@paints("apron", "plaza", "lot", "yard")
def paving(c: Canvas, it: Item) -> None:
    """A paved area: ``colour`` names a ramp of the asphalt, concrete or paved ground."""
    grounds = c.world.grounds
    ramp = grounds["paved"][it.colour] if it.colour in grounds["paved"] else grounds["concrete"]["grey"]
    if it.colour == "dark":
        ramp = grounds["asphalt"]["grey"]
    shape = list(it.points) or box(it.x, it.y, it.a, it.b, it.angle)
    c.area(shape, "ground", ramp)
    c.line([*shape, shape[0]], shade(ramp[1], 1.1), 0.7)


@paints("slots")
def slots(c: Canvas, it: Item) -> None:
    """The white bay lines of one row of parking bays along the heading."""
    count = max(1, round(it.a / 3.4))
    for i in range(count + 1):
        u = -it.a / 2 + it.a * i / count
        c.line(placed([(u, -it.b / 2), (u, it.b / 2)], it.x, it.y, it.angle), (206, 206, 204), 0.4)


@paints("tiles")
def tiles(c: Canvas, it: Item) -> None:
    """Joint lines of a plaza's pattern."""
    for i in range(1, 8):
        u, v = it.a * (i / 8 - 0.5), it.b * (i / 8 - 0.5)
        c.line(placed([(u, -it.b / 2), (u, it.b / 2)], it.x, it.y, it.angle), (156, 144, 130), 0.4)
        c.line(placed([(-it.a / 2, v), (it.a / 2, v)], it.x, it.y, it.angle), (156, 144, 130), 0.4)


@paints("tennis", "basketball")
def court(c: Canvas, it: Item) -> None:
    """A hard court with its white lines: net and boxes, or keys and centre circle."""
    base = c.colour(it.colour, it.tone)
    c.poly(box(it.x, it.y, it.a, it.b, it.angle), shade(base, 0.78), WHITE)
    a, b = it.a * 0.74, it.b * 0.62

    def mark(points: list[Point], width: float = 0.45) -> None:
        c.line(placed(points, it.x, it.y, it.angle), WHITE, width)

    if it.height > 0:  # basketball
        a, b = it.a * 0.86, it.b * 0.84
        c.poly(placed(box(0, 0, a, b, 0), it.x, it.y, it.angle), shade(base, 1.12))
        mark([*box(0, 0, a, b, 0), (-a / 2, -b / 2)])
        mark([(0, -b / 2), (0, b / 2)])
        mark(circle(0, 0, b * 0.18, 10))
        for end in (-1, 1):
            mark(circle(end * a * 0.42, 0, b * 0.32, 8, 90 if end > 0 else -90, 270 if end > 0 else 90))
        return
    c.poly(placed(box(0, 0, a, b, 0), it.x, it.y, it.angle), shade(base, 1.12))
    mark([*box(0, 0, a, b, 0), (-a / 2, -b / 2)])
    for side in (-0.37, 0.37):
        mark([(-a / 2, side * b), (a / 2, side * b)])
    for service in (-0.27, 0.27):
        mark([(service * a, -0.37 * b), (service * a, 0.37 * b)])
    mark([(-0.27 * a, 0), (0.27 * a, 0)])
    mark([(0, -b * 0.58), (0, b * 0.58)], 0.8)


@paints("pitch")
def pitch(c: Canvas, it: Item) -> None:
    """A football field with mowing stripes and white lines."""
    _, high = c.world.grounds["grass"]["green"]
    for i in range(8):
        u = it.a * ((i + 0.5) / 8 - 0.5)
        strip = placed(box(u, 0, it.a / 8 + 0.3, it.b, 0), it.x, it.y, it.angle)
        c.poly(strip, shade(high, 0.82) if i % 2 else shade(high, 0.98))
    a, b = it.a * 0.94, it.b * 0.9

    def mark(points: list[Point]) -> None:
        c.line(placed(points, it.x, it.y, it.angle), WHITE, 0.55)

    mark([*box(0, 0, a, b, 0), (-a / 2, -b / 2)])
    mark([(0, -b / 2), (0, b / 2)])
    mark(circle(0, 0, b * 0.17, 12))
    for end in (-1, 1):
        u, depth = end * a / 2, -end * a * 0.14
        mark([(u, -b * 0.28), (u + depth, -b * 0.28), (u + depth, b * 0.28), (u, b * 0.28)])


@paints("running track")
def running_track(c: Canvas, it: Item) -> None:
    """The lanes of an athletics track around a lawn."""
    base = c.colour(it.colour, it.tone)
    c.poly(placed(oval(it.a, it.b), it.x, it.y, it.angle), base)
    for inset in (0.0, 2.1, 4.2, 6.3):
        ring = placed(oval(it.a - inset, it.b - inset), it.x, it.y, it.angle)
        c.line([*ring, ring[0]], WHITE, 0.35)
    inside = placed(oval(it.a - 8.4, it.b - 8.4), it.x, it.y, it.angle)
    low, high = c.world.grounds["grass"]["green"]
    c.area(inside, "ground", (shade(low, 1.1), shade(high, 0.95)))


@paints("diamond")
def diamond(c: Canvas, it: Item) -> None:
    """A baseball field: outfield fan, dirt infield, grass square, bases and mound."""
    home = placed([(-it.a / 2, 0)], it.x, it.y, it.angle)[0]
    r = it.a
    low, high = c.world.grounds["grass"]["green"]
    dirt = shade(c.world.grounds["soil"]["brown"][1], 1.0 + 0.12 * it.tone)

    def at(points: list[Point]) -> list[Point]:
        return placed(points, home[0], home[1], it.angle)

    c.poly(at([(-2.0, 0), *circle(0, 0, r, 14, -45, 45)]), dirt)
    c.area(at([(-0.5, 0), *circle(0, 0, r * 0.95, 14, -44, 44)]), "ground", (shade(low, 1.2), shade(high, 1.06)))
    c.poly(at([(-1.5, 0), *circle(0, 0, r * 0.56, 12, -45, 45)]), dirt)
    side = r * 0.3
    base = [(side * 0.2, 0), (side * 0.9, -side * 0.7), (side * 1.6, 0), (side * 0.9, side * 0.7)]
    c.area(at(base), "ground", (shade(low, 1.2), shade(high, 1.06)))
    for end in (-45, 45):
        c.line(at([(0, 0), circle(0, 0, r * 0.95, 1, end, end)[0]]), WHITE, 0.5)
    mound = at([(side * 0.9, 0)])[0]
    c.disc(*mound, r * 0.045, dirt)
    for corner in at([(0.4, 0), (side * 0.93, -side * 0.85), (side * 1.8, 0), (side * 0.93, side * 0.85)]):
        c.disc(*corner, 0.7, WHITE)


@paints("roundabout")
def roundabout(c: Canvas, it: Item) -> None:
    """A ring road of outer diameter ``a`` around a planted island."""
    grey = c.world.grounds["asphalt"]["grey"][1]
    c.disc(it.x, it.y, it.a / 2 + 0.8, shade(grey, 1.35))
    c.disc(it.x, it.y, it.a / 2, grey)
    middle = (it.a / 2 + it.b / 2) / 2
    for k in range(0, 24, 2):
        c.line(circle(it.x, it.y, middle, 2, k * 15, k * 15 + 15), WHITE, 0.45)
    c.disc(it.x, it.y, it.b / 2 + 0.7, (206, 204, 198))
    low, high = c.world.grounds["grass"]["green"]
    c.area(circle(it.x, it.y, it.b / 2), "ground", (shade(low, 1.1), high))


@paints("island")
def island(c: Canvas, it: Item) -> None:
    """Land in a lake: a sandy rim and grass."""
    c.line([*it.points, it.points[0]], c.world.grounds["sand"]["pale"][0], 2.0)
    c.area(it.points, "ground", c.world.grounds["grass"]["green"])


@paints("flowerbed")
def flowerbed(c: Canvas, it: Item) -> None:
    """A round bed."""
    c.disc(it.x, it.y, it.a / 2, shade(c.world.grounds["grass"]["green"][0], 1.1), (206, 204, 198))
    c.disc(it.x, it.y, it.a / 4, c.colour(it.colour, it.tone))
