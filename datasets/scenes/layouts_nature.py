"""Layouts of natural scenes and farmland."""

from __future__ import annotations

from petlbench.datasets.scenes.builder import Builder
from petlbench.datasets.scenes.canvas import box
from petlbench.datasets.scenes.geometry import MIDDLE, Frame, compass, inside
from petlbench.datasets.scenes.layouts import lays_out
from petlbench.datasets.scenes.model import Point
from petlbench.datasets.scenes.paint_ground import circle
from petlbench.datasets.scenes.palette import ROOFS


def band(frame: Frame, near: float, far: float) -> list[Point]:
    """A strip along the heading between two offsets."""
    return [frame.at(-130, near), frame.at(130, near), frame.at(130, far), frame.at(-130, far)]


def houses(b: Builder, low: int, high: int, roofs: tuple[str, ...] = ROOFS, **facts) -> int:
    """A few houses at free places, all of one roof colour."""
    size = 12 * b.zoom
    return b.scatter(
        "house", b.number(low, high), size, size * 0.72, colour=b.dice.pick(roofs), height=5, gap=1.5, **facts
    )


def crossing(b: Builder, *, width: float | None = None, spread: float = 34) -> int:
    """A road or dirt path right across the frame, straight or winding."""
    d = b.dice
    frame = b.frame(spread)
    wide = width or d.between(4, 7.5)
    kind, colour = ("road", "grey") if d.chance(0.65) else ("path", d.pick(("brown", "pale")))
    if d.chance(0.5):
        return b.road(frame.across(0), wide if kind == "road" else 2.6, kind=kind, colour=colour, trait="straight")
    _, middle = b.stream(frame, wide, d.between(7, 11))
    return b.road(middle, wide if kind == "road" else 2.6, kind=kind, colour=colour, trait="winding", direction=None)


@lays_out("beach")
def beach(b: Builder) -> None:
    """Sand, sea on one side, something behind the sand."""
    d = b.dice
    b.floor("sand", "pale", "pale", "orange")
    frame, edge = b.frame(), d.between(-8, 14)
    wet, _ = b.stream(frame, 2, d.between(2, 6), edge)
    shore = wet[:25]
    tint = d.pick(("blue", "blue", "green", "turquoise"))
    outline = [*shore, frame.at(130, 130), frame.at(-130, 130)]
    sea_side, land_side = compass(frame.angle + 90), compass(frame.angle - 90)
    it = b.item(frame.at(0, edge + 40), 128, 1, frame.angle, tint, 0, outline)
    sea = b.add("sea", [it], colour=tint, counted=False, position=sea_side, rank=0)
    back = d.integer(0, 3)
    inland = d.between(26, 36)
    if back == 0:
        cover = b.leaf()
        strip = band(frame, edge - inland, -120)
        it = b.item(frame.at(0, edge - inland - 15), 128, 30, 0, cover, 0, strip)
        b.add("woods", [it], colour=cover, counted=False, position=land_side)
    elif back == 1:
        b.relate(b.road(frame.across(edge - inland), d.between(5, 7)), "along", sea)
        b.trees(b.number(2, 8))
    elif back == 2:
        it = b.item(frame.at(0, edge - inland - 15), 128, 30, 0, "green", 0, band(frame, edge - inland, -120))
        b.add("lawn", [it], taken=False, counted=False, rank=2)
        houses(b, 1, 5)
    else:
        b.trees(b.number(2, 7))
    if d.chance(0.7):
        n, step = b.number(2, 8), 11.0
        if d.chance(0.5):
            tints: str | tuple[str, ...] = d.pick(("red", "blue", "yellow", "white"))
        else:
            tints = ("red", "blue", "yellow", "white", "orange")
        row = b.row("parasol", frame, n, step, edge - d.between(11, 16), 5.6, 5.6, colour=tints, height=3)
        kept = [p for p in row if inside(p, 2) and b.free(p.x, p.y, 3)]
        shared = tints if isinstance(tints, str) else None
        b.relate(b.add("parasol", kept, colour=shared, arrangement="row"), "along", sea)
    if d.chance(0.5):
        n = b.number(1, 3)
        spots = [frame.at(d.between(-45, 45), edge + 18 + 12 * i) for i in range(n)]
        boats = [b.item(p, 9, 3.6, d.between(0, 360), "white", 1.2) for p in spots]
        b.relate(b.add("boat", [i for i in boats if inside(i, 2)], colour="white", arrangement="scattered"), "on", sea)


@lays_out("desert")
def desert(b: Builder) -> None:
    """Dunes with few things in them."""
    d = b.dice
    b.floor("sand", "pale", "orange")
    dunes = b.texture("dunes")
    if d.chance(0.25):
        r = d.between(11, 17)
        x, y = d.between(35, 93), d.between(35, 93)
        pool = b.water("pond", b.blob(x, y, r), d.pick(("blue", "green", "turquoise")), (x, y), r)
        b.relate(pool, "in", dunes)
        n = b.number(3, 9)
        area = (max(3, x - r - 20), max(3, y - r - 20), min(125, x + r + 20), min(125, y + r + 20))
        b.relate(b.scatter("palm", n, 9, 9, colour="green", height=5, within=area, arrangement=None), "around", pool)
    elif d.chance(0.6):
        b.relate(crossing(b), "across", dunes)
    if d.chance(0.55):
        tint = d.pick(("brown", "grey", "dark"))
        b.scatter("rock", b.number(1, 8), d.between(7, 11), 7, colour=tint, height=3, gap=2)
    if d.chance(0.6):
        b.scatter("bush", b.number(2, 9), 5, 5, colour=d.pick(("green", "dark green")), height=1.5, gap=2)


@lays_out("farmland")
def farmland(b: Builder) -> None:
    """A mosaic of fields, parallel strips or centre pivots."""
    d = b.dice
    b.floor(*d.pick((("soil", "brown"), ("grass", "green"), ("grass", "yellow"))))
    frame = b.frame()
    crops = tuple(b.world.grounds["crop"])
    style = d.integer(0, 2)
    if style == 0:
        across, along = d.between(26, 40), d.between(30, 52)
        palette = [d.pick(crops) for _ in range(3)]
        items = []
        for row in range(-3, 3):
            shift = d.between(0, along)
            for col in range(-3, 3):
                x, y = frame.at((col + 0.5) * along + shift, (row + 0.5) * across)
                shape = box(x, y, along - 1, across - 1, frame.angle)
                items.append(b.item((x, y), along, across, frame.angle, d.pick(palette), 0, shape))
        shared = palette[0] if len(set(palette)) == 1 else None
        field = b.add("field", items, taken=False, counted=False, colour=shared, position=None, rank=0)
        if d.chance(0.7):
            lane = b.road(frame.across(0), d.between(3.5, 6), **d.pick(
                ({"colour": "grey"}, {"kind": "path", "colour": "pale"}, {"kind": "path", "colour": "brown"})
            ))  # fmt: skip
            b.relate(lane, "between", field)
    elif style == 1:
        n = d.integer(2, 6)
        width = 132 / n
        first, second = d.pick(crops), d.pick(crops)
        items = []
        frame = Frame(90 * d.integer(0, 1))
        for i in range(n):
            v = -66 + width * (i + 0.5)
            x, y = frame.at(0, v)
            items.append(b.item((x, y), 130, width, frame.angle, second if i % 2 else first, 0,
                                box(x, y, 136, width - 0.8, frame.angle)))  # fmt: skip
        field = b.add("field", items, taken=False, colour=first if first == second else None, position=None, rank=0,
                      arrangement="parallel")  # fmt: skip
    else:
        n = d.pick((1, 2, 3, 4, 4))
        r = 27 if n > 1 else d.between(36, 52)
        tint = d.pick(crops) if d.chance(0.6) else None
        cells = [(-30, -30), (30, -30), (-30, 30), (30, 30)]
        d.shuffle(cells)
        places = [(MIDDLE, MIDDLE)] if n == 1 else [(MIDDLE + x, MIDDLE + y) for x, y in cells[:n]]
        items = [b.item(p, 2 * r, 2 * r, d.between(0, 360), tint or d.pick(crops)) for p in places]
        b.add("pivot", items, taken=False, colour=tint, rank=0, arrangement="grid" if n == 4 else None)
        for x, y in places:
            b.take(circle(x, y, r))
    if d.chance(0.6):
        houses(b, 1, 3)
    if d.chance(0.7):
        b.trees(b.number(1, 9), size=7)


@lays_out("forest")
def forest(b: Builder) -> None:
    """Closed canopy, broken by at most one feature."""
    d = b.dice
    b.floor("forest", "green", "dark green", "green", "dark green", "yellow")
    cover = b.texture("canopy")
    feature = d.integer(0, 4)
    if feature == 0:
        b.relate(crossing(b), "through", cover)
    elif feature == 1:
        outline, middle = b.stream(b.frame(24), d.between(6, 11), d.between(6, 10))
        tint = b.water_colour("blue", "green", "brown", "dark")
        b.take_line(middle, 12)
        it = b.item(middle[12], 8, 8, 0, tint, 0, outline)
        b.relate(b.add("river", [it], taken=False, colour=tint, position=None, trait="narrow"), "through", cover)
    elif feature == 2:
        clearings = []
        for x, y in b.spots(d.integer(1, 3), 19):
            clearings.append(b.item((x, y), 26, 26, 0, "green", 0, b.blob(x, y, d.between(11, 16))))
        b.relate(b.add("clearing", clearings, taken=False, arrangement="scattered"), "in", cover)
    elif feature == 3:
        x, y, r = d.between(36, 92), d.between(36, 92), d.between(13, 20)
        tint = d.pick(("blue", "green", "dark"))
        b.relate(b.water("pond", b.blob(x, y, r), tint, (x, y), r), "in", cover)
    if d.chance(0.55):
        b.relate(houses(b, 1, 4, roofs=("red", "grey", "orange", "white")), "in", cover)
    elif d.chance(0.5):
        b.scatter("rock", b.number(1, 5), 9, 8, colour=d.pick(("grey", "brown")), height=2, gap=2)


@lays_out("meadow")
def meadow(b: Builder) -> None:
    """Open grassland with few trees."""
    d = b.dice
    b.floor("grass", "green", "green", "yellow")
    grass = b.texture("grassland")
    if d.chance(0.6):
        b.relate(crossing(b, width=4.5), "across", grass)
    if d.chance(0.35):
        frame = b.frame(16)
        if d.chance(0.5):
            bales = b.row("bale", frame, b.number(3, 7), 13, 0, 5, 5, colour="yellow", height=2)
            bales = [i for i in bales if inside(i, 2) and b.free(i.x, i.y, 3)]
            b.add("bale", bales, arrangement="row", colour="yellow")
        else:
            b.scatter("bale", b.number(3, 8), 5, 5, colour="yellow", height=2, gap=3)
    b.relate(b.trees(b.number(1, 8), size=d.between(8, 11)), "on", grass)
    if d.chance(0.35):
        b.scatter("bush", b.number(2, 8), 5, 5, colour="dark green", height=2, gap=2)


@lays_out("mountain")
def mountain(b: Builder) -> None:
    """Relief with a road, stream or tarn."""
    d = b.dice
    b.floor("rock", "brown", "green", "grey", "snowy")
    range_ = b.texture("mountains")
    if d.chance(0.45):
        b.relate(crossing(b, width=4.2), "through", range_)
    elif d.chance(0.5):
        outline, middle = b.stream(b.frame(24), d.between(6, 10), d.between(7, 12))
        tint = d.pick(("blue", "green", "turquoise", "dark"))
        b.take_line(middle, 10)
        it = b.item(middle[12], 8, 8, 0, tint, 0, outline)
        b.relate(b.add("river", [it], taken=False, colour=tint, position=None, trait="winding"), "through", range_)
    else:
        x, y, r = d.between(36, 92), d.between(36, 92), d.between(12, 20)
        tint = d.pick(("blue", "turquoise", "dark"))
        b.relate(b.water("pond", b.blob(x, y, r, rough=0.24), tint, (x, y), r), "in", range_)
    if d.chance(0.5):
        b.trees(b.number(2, 8), size=6.5, colour=d.pick(("green", "dark green")))
    elif d.chance(0.5):
        items = []
        tint = d.pick(("green", "dark green"))
        for x, y in b.spots(d.integer(1, 3), 17):
            items.append(b.item((x, y), 26, 26, 0, tint, 0, b.blob(x, y, d.between(11, 15), rough=0.25)))
        b.add("woods", items, taken=False, colour=tint)
    if d.chance(0.3):
        houses(b, 1, 3)
