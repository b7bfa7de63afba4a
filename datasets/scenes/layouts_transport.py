"""Layouts of roads, rails, water ways and airports."""

from __future__ import annotations

from petlbench.datasets.scenes.builder import Builder
from petlbench.datasets.scenes.geometry import MIDDLE, Frame, compass, direction_of, inside
from petlbench.datasets.scenes.layouts import lays_out
from petlbench.datasets.scenes.layouts_built import streets
from petlbench.datasets.scenes.layouts_nature import houses
from petlbench.datasets.scenes.model import Item
from petlbench.datasets.scenes.palette import ROOFS, VEHICLES


@lays_out("airport")
def airport(b: Builder) -> None:
    """Runways, apron, terminal, aircraft."""
    d = b.dice
    b.floor(*d.pick((("grass", "green"), ("grass", "yellow"), ("soil", "brown"))))
    frame = b.frame(3)
    side = d.pick((-1, 1))
    lanes = [-36.0] if d.chance(0.6) else [-46.0, -28.0]
    width = 11.0 if len(lanes) == 1 else 8.5
    strips = []
    for v in lanes:
        line = frame.across(v * side)
        b.take_line(line, width + 4)
        strips.append(b.item(frame.at(0, v * side), 150, width, frame.angle, "dark", 0, line))
    strip = b.add("runway", strips, taken=False, position=None, direction=direction_of(frame.angle),
                  arrangement="parallel", rank=0)  # fmt: skip
    apron = frame.at(0, 14 * side)
    b.add("apron", [b.item(apron, 108, 44, frame.angle, "grey")], taken=False, rank=2)
    u = d.between(-30, 30)
    b.road([frame.at(u, (lanes[-1] + 4) * side), frame.at(u + d.between(-9, 9), -7 * side)], 6, rank=2)
    n = d.integer(1, 7)
    size = min(21.0, 98 / n) * d.between(0.86, 0.98)
    tint = d.pick(("white", "white", "white", "grey", "blue"))
    step = min(24.0, 100 / n)
    planes = b.row("plane", frame, n, step, 9 * side, size, size, colour=tint, height=4, turn=90 * side)
    aircraft = b.add("plane", [i for i in planes if inside(i, 0)], colour=tint, arrangement="row", rank=0)
    roof = d.pick(("white", "grey", "blue", "brown"))
    hall = b.add("terminal", [b.item(frame.at(0, 32 * side), d.between(62, 92), 11, frame.angle, roof, 8)], colour=roof)
    b.relate(aircraft, "beside", hall)
    b.relate(hall, "beside", strip)
    b.take([frame.at(u, v * side) for u, v in ((-56, -9), (56, -9), (56, 40), (-56, 40))])
    if d.chance(0.5):
        b.trees(b.number(2, 7), size=6)


@lays_out("bridge")
def bridge(b: Builder) -> None:
    """One or two bridges over a wide river."""
    d = b.dice
    b.floor(*d.pick((("grass", "green"), ("grass", "yellow"), ("soil", "brown"), ("concrete", "grey"))))
    frame, width = b.frame(4), d.between(44, 64)
    outline, middle = b.stream(frame, width, 2)
    tint = b.water_colour("blue", "green", "brown", "dark")
    b.take_line(middle, width * 1.12)
    water = b.add("river", [b.item(middle[12], width, width, 0, tint, 0, outline)], taken=False, colour=tint,
                  position=None, direction=direction_of(frame.angle), trait=d.pick((None, "wide")))  # fmt: skip
    n = 1 if d.chance(0.65) else 2
    wide = d.between(8, 13) if n == 1 else d.between(7, 9)
    us = [d.between(-12, 12)] if n == 1 else [-d.between(15, 24), d.between(15, 24)]
    decks: list[Item] = []
    for u in us:
        line = (frame.at(u, -100), frame.at(u, 100))
        b.take_line(line, wide + 2)
        decks.append(b.item(frame.at(u, 0), 200, wide, frame.angle + 90, "grey", 6, line))
    across = b.add("bridge", decks, taken=False, position=None, direction=direction_of(frame.angle + 90),
                   arrangement="parallel", rank=0)  # fmt: skip
    b.relate(across, "over", water)
    lane = Frame(frame.angle + 90, *frame.at(us[0], 0))
    if d.chance(0.75):
        b.relate(b.traffic(lane, [-wide * 0.22, wide * 0.22], b.number(1, 7)), "on", across)
    if d.chance(0.5):
        spots = [frame.at(u, d.between(-12, 12)) for u in (-44, 44)][: d.integer(1, 2)]
        boats = [b.item(p, 10, 4, frame.angle, "white", 1.2) for p in spots]
        b.relate(b.add("boat", [i for i in boats if inside(i, 1)], taken=False, colour="white"), "on", water)
    if d.chance(0.5):
        houses(b, 1, 6)
    b.relate(b.trees(b.number(2, 8) if d.chance(0.5) else d.integer(12, 24)), "near", water)


@lays_out("parking lot")
def parking_lot(b: Builder) -> None:
    """Rows of bays, nearly empty or well filled."""
    d = b.dice
    b.floor("asphalt")
    frame = b.frame(2)
    rows = d.integer(2, 5)
    depth, bay, length = 9.5, 3.6, 96.0
    side = d.pick((-1, 1))
    shift = -8.0 * side
    offsets = [(k - (rows - 1) / 2) * 17.5 + shift for k in range(rows)]
    marks = [b.item(frame.at(0, v), length, depth, frame.angle, "white") for v in offsets]
    marks = [m for m in marks if -10 < m.x < 138]
    lanes = b.add("slots", marks, arrangement="parallel", position=None, direction=direction_of(frame.angle))
    few = d.chance(0.35)
    fill = d.between(0.45, 0.95)
    bays = [(u, v) for v in offsets for u in range(round(length / 3.4))]
    if few:
        d.shuffle(bays)
        bays = bays[: d.integer(2, 9)]
    tint = d.pick(VEHICLES) if few and d.chance(0.5) else None
    pitch = length / round(length / 3.4)
    cars = []
    for u, v in bays:
        if few or d.chance(fill):
            at = frame.at(-length / 2 + (u + 0.5) * pitch, v)
            turn = frame.angle + d.pick((90, 270))
            it = b.item(at, bay * 1.9, bay * 0.74, turn, tint or d.pick(VEHICLES), 1.2)
            if inside(it, 0):
                cars.append(it)
    parked = b.add("car", cars, taken=False, counted=few, colour=tint, rank=0, position=None,
                   arrangement="scattered" if few else "rows")  # fmt: skip
    b.relate(parked, "among", lanes)
    for v in offsets:
        b.take_line(frame.across(v), 16)
    if d.chance(0.75):
        a = d.between(46, 66)
        tone = d.pick(("white", "grey", "brown", "blue"))
        it = b.item(frame.at(d.between(-8, 8), side * 50), a, 15, frame.angle, tone, 7)
        b.relate(parked, "beside", b.add("block", [it] if inside(it, -4) else [], colour=tone))
    b.trees(b.number(2, 8), size=6.5)


@lays_out("port")
def port(b: Builder) -> None:
    """A marina with jetties or a quay with ships."""
    d = b.dice
    b.floor("concrete")
    frame = b.frame(0)
    edge = d.between(-18, -8)
    outline = [frame.at(-130, edge), frame.at(130, edge), frame.at(130, 130), frame.at(-130, 130)]
    tint = d.pick(("blue", "blue", "green", "dark"))
    it = b.item(frame.at(0, edge + 40), 128, 0, frame.angle, tint, 0, outline)
    sea = b.add("sea", [it], colour=tint, counted=False, position=compass(frame.angle + 90))
    if d.chance(0.6):  # a marina
        n = d.integer(1, 4)
        gap = 92 / max(n, 2)
        piers = [b.item(frame.at((i - (n - 1) / 2) * gap, edge + 21), 46, 3.4, frame.angle + 90, "pale", 1)
                 for i in range(n)]  # fmt: skip
        jetty = b.add("pier", [p for p in piers if inside(p, 0)], taken=False, position=None, arrangement="parallel")
        boats = []
        fill = d.pick((0.25, 0.9))
        for p in piers:
            for k in range(5):
                for s in (-1, 1):
                    if d.chance(fill):
                        at = Frame(p.angle, p.x, p.y).at(-16 + 8.4 * k, s * 7)
                        it = b.item(at, 10, 3.8, p.angle + 90, "white", 1.3)
                        if inside(it, 1):
                            boats.append(it)
        group = b.add("boat", boats, taken=False, counted=len(boats) <= 12, colour="white", position=None, rank=0)
        b.relate(group, "beside", jetty)
    else:
        n = d.integer(1, 3)
        hull = d.pick(("red", "blue", "dark", "grey"))
        span = min(58.0, 100 / n - 6)
        ships = b.row("ship", frame, n, span + 6, edge + 10, span, max(9.0, span * 0.22), colour=hull, height=4)
        ships = [i for i in ships if inside(i, 0)]
        group = b.add("ship", ships, taken=False, colour=hull, arrangement="row", rank=0)
        b.relate(group, "on", sea)
        boxes = b.row("container", frame, d.integer(5, 10), 9.4, edge - 12, 8.4, 4,
                      colour=("red", "blue", "green", "orange", "white"), height=3)  # fmt: skip
        boxes = [i for i in boxes if inside(i, 1)]
        b.relate(b.add("container", boxes, arrangement="row"), "beside", group)
    roof = d.pick(("blue", "grey", "red", "white"))
    n = d.integer(1, 3)
    sheds = b.row("warehouse", frame, n, 36, edge - 30, 32, 14, colour=roof, height=6)
    b.add("warehouse", [i for i in sheds if inside(i, 0)], colour=roof, arrangement="row")
    if d.chance(0.5):
        b.scatter("truck", b.number(1, 5), 8.5, 3.4, colour=d.pick(("white", "red", "blue")), height=2, gap=0.5,
                  angle=frame.angle)  # fmt: skip
    elif d.chance(0.6):
        b.trees(b.number(2, 6), size=6)


@lays_out("railway station")
def station(b: Builder) -> None:
    """Parallel tracks, trains, a station building."""
    d = b.dice
    b.floor(*d.pick((("soil", "brown"), ("concrete", "grey"), ("grass", "yellow"))))
    frame = b.frame(3)
    n = d.integer(3, 8)
    step, wide = 7.0, 4.4
    side = d.pick((-1, 1))
    v0 = -side * 14
    offsets = [v0 + (k - (n - 1) / 2) * step for k in range(n)]
    tracks = []
    for v in offsets:
        line = frame.across(v)
        b.take_line(line, wide + 2)
        tracks.append(b.item(frame.at(0, v), 200, wide, frame.angle, "grey", 0, line))
    rails = b.add("track", tracks, taken=False, position=None, direction=direction_of(frame.angle),
                  arrangement="parallel", rank=0)  # fmt: skip
    lanes = list(offsets)
    d.shuffle(lanes)
    tint = d.pick(("red", "blue", "white", "green", "yellow"))
    trains = [b.item(frame.at(d.between(-10, 10), v), d.between(56, 84), 3.8, frame.angle, tint, 2)
              for v in lanes[: d.pick((0, 1, 1, 2, 3))]]  # fmt: skip
    trains = [i for i in trains if inside(i, 0)]
    b.relate(b.add("train", trains, taken=False, colour=tint, position=None), "on", rails)
    edge = v0 + side * (n * step / 2 + 1)
    tone = d.pick(("white", "grey"))
    roof = b.item(frame.at(0, edge + side * 4), 84, 6, frame.angle, tone, 3)
    b.add("platform", [roof] if inside(roof, -3) else [], colour=tone, rank=1)
    colour = d.pick(("red", "brown", "white", "blue"))
    hall = b.item(frame.at(d.between(-8, 8), edge + side * 18), d.between(46, 66), 16, frame.angle, colour, 9)
    b.relate(b.add("station", [hall] if inside(hall, -2) else [], colour=colour), "beside", rails)
    if d.chance(0.6):
        b.scatter("car", b.number(2, 7), 4.8, 2.2, colour=d.pick(("white", "red", "black")), height=1.4,
                  angle=frame.angle, gap=0.7)  # fmt: skip
    if d.chance(0.6):
        b.trees(b.number(2, 8), size=6.5)


@lays_out("roundabout")
def roundabout(b: Builder) -> None:
    """A ring with three to five roads."""
    d = b.dice
    b.floor(*d.pick((("grass", "green"), ("grass", "yellow"), ("concrete", "grey"))))
    x, y = MIDDLE + d.between(-7, 7), MIDDLE + d.between(-7, 7)
    outer = d.between(46, 60)
    width = d.between(8, 10.5)
    n = d.integer(3, 5)
    first = d.between(0, 360)
    arms: list[Item] = []
    for k in range(n):
        arm = Frame(first + k * 360 / n, x, y)
        line = (arm.at(outer / 2 - 3, 0), arm.at(130, 0))
        b.take_line(line, width + 2)
        arms.append(b.item(arm.at(60, 0), 80, width, arm.angle, "grey", 0, line))
    inner = outer - 2 * width - 2
    ring = b.item((x, y), outer, inner, 0, "grey")
    roads = b.add("road", arms, taken=False, colour="grey", position=None)
    circle = b.add("roundabout", [ring], taken=False, rank=0)
    b.relate(roads, "meeting at", circle)
    reach = inner / 2
    if d.chance(0.35):
        b.add("fountain", [b.item((x, y), reach * 0.8, reach * 0.8, 0, "grey", 1.5)], taken=False)
        b.relate(len(b.groups) - 1, "in the middle of", circle)
    else:
        cover = b.leaf()
        k = d.integer(1, 4)
        spots = [(x, y)] if k == 1 else [Frame(i * 360 / k, x, y).at(reach * 0.55, 0) for i in range(k)]
        trees = [b.item(p, reach * 0.62, reach * 0.62, 0, cover, 4) for p in spots]
        b.relate(b.add("tree", trees, taken=False, colour=cover), "in the middle of", circle)
    b.take_disc(x, y, outer / 2 + 2)
    cars: list[Item] = []
    for k in range(b.number(2, 8)):
        lane = Frame(first + (k % n) * 360 / n, x, y)
        at = lane.at(outer / 2 + 8 + 11 * (k // n), width * 0.24 * (1 if k % 2 else -1))
        it = b.item(at, 4.8, 2.2, lane.angle, d.pick(VEHICLES), 1.3)
        if inside(it, 2):
            cars.append(it)
    b.relate(b.add("car", cars, taken=False, position=None), "on", roads)
    if d.chance(0.55):
        b.relate(b.scatter("house", b.number(1, 7), 13, 9.5, colour=d.pick(ROOFS), height=5, gap=0.5),
                 "around", circle)  # fmt: skip
    else:
        b.scatter("bush", b.number(3, 9), 6, 6, colour="dark green", height=3, gap=1)


@lays_out("viaduct")
def viaduct(b: Builder) -> None:
    """Elevated roads over a road."""
    d = b.dice
    b.floor(*d.pick((("grass", "green"), ("grass", "yellow"), ("concrete", "grey"))))
    frame = b.frame(5)
    low = streets(b, frame, [0.0], 13)
    n = d.integer(1, 3)
    turns = [90 + d.between(-12, 12), 45 + d.between(-8, 8), 135 + d.between(-8, 8)]
    decks = []
    for k in range(n):
        line_frame = Frame(frame.angle + turns[k], frame.x, frame.y)
        line = list(line_frame.across(0))
        if k > 0:
            _, line = b.stream(line_frame, 8, d.between(9, 14), d.between(-8, 8))
        b.take_line(line, 14)
        decks.append(b.item((frame.x, frame.y), 200, 12 if k == 0 else 9, line_frame.angle, "grey", 9 - 2 * k, line))
    decks.reverse()
    facts = {"direction": direction_of(frame.angle + turns[0])} if n == 1 else {}
    upper = b.add("overpass", decks, taken=False, position=None, rank=0, **facts)
    b.relate(upper, "over", low)
    lane = Frame(frame.angle + turns[0], frame.x, frame.y)
    if n == 1:
        b.relate(b.traffic(lane, [-2.8, 2.8], b.number(1, 7), d.pick(("car", "car", "truck"))), "on", upper)
    if d.chance(0.5):
        houses(b, 1, 6)
    b.trees(b.number(2, 9) if d.chance(0.45) else d.integer(16, 30), size=7)
