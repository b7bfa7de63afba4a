"""Layouts of settled and industrial scenes."""

from __future__ import annotations

from petlbench.datasets.scenes.builder import Builder
from petlbench.datasets.scenes.canvas import box
from petlbench.datasets.scenes.geometry import Frame, direction_of, inside
from petlbench.datasets.scenes.layouts import lays_out
from petlbench.datasets.scenes.layouts_nature import crossing
from petlbench.datasets.scenes.model import Item
from petlbench.datasets.scenes.palette import ROOFS


def streets(b: Builder, frame: Frame, offsets: list[float], width: float, **facts) -> int:
    """Parallel roads along the heading, as one group."""
    items = []
    for v in offsets:
        line = frame.across(v)
        b.take_line(line, width + 2)
        items.append(b.item(frame.at(0, v), 200, width, frame.angle, "grey", 0, line))
    facts = {"direction": direction_of(frame.angle), "position": None, **facts}
    return b.add("road", items, taken=False, colour="grey", arrangement="parallel", **facts)


def lots(
    b: Builder, frame: Frame, us: list[float], vs: list[float], a: float, d: float, tints, height=4.5
) -> list[Item]:
    """Houses at every (u, v) of a grid, with a little disorder."""
    items = []
    for v in vs:
        for u in us:
            x, y = frame.at(u + b.dice.between(-1, 1), v + b.dice.between(-0.6, 0.6))
            if -8 < x < 136 and -8 < y < 136:
                tint = tints if isinstance(tints, str) else b.dice.pick(tints)
                size = b.dice.between(0.88, 1.06)
                items.append(b.item((x, y), a * size, d * size, frame.angle + (90 if d > a else 0), tint, height))
    return [i._replace(a=max(i.a, i.b), b=min(i.a, i.b)) for i in items]


@lays_out("dense residential")
def dense(b: Builder) -> None:
    """Rows of houses wall to wall along narrow streets."""
    d, z = b.dice, b.zoom
    b.floor("concrete")
    frame = b.frame(6)
    a, w, road = 8.6 * z, 7.2 * z, 5.5
    block = 2 * w + 2.2 + road + 2.4
    offsets = [(k + 0.5) * block for k in range(-4, 4)]
    shown = [v for v in offsets if abs(v) < 58]
    way = streets(b, frame, shown, road)
    if d.chance(0.4):
        b.road([frame.at(d.between(-30, 30), -100), frame.at(d.between(-30, 30), 100)], 6, rank=2)
    tints = d.pick((d.pick(ROOFS), d.pick(ROOFS), ROOFS, ROOFS))
    us = [(k + 0.5) * (a + 1.3) for k in range(-10, 10)]
    rows = [v + s * (road / 2 + 1.4 + w / 2) for v in [*shown, shown[-1] + block, shown[0] - block] for s in (-1, 1)]
    items = [i for i in lots(b, frame, us, rows, a, w, tints) if b.free(i.x, i.y, 2)]
    homes = b.add("house", items, counted=False, position=None, rank=0, arrangement="rows",
                  colour=tints if isinstance(tints, str) else None)  # fmt: skip
    b.relate(homes, "lining", way)
    b.traffic(frame, [shown[len(shown) // 2] + s for s in (-1.3, 1.3)], b.number(2, 7), rank=1)
    b.trees(b.number(2, 9) if d.chance(0.4) else d.integer(10, 20), size=5)


@lays_out("medium residential")
def medium(b: Builder) -> None:
    """Houses with gardens along one or two streets."""
    d, z = b.dice, b.zoom
    b.grass()
    frame = b.frame(5)
    offsets = [d.between(-6, 6)] if d.chance(0.55) else [-32.0, 32.0]
    way = streets(b, frame, offsets, d.between(5.5, 7))
    tints = d.pick((d.pick(ROOFS), d.pick(ROOFS), ROOFS))
    step = d.between(19, 24) * z
    us = [(k + 0.5) * step for k in range(-4, 4)]
    rows = [v + s * 15 for v in offsets for s in (-1, 1)]
    items = [i for i in lots(b, frame, us, rows, 13 * z, 10 * z, tints) if inside(i, 1)]
    homes = b.add("house", items, counted=len(items) <= 12, position=None, rank=0, arrangement="rows",
                  colour=tints if isinstance(tints, str) else None)  # fmt: skip
    b.relate(homes, "lining", way)
    if d.chance(0.4):
        b.scatter("pool", d.integer(1, 3), 7, 5, colour="turquoise", height=0, angle=frame.angle, gap=1.5)
    if d.chance(0.6):
        b.traffic(frame, [offsets[0] - 1.5, offsets[0] + 1.5], b.number(1, 5))
    b.relate(b.trees(b.number(4, 9) if d.chance(0.35) else d.integer(18, 34), size=7.5), "around", homes)


@lays_out("sparse residential")
def sparse(b: Builder) -> None:
    """One to five houses in open ground."""
    d = b.dice
    b.floor(*d.pick((("grass", "green"), ("grass", "yellow"), ("soil", "brown"))))
    n = d.integer(1, 5)
    tint = d.pick(ROOFS)
    size = 17 * b.zoom
    way = crossing(b)
    home = b.scatter("house", n, size, size * 0.68, colour=tint, height=6, gap=3, rank=0)
    b.relate(home, "near", way)
    if d.chance(0.3):
        b.scatter("pool", 1, 9, 6, colour="turquoise", height=0)
    if d.chance(0.3):
        b.scatter("car", b.number(1, 3), 4.8, 2.2, colour=d.pick(("white", "red", "blue")), height=1.4, gap=1)
    b.relate(b.trees(b.number(2, 9) if d.chance(0.45) else d.integer(20, 36)), "around", home)


@lays_out("commercial area")
def commercial(b: Builder) -> None:
    """Large and tall buildings at a street crossing."""
    d = b.dice
    b.floor("concrete")
    frame = b.frame(4)
    road = d.between(8, 11)
    way = streets(b, frame, [0.0], road)
    cross = Frame(frame.angle + 90, *frame.at(d.between(-8, 8), 0))
    b.take_line(cross.across(0), road + 2)
    b.road(cross.across(0), road, rank=2)
    tint = d.pick(("white", "grey", "pale", "brown")) if d.chance(0.5) else None
    items = []
    cells = [(u, v) for u in (-44, -21, 22, 45) for v in (-38, -17, 18, 39)]
    d.shuffle(cells)
    for u, v in cells[: b.number(6, 14)]:
        a, w = d.between(15, 20), d.between(14, 18)
        it = b.item(frame.at(u, v), a, w, frame.angle, tint or d.pick(("white", "grey", "pale", "brown", "blue")),
                    d.between(10, 26))  # fmt: skip
        if inside(it, 3) and b.free(it.x, it.y, 4):
            items.append(it)
    blocks = b.add("block", items, position=None, rank=0, colour=tint, trait=d.pick((None, "tall")))
    b.relate(blocks, "lining", way)
    b.traffic(frame, [-road / 4, road / 4], b.number(3, 9))
    if d.chance(0.6):
        b.trees(b.number(2, 9) if d.chance(0.5) else d.integer(12, 20), size=6)


@lays_out("church")
def church(b: Builder) -> None:
    """A church with its yard."""
    d = b.dice
    if d.chance(0.6):
        b.grass()
    else:
        b.floor("paved", "pale")
    frame = b.frame(8)
    size = d.between(44, 56)
    tint = d.pick(("red", "grey", "brown", "dark", "green"))
    main = b.add("church", [b.item((frame.x, frame.y), size, size * 0.62, frame.angle, tint, 9)], colour=tint, rank=0)
    if d.chance(0.7):
        side = d.pick((-1, 1))
        b.relate(b.road(frame.across(side * d.between(38, 46)), 6), "beside", main)
    if d.chance(0.6):
        b.relate(b.scatter("house", b.number(1, 6), 13, 9.5, colour=d.pick(ROOFS), height=5,
                           angle=frame.angle, gap=0.5), "around", main)  # fmt: skip
    if d.chance(0.4):
        b.scatter("car", b.number(2, 6), 4.8, 2.2, colour=d.pick(("white", "red", "black")), height=1.4, gap=0.6)
    b.relate(b.trees(b.number(3, 9) if d.chance(0.5) else d.integer(14, 26)), "around", main)


@lays_out("square")
def square(b: Builder) -> None:
    """A paved square with a centrepiece."""
    d = b.dice
    b.floor("asphalt")
    frame = b.frame(3)
    side = d.between(58, 70)
    tone = d.pick(("pale", "pale", "reddish"))
    plaza = b.add("plaza", [b.item((frame.x, frame.y), side, side, frame.angle, tone)], colour=tone, rank=0)
    b.add("tiles", [b.item((frame.x, frame.y), side, side, frame.angle)], taken=False, rank=2)
    if d.chance(0.5):
        r = d.between(13, 18)
        centre = b.add("fountain", [b.item((frame.x, frame.y), r, r, 0, "grey", 1.5)])
    else:
        centre = b.add("monument", [b.item((frame.x, frame.y), 8, 8, frame.angle, d.pick(("grey", "pale")), 9)])
    b.relate(centre, "in the middle of", plaza)
    planted = d.integer(0, 2)
    if planted:
        cover = b.leaf()
        trees = []
        for v in (-1, 1) if planted == 2 else (d.pick((-1, 1)),):
            trees += b.row("tree", frame, 5, side / 5.6, v * (side / 2 - 6), 7.5, 7.5, colour=cover, height=4)
        b.relate(b.add("tree", trees, colour=cover, taken=False, arrangement="rows" if planted == 2 else "row"),
                 "on", plaza)  # fmt: skip
    else:
        beds = [b.item(frame.at(u * side * 0.3, v * side * 0.3), 9, 9, 0, d.pick(("red", "yellow")))
                for u in (-1, 1) for v in (-1, 1)]  # fmt: skip
        b.relate(b.add("flowerbed", beds, taken=False, position=None, arrangement="grid"), "on", plaza)
    tint = d.pick(("white", "brown", "pale", "red"))
    blocks = []
    for k in range(4):
        if d.chance(0.75):
            wing = Frame(frame.angle + 90 * k, frame.x, frame.y)
            it = b.item(wing.at(0, side / 2 + 13), side * 0.62, 12, wing.angle, tint, 8)
            if inside(it, 0):
                blocks.append(it)
    b.relate(b.add("block", blocks, colour=tint), "around" if len(blocks) > 2 else "beside", plaza)
    if d.chance(0.5):
        b.scatter("car", b.number(2, 7), 4.8, 2.2, colour=d.pick(("white", "red", "black")), height=1.4,
                  angle=frame.angle, gap=0.6)  # fmt: skip


@lays_out("resort")
def resort(b: Builder) -> None:
    """Pools before hotels."""
    d = b.dice
    b.floor("grass", "green")
    frame = b.frame(4)
    shore = d.chance(0.35)
    if shore:
        edge = d.between(34, 42)
        wet, _ = b.stream(frame, 2, 2, edge)
        outline = [*wet[:25], frame.at(130, 130), frame.at(-130, 130)]
        b.take(outline)
        it = b.item(frame.at(0, 60), 128, 1, frame.angle, "turquoise", 0, outline)
        b.add("sea", [it], taken=False, colour="turquoise", counted=False, position=None)
    n = d.integer(1, 3)
    x0 = -(n - 1) * 17
    pools = []
    for i in range(n):
        at = frame.at(x0 + 34 * i, d.between(-4, 10))
        wide = d.between(20, 26)
        shape = b.blob(*at, wide * 0.42, stretch=1.2, rough=0.22) if d.chance(0.55) else box(
            *at, wide, wide * 0.5, frame.angle)  # fmt: skip
        pools.append(b.item(at, wide, wide * 0.6, frame.angle, "turquoise", 0, shape))
    pools = [p for p in pools if inside(p, 2)]
    deck = [b.item((p.x, p.y), p.a + 9, p.b + 11, p.angle, "pale") for p in pools]
    b.add("plaza", deck, rank=2)
    swim = b.add("pool", pools, colour="turquoise", rank=0, arrangement="row")
    tint = d.pick(("orange", "red", "white", "brown"))
    items = [b.item(frame.at(-42 + 28 * i, -d.between(38, 42)), 24, 13, frame.angle, tint, 7) for i in range(4)]
    if d.chance(0.5):
        items = items[1:3]
    hotel = b.add("hotel", [i for i in items if inside(i, 1)], colour=tint, arrangement="row")
    b.relate(swim, "beside", hotel)
    if d.chance(0.75):
        spots = [frame.at(d.between(-44, 44), d.pick((-16, 22)) + d.between(-2, 2)) for _ in range(b.number(3, 9))]
        sun = d.pick(("white", "red", "blue", "yellow"))
        items = []
        for at in spots:
            if b.free(*at, 2.5) and 4 < at[0] < 124 and 4 < at[1] < 124:
                items.append(b.item(at, 5, 5, 0, sun, 2))
                b.take_disc(*at, 3)
        b.relate(b.add("parasol", items, taken=False, colour=sun, arrangement="scattered"), "near", swim)
    if d.chance(0.7):
        n = b.number(3, 9) if d.chance(0.6) else 20
        b.scatter("palm", n, 10, 10, colour="green", height=5, gap=0, counted=n < 10)
    else:
        b.trees(d.integer(12, 22), size=6.5)
