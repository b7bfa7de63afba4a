"""The free collage of `pretrain`: a few kinds of objects on some ground, in no scene class."""

from __future__ import annotations

from petlbench.datasets.scenes.builder import Builder
from petlbench.datasets.scenes.geometry import Frame, compass, inside
from petlbench.datasets.scenes.layouts import COLLAGE, lays_out
from petlbench.datasets.scenes.layouts_nature import crossing
from petlbench.datasets.scenes.palette import ROOFS

_HALLS = ("white", "grey", "blue", "red", "green")
# kind: extent along, extent across, height, colours
_OBJECTS: dict[str, tuple[float, float, float, tuple[str, ...]]] = {
    "house": (15, 10, 5, ROOFS),
    "block": (18, 15, 14, ("white", "grey", "brown", "pale")),
    "warehouse": (34, 16, 6, _HALLS),
    "church": (34, 22, 8, ("red", "grey", "brown", "dark", "green")),
    "stadium": (48, 36, 7, ("white", "grey", "red", "blue")),
    "tank": (15, 15, 8, ("white", "grey", "red", "pale")),
    "plane": (18, 18, 4, ("white", "grey", "blue")),
    "car": (5.4, 2.5, 1.5, ("white", "red", "blue", "black", "yellow")),
    "truck": (9.5, 4, 2.2, ("white", "red", "blue")),
    "train": (64, 4.4, 2.5, ("red", "blue", "green", "yellow")),
    "container": (10, 4.5, 3, ("red", "blue", "green", "orange")),
    "tennis": (32, 17, 0, ("green", "blue", "red", "orange")),
    "basketball": (24, 14, 0.01, ("green", "blue", "red", "orange")),
    "diamond": (42, 42, 0, ("green",)),
    "running track": (66, 38, 0, ("red", "orange", "blue")),
    "pool": (17, 9, 0, ("turquoise", "blue")),
    "parasol": (6, 6, 2.5, ("red", "white", "blue", "yellow")),
    "tree": (9, 9, 5, ("green", "dark green", "yellow")),
    "palm": (10, 10, 5, ("green",)),
    "bush": (6, 6, 2, ("green", "dark green")),
    "bale": (6, 6, 2, ("yellow",)),
    "rock": (9, 8, 3, ("grey", "brown", "dark")),
    "chimney": (5, 5, 20, ("red", "white", "grey")),
    "fountain": (15, 15, 1.5, ("grey",)),
    "roundabout": (44, 24, 0, ("grey",)),
}  # fmt: skip
_AFLOAT = {"boat": (10, 4, 1.2, ("white", "red", "blue")), "ship": (32, 8, 4, ("red", "blue", "grey", "dark"))}
_DRY = ("grass", "grass", "soil", "sand", "asphalt", "concrete", "paved")


@lays_out(COLLAGE)
def collage(b: Builder) -> None:
    """Two to four groups of objects, perhaps a road, perhaps all of it at sea."""
    d = b.dice
    afloat = d.chance(0.1)
    b.floor("water" if afloat else d.pick(_DRY))
    pool = dict(_AFLOAT) if afloat else dict(_OBJECTS)
    if afloat:
        x, y, r = d.between(30, 98), d.between(30, 98), d.between(10, 20)
        b.add("island", [b.item((x, y), 2 * r, 2 * r, 0, "green", 0, b.blob(x, y, r))])
    elif d.chance(0.3):
        _waterside(b)
    elif d.chance(0.45):
        crossing(b)
    kinds = list(pool)
    d.shuffle(kinds)
    first = d.pick(kinds)
    kinds.remove(first)
    chosen = [first, *kinds[: d.integer(1, 3)]]
    for rank, kind in enumerate(sorted(chosen, key=lambda k: -pool[k][0])):
        a, across, height, colours = pool[kind]
        size = b.zoom * d.between(0.9, 1.1)
        _group(b, kind, a * size, across * size, height, d.pick(colours), 0 if rank == 0 else 1)


def _waterside(b: Builder) -> None:
    """A river, a pond or a stretch of sea."""
    d = b.dice
    tint = b.water_colour("blue", "green", "brown", "dark", "turquoise")
    style = d.integer(0, 2)
    if style == 0:
        x, y, r = d.between(34, 94), d.between(34, 94), d.between(14, 24)
        b.water("pond", b.blob(x, y, r), tint, (x, y), r)
    elif style == 1:
        outline, middle = b.stream(b.frame(24), d.between(10, 22), d.between(4, 11))
        b.take_line(middle, 30)
        it = b.item(middle[12], 20, 20, 0, tint, 0, outline)
        b.add("river", [it], taken=False, colour=tint, position=None)
    else:
        frame, edge = b.frame(), d.between(18, 30)
        wet, _ = b.stream(frame, 2, d.between(1, 4), edge)
        outline = [*wet[:25], frame.at(130, 130), frame.at(-130, 130)]
        it = b.item(frame.at(0, edge + 30), 128, 1, frame.angle, tint, 0, outline)
        b.add("sea", [it], colour=tint, counted=False, position=compass(frame.angle + 90))


def _group(b: Builder, kind: str, a: float, across: float, height: float, colour: str, rank: int) -> None:
    """Objects of one kind and colour, in a row where there is room for one, else scattered."""
    d = b.dice
    most = 1 if a > 40 else 2 if a > 28 else 4 if a > 16 else 7
    n = b.number(1, most)
    if n > 1 and d.chance(0.5):
        step = (a if d.chance(0.5) else max(a, across)) * d.between(1.2, 1.45)
        frame = Frame(b.heading(), d.between(34, 94), d.between(34, 94))
        row = b.row(kind, frame, n, step, 0, a, across, colour=colour, height=height)
        if all(inside(i, 2) and b.free(i.x, i.y, max(a, across) * 0.55) for i in row):
            b.add(kind, row, colour=colour, arrangement="row", rank=rank)
            return
    b.scatter(kind, n, a, across, colour=colour, height=height, gap=1, rank=rank)
