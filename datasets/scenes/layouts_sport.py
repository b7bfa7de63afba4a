"""Layouts of sports grounds."""

from __future__ import annotations

from petlbench.datasets.scenes.builder import Builder
from petlbench.datasets.scenes.geometry import MIDDLE, Frame, inside
from petlbench.datasets.scenes.layouts import lays_out
from petlbench.datasets.scenes.palette import ROOFS


def surroundings(b: Builder, subject: int, frame: Frame, edge: float) -> None:
    """What stands around a sports ground: a road, houses or cars, trees."""
    d = b.dice
    side = d.pick((-1, 1))
    if d.chance(0.65) and edge < 52:
        b.relate(b.road(frame.across(side * (edge + d.between(5, 9))), 6), "beside", subject)
    if d.chance(0.45):
        n = b.number(1, 5)
        b.scatter("house", n, 14, 10, colour=d.pick(ROOFS), height=5, angle=frame.angle, gap=0.5)
    if d.chance(0.4):
        tint = d.pick(("white", "red", "blue", "black"))
        b.scatter("car", b.number(2, 8), 4.8, 2.2, colour=tint, height=1.4, angle=frame.angle, gap=0.8)
    many = d.chance(0.45)
    b.relate(b.trees(d.integer(14, 28) if many else b.number(2, 9), size=7), "around" if many else "near", subject)


@lays_out("baseball field")
def baseball(b: Builder) -> None:
    """One, two or four diamonds."""
    d = b.dice
    b.grass()
    n = d.pick((1, 1, 2, 4))
    frame = b.frame(0)
    if n == 1:
        size = d.between(66, 84)
        places = [(MIDDLE + d.between(-6, 6), MIDDLE + d.between(-6, 6), frame.angle)]
    elif n == 2:
        size = d.between(46, 52)
        places = [(*frame.at(s * 28, d.between(-6, 6)), frame.angle + 90 + 180 * (s > 0)) for s in (-1, 1)]
    else:
        size = d.between(40, 45)
        turn = d.pick((0, 180))
        cells = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        places = [(MIDDLE + u * 30, MIDDLE + v * 30, 225 + 90 * k + turn) for k, (u, v) in enumerate(cells)]
    items = [b.item((x, y), size, size, angle) for x, y, angle in places]
    field = b.add("diamond", items, taken=False, rank=0, arrangement="grid" if n == 4 else None)
    for x, y, _ in places:
        b.take_disc(x, y, size * 0.6)
    surroundings(b, field, frame, 44)


@lays_out("golf course")
def golf(b: Builder) -> None:
    """Fairways, greens and bunkers."""
    d = b.dice
    b.floor("grass", "green")
    for _ in range(d.integer(1, 2)):
        x, y = d.between(30, 98), d.between(30, 98)
        shape = b.blob(x, y, d.between(22, 28), stretch=1.5, rough=0.2)
        b.add("fairway", [b.item((x, y), 50, 30, 0, "pale", 0, shape)], taken=False, rank=2)
    pond = -1
    if d.chance(0.55):
        x, y, r = d.between(30, 98), d.between(30, 98), d.between(12, 17)
        pond = b.water("pond", b.blob(x, y, r), d.pick(("blue", "green", "dark")), (x, y), r)
    greens = [b.item(p, 18, 18, 0, "green", 0, b.blob(*p, d.between(7.5, 9.5))) for p in b.spots(d.integer(1, 3), 11)]
    put = b.add("green", greens, taken=False, arrangement="scattered")
    traps = [b.item(p, 12, 12, 0, "pale", 0, b.blob(*p, d.between(4.5, 6.5), stretch=1.25, rough=0.3, steps=18))
             for p in b.spots(d.integer(2, 9), 8)]  # fmt: skip
    sand = b.add("bunker", traps, taken=False, rank=0, arrangement="scattered")
    b.relate(sand, "near", put)
    b.relate(sand, "near", pond)
    if d.chance(0.5):
        _, middle = b.stream(b.frame(30), 3, 8)
        b.road(middle, 2.2, kind="path", colour="pale", trait="winding", direction=None)
    b.trees(b.number(4, 9) if d.chance(0.4) else d.integer(20, 36), size=7.5)


@lays_out("playground")
def playground(b: Builder) -> None:
    """A running track around a football field."""
    d = b.dice
    b.floor(*d.pick((("grass", "green"), ("concrete", "grey"), ("grass", "yellow"))))
    frame = b.frame(4)
    a = d.between(84, 100)
    tint = d.pick(("red", "red", "orange", "blue"))
    side = d.pick((-1, 1))
    at = frame.at(0, -side * 13)
    shape = (a, a * d.between(0.54, 0.6))
    track = b.add("running track", [b.item(at, *shape, frame.angle, tint)], colour=tint, rank=0)
    pitch = b.add("pitch", [b.item(at, a * 0.58, shape[1] * 0.62, frame.angle, "green")], taken=False, colour="green")
    b.relate(track, "around", pitch)
    if d.chance(0.75):
        n = d.integer(1, 5)
        tone = d.pick(("green", "blue", "red", "orange"))
        row = b.row(
            "basketball", Frame(frame.angle, *frame.at(0, 0)), n, 15.5, side * 36, 12.5, 21, colour=tone, height=0
        )
        courts = [i._replace(a=i.b, b=i.a, angle=i.angle + 90, height=0.01) for i in row]
        courts = [i for i in courts if inside(i, 1)]
        b.relate(b.add("basketball", courts, colour=tone, arrangement="row"), "beside", track)
    elif d.chance(0.7):
        roof = d.pick(("red", "white", "grey", "blue"))
        it = b.item(frame.at(0, side * 38), 60, 13, frame.angle, roof, 7)
        b.relate(b.add("block", [it] if inside(it, 0) else [], colour=roof), "beside", track)
    many = d.chance(0.45)
    b.relate(b.trees(d.integer(14, 26) if many else b.number(2, 9), size=6.5), "around" if many else "near", track)


@lays_out("stadium")
def stadium(b: Builder) -> None:
    """A stadium and its surroundings."""
    d = b.dice
    b.floor(*d.pick((("concrete", "grey"), ("grass", "green"), ("asphalt", "grey"), ("grass", "yellow"))))
    frame = b.frame(5)
    a = d.between(78, 94)
    b_axis = a * d.between(0.66, 0.8)
    tint = d.pick(("white", "grey", "red", "blue", "orange"))
    bowl = b.add(
        "stadium", [b.item((frame.x, frame.y), a, b_axis, frame.angle, tint, 9)], taken=False, colour=tint, rank=0
    )
    b.take_disc(frame.x, frame.y, a * 0.46)
    surroundings(b, bowl, frame, b_axis / 2 + 4)


@lays_out("tennis court")
def tennis(b: Builder) -> None:
    """Courts in one or two rows."""
    d = b.dice
    b.floor(*d.pick((("grass", "green"), ("grass", "yellow"), ("concrete", "grey"))))
    frame = b.frame(3)
    rows = d.pick((1, 1, 2))
    n = d.integer(1, 5) if rows == 1 else d.integer(2, 4)
    length = 46.0 if rows == 1 else 38.0
    length *= 1.25 if n == 1 and rows == 1 else 1
    wide = min(length * 0.54, 100 / n)
    tint = d.pick(("green", "blue", "red", "orange"))
    items = []
    for k in range(rows):
        at = Frame(frame.angle, *frame.at(0, (k - (rows - 1) / 2) * (length + 3)))
        items += b.row("tennis", at, n, wide + 1.2, 0, length, wide, colour=tint, height=0, turn=90)
    courts = [i for i in items if inside(i, 0)]
    whole = len(courts) == len(items)
    arrangement = ("row" if rows == 1 else "rows") if whole else None
    group = b.add("tennis", courts, colour=tint, rank=0, arrangement=arrangement)
    surroundings(b, group, frame, length * rows / 2 + 2)
