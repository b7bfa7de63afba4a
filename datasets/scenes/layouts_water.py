"""Layouts of lakes, ponds and rivers."""

from __future__ import annotations

from petlbench.datasets.scenes.builder import Builder
from petlbench.datasets.scenes.geometry import MIDDLE, compass, direction_of, inside
from petlbench.datasets.scenes.layouts import lays_out
from petlbench.datasets.scenes.layouts_nature import band, houses


@lays_out("lake")
def lake(b: Builder) -> None:
    """One large body of water."""
    d = b.dice
    wooded = d.chance(0.35)
    if wooded:
        b.floor("forest", "green", "dark green", "yellow")
    else:
        b.grass()
    x, y, r = MIDDLE + d.between(-10, 10), MIDDLE + d.between(-10, 10), d.between(34, 46)
    tint = b.water_colour("blue", "blue", "green", "brown", "dark")
    shore = b.blob(x, y, r, rough=0.2)
    water = b.water("lake", shore, tint, (x, y), r, rank=0, trait=d.pick((None, "large")))
    if d.chance(0.5):
        spots = [(x + dx, y + dy) for dx, dy in ((-13, -9), (14, 7), (-10, 13))][: d.integer(1, 3)]
        items = [b.item(p, 10, 10, 0, "green", 0, b.blob(*p, d.between(4, 6.5), steps=14)) for p in spots]
        b.relate(b.add("island", items, taken=False, position=None), "in", water)
    elif d.chance(0.6):
        spots = [(x + dx, y + dy) for dx, dy in ((-12, -8), (13, 6), (-8, 12), (6, -14))][: d.integer(1, 4)]
        items = [b.item(p, 8, 3.4, d.between(0, 360), "white", 1) for p in spots]
        b.relate(b.add("boat", items, taken=False, colour="white", position=None, arrangement="scattered"), "on", water)
    if d.chance(0.6):
        b.relate(houses(b, 1, 5), "near", water)
    if not wooded:
        n = d.integer(3, 8) if d.chance(0.5) else d.integer(24, 40)
        b.relate(b.trees(n), "around" if n > 9 else "near", water)


@lays_out("pond")
def pond(b: Builder) -> None:
    """One to three small bodies of water in open ground."""
    d = b.dice
    b.grass()
    n = d.pick((1, 1, 1, 2, 3))
    tint = b.water_colour("blue", "green", "brown", "dark")
    items = []
    for x, y in b.spots(n, 25 if n == 1 else 20, (20, 20, 108, 108)):
        r = d.between(16, 23) if n == 1 else d.between(11, 15)
        outline = b.blob(x, y, r)
        items.append(b.item((x, y), 2 * r, 2 * r, 0, tint, 0, outline))
    water = b.add("pond", items, colour=tint, rank=0, arrangement=None)
    if d.chance(0.6):
        frame = b.frame()
        v = d.pick((-1, 1)) * d.between(42, 54)
        kind = d.pick(("road", "path"))
        tone = "grey" if kind == "road" else d.pick(("pale", "brown"))
        b.relate(b.road(frame.across(v), 6 if kind == "road" else 2.8, kind=kind, colour=tone), "beside", water)
    if d.chance(0.5):
        b.relate(houses(b, 1, 4), "near", water)
    many = d.chance(0.5)
    b.relate(b.trees(d.integer(26, 40) if many else b.number(2, 9)), "around" if many else "near", water)


@lays_out("river")
def river(b: Builder) -> None:
    """A river right across the frame and its banks."""
    d = b.dice
    b.floor(*d.pick((("grass", "green"), ("grass", "yellow"), ("soil", "brown"), ("forest", "green"))))
    frame, width = b.frame(8), d.between(15, 30)
    bend = d.pick((2.0, d.between(9, 15)))
    outline, middle = b.stream(frame, width, bend)
    tint = b.water_colour("blue", "green", "brown", "dark")
    it = b.item(middle[12], width, width, frame.angle, tint, 0, outline)
    b.take_line(middle, width * 1.3 + 3)
    water = b.add("river", [it], taken=False, colour=tint, position=None, rank=0,
                  direction=direction_of(frame.angle), trait="winding" if bend > 3 else "straight")  # fmt: skip
    if d.chance(0.45):
        spots = [middle[k] for k in (9, 12, 15)][: d.integer(1, 3)]
        boats = [b.item(p, 8.5, 3.4, frame.angle + d.between(-20, 20), "white", 1) for p in spots]
        boats = [i for i in boats if inside(i, 2)]
        b.relate(b.add("boat", boats, taken=False, colour="white", position=None), "on", water)
    side = d.pick((-1, 1))
    if b.ground != "forest" and d.chance(0.45):
        cover, v = b.leaf(), width / 2 + bend + 8
        strip = band(frame, side * v, side * 120)
        it = b.item(frame.at(0, side * (v + 14)), 128, 20, 0, cover, 0, strip)
        wood = b.add("woods", [it], colour=cover, counted=False, position=compass(frame.angle + 90 * side))
        b.relate(wood, "along", water)
    elif d.chance(0.5):
        line = frame.across(side * (width / 2 + bend + 9))
        b.relate(b.road(line, d.between(4, 6)), "along", water)
    if d.chance(0.6):
        b.relate(houses(b, 1, 6), "near", water)
    if b.ground != "forest":
        b.trees(b.number(2, 9) if d.chance(0.5) else d.integer(16, 28))
