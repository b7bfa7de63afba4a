"""Layouts of industrial scenes."""

from __future__ import annotations

from petlbench.datasets.scenes.builder import Builder
from petlbench.datasets.scenes.geometry import Frame, direction_of, inside
from petlbench.datasets.scenes.layouts import lays_out


@lays_out("industrial area")
def industrial(b: Builder) -> None:
    """Halls, tanks, chimneys and lorries beside a road."""
    d, z = b.dice, b.zoom
    b.floor(*d.pick((("concrete", "grey"), ("soil", "brown"), ("asphalt", "grey"))))
    frame = b.frame(4)
    v0 = d.pick((-1, 1)) * d.between(44, 50)
    way = b.road(frame.across(v0), 7)
    tint = d.pick(("blue", "white", "grey", "red", "green")) if d.chance(0.7) else None
    n = d.integer(2, 6)
    a, w = d.between(32, 42) * z, d.between(14, 18) * z
    cells = [(u, v - v0 * 0.2) for v in (-w - 5, 0, w + 5) for u in (-a / 2 - 3, a / 2 + 3)][:n]
    items = [b.item(frame.at(u, v), a, w, frame.angle, tint or d.pick(("blue", "white", "grey", "red")), 6)
             for u, v in cells]  # fmt: skip
    items = [i for i in items if inside(i)]
    halls = b.add("warehouse", items, rank=0, colour=tint, arrangement="rows" if len(items) > 3 else None)
    b.relate(halls, "beside", way)
    if d.chance(0.55):
        b.relate(b.scatter("tank", b.number(1, 5), 9 * z, 9 * z, colour="white", height=5, gap=1), "near", halls)
    if d.chance(0.4):
        b.scatter("chimney", b.number(1, 3), 5, 5, colour=d.pick(("red", "white", "grey")), height=24, gap=2)
    if d.chance(0.6):
        b.traffic(frame, [v0 - 1.8, v0 + 1.8], b.number(1, 5), "truck")
    if d.chance(0.5):
        b.trees(b.number(2, 9), size=6)


@lays_out("storage tanks")
def tanks(b: Builder) -> None:
    """Tanks in a row, two rows or a grid."""
    d = b.dice
    b.floor(*d.pick((("soil", "brown"), ("concrete", "grey"), ("grass", "green"), ("grass", "yellow"))))
    frame = b.frame(3)
    style = d.integer(0, 2)
    tint = d.pick(("white", "white", "grey", "red", "pale"))
    side = d.pick((-1, 1))
    if style == 0:
        n, rows = d.integer(2, 5), 1
    elif style == 1:
        n, rows = d.integer(2, 5), 2
    else:
        n, rows = 3, 3
    step = min(28.0, 92 / n, 86 / rows)
    r = step * d.between(0.36, 0.43)
    frame = Frame(frame.angle, *frame.at(0, -side * (14 if rows < 3 else 9)))
    items = []
    for k in range(rows):
        items += b.row("tank", frame, n, step, (k - (rows - 1) / 2) * step, 2 * r, 2 * r, colour=tint, height=r * 0.8)
    items = [i for i in items if inside(i)]
    whole = len(items) == n * rows
    arrangement = ("row", "rows", "grid")[style] if whole else None
    group = b.add("tank", items, colour=tint, rank=0, arrangement=arrangement)
    edge = rows * step / 2
    lane = side * (edge + d.between(8, 13))
    if d.chance(0.3):
        outline, middle = b.stream(frame, 18, 2, side * (edge + 16))
        tone = b.water_colour("blue", "green", "brown")
        b.take_line(middle, 22)
        water = b.add("river", [b.item(middle[12], 18, 18, 0, tone, 0, outline)], taken=False, colour=tone,
                      position=None, direction=direction_of(frame.angle))  # fmt: skip
        b.relate(group, "beside", water)
    else:
        b.relate(group, "beside", b.road(frame.across(lane), d.between(5, 7)))
        if d.chance(0.5):
            b.traffic(frame, [lane - 1.4, lane + 1.4], b.number(1, 4), "truck")
    if d.chance(0.5):
        b.scatter("warehouse", b.number(1, 3), 20, 11, colour=d.pick(("blue", "grey", "red")), height=5,
                  angle=frame.angle, gap=0)  # fmt: skip
    if d.chance(0.55):
        b.trees(b.number(2, 8), size=6)
