"""Composes a scene: places objects, keeps them apart, and derives the facts that captions may state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw

from petlbench.datasets.scenes.canvas import box, placed
from petlbench.datasets.scenes.dice import Dice
from petlbench.datasets.scenes.geometry import MIDDLE, WHOLE, Box, Frame, direction_of, inside, position_of
from petlbench.datasets.scenes.model import FRAME, Group, Item, Point, Relation, Scene
from petlbench.datasets.scenes.palette import VEHICLES
from petlbench.datasets.scenes.worlds import World

_FILLERS = {
    "rock": ("grey", "brown"),
    "palm": ("green",),
    "car": ("white", "red", "blue"),
    "house": ("red", "grey", "orange", "white"),
    "boat": ("white", "red"),
    "ship": ("red", "blue", "grey"),
}


class Builder:
    """The scene in the making.

    Args:
        world: Distribution to draw from.
        dice: Source of every choice that becomes a fact.
    """

    def __init__(self, world: World, dice: Dice):
        self.world = world
        self.dice = dice
        self.zoom = dice.between(*world.zoom)
        self.season = dice.pick(("green", "green", "green", "yellow"))
        self.ground, self.ground_colour = "grass", "green"
        self.groups: list[Group] = []
        self.relations: list[Relation] = []
        self._taken = Image.new("L", (int(FRAME), int(FRAME)))
        self._mark = ImageDraw.Draw(self._taken)

    # -- choices ---------------------------------------------------------------------------------

    def floor(self, kind: str, *colours: str) -> None:
        """Choose the ground."""
        self.ground = kind
        self.ground_colour = self.dice.pick(colours or tuple(self.world.grounds[kind]))

    def grass(self) -> None:
        """Grass in the colour of the season."""
        self.floor("grass", self.season)

    def number(self, low: int, high: int) -> int:
        """A count in low..high with the world's skew."""
        skewed = self.dice.unit() ** (1 / self.world.many)
        return min(high, low + int(skewed * (high - low + 1)))

    def heading(self) -> float:
        """One of eight compass headings, off by up to 14 degrees, so that its name is beyond doubt."""
        return self.dice.integer(0, 7) * 45 + self.dice.between(-14, 14)

    def frame(self, spread: float = 0) -> Frame:
        """A frame with a fresh heading, its centre up to ``spread`` units off the middle."""
        d = self.dice
        return Frame(self.heading(), MIDDLE + d.between(-spread, spread), MIDDLE + d.between(-spread, spread))

    def leaf(self) -> str:
        """A foliage colour that suits the season."""
        return (
            "yellow" if self.season == "yellow" and self.dice.chance(0.5) else self.dice.pick(("green", "dark green"))
        )

    def water_colour(self, *options: str) -> str:
        """A water colour that stands out from the ground."""
        return self.dice.pick([c for c in options if c != "brown" or self.ground != "soil"])

    # -- room ------------------------------------------------------------------------------------

    def free(self, x: float, y: float, r: float) -> bool:
        """Whether the square of half side ``r`` about (x, y) is untouched."""
        return self._taken.crop((int(x - r), int(y - r), int(x + r) + 1, int(y + r) + 1)).getbbox() is None

    def take(self, points: Sequence[Point]) -> None:
        """Mark a polygon as occupied."""
        self._mark.polygon(list(points), fill=1, outline=1)

    def take_line(self, points: Sequence[Point], width: float) -> None:
        """Mark a polyline as occupied."""
        self._mark.line(list(points), fill=1, width=round(width) + 1)

    def take_disc(self, x: float, y: float, r: float) -> None:
        """Mark a disc as occupied."""
        self._mark.ellipse([x - r, y - r, x + r, y + r], fill=1)

    def spots(self, n: int, r: float, within: Box = WHOLE, tries: int = 12) -> list[Point]:
        """Up to ``n`` free places of half side ``r`` inside a box, marked as occupied."""
        d = self.dice
        x0, y0, x1, y1 = within[0] + r, within[1] + r, within[2] - r, within[3] - r
        found: list[Point] = []
        for _ in range(n):
            for _ in range(tries):
                x, y = d.between(x0, x1), d.between(y0, y1)
                if self.free(x, y, r):
                    self.take_disc(x, y, r)
                    found.append((x, y))
                    break
        return found

    # -- objects ---------------------------------------------------------------------------------

    def item(
        self,
        at: Point,
        a: float,
        b: float,
        angle: float = 0,
        colour: str = "grey",
        height: float = 0,
        points: Iterable[Point] = (),
    ) -> Item:
        """One object with a fresh tone."""
        return Item(at[0], at[1], a, b, angle, height, colour, self.dice.unit(), tuple(points))

    def add(self, kind: str, items: Iterable[Item], *, taken: bool = True, **facts) -> int:
        """Append a group.

        Args:
            kind: Painter and lexicon key.
            items: The objects.
            taken: Whether boxes of the items become occupied (lines and outlines are marked by their own methods).
            **facts: Fields of :class:`Group`; ``position`` is derived unless given.

        Returns:
            The group's index, or -1 if there are no items.
        """
        listed = tuple(items)
        if not listed:
            return -1
        if taken:
            for it in listed:
                self.take(it.points if len(it.points) > 2 else box(it.x, it.y, it.a + 2, it.b + 2, it.angle))
        if "position" not in facts:
            facts["position"] = position_of([(it.x, it.y) for it in listed])
        if len(listed) < 2:
            facts.pop("arrangement", None)
        self.groups.append(Group(kind, listed, **facts))
        return len(self.groups) - 1

    def relate(self, subject: int, word: str, target: int) -> None:
        """State a relation that the layout guarantees; ignored if either group is absent."""
        if subject >= 0 and target >= 0:
            if word == "around" and self.groups[subject].count < 3 and self.groups[subject].kind != "running track":
                word = "near"
            self.relations.append(Relation(subject, word, target))

    def texture(self, kind: str, **facts) -> int:
        """The ground itself as the scene's subject (dunes, tree cover, grassland, mountains)."""
        it = self.item((MIDDLE, MIDDLE), FRAME, FRAME, 0, self.ground_colour)
        facts = {"colour": self.ground_colour, "rank": 0, **facts}
        return self.add(kind, [it], taken=False, counted=False, position=None, **facts)

    def traffic(
        self, frame: Frame, lanes: Sequence[float], n: int, kind: str = "car", span: float = 56, **facts
    ) -> int:  # fmt: skip
        """Up to ``n`` vehicles, well apart, on lanes at offsets ``v`` along the frame's heading."""
        d, long = self.dice, (4.6 if kind == "car" else 8.5) * max(0.95, self.zoom)
        tint = d.pick(VEHICLES) if d.chance(0.4) else None
        items: list[Item] = []
        for _ in range(n * 4):
            if len(items) == n:
                break
            lane = d.pick(lanes)
            x, y = frame.at(d.between(-span, span), lane)
            it = self.item(
                (x, y), long, long * 0.46, frame.angle + (180 if lane < 0 else 0), tint or d.pick(VEHICLES), 1.4
            )
            if inside(it, 2) and all(abs(x - o.x) + abs(y - o.y) > long * 1.9 for o in items):
                items.append(it)
        return self.add(kind, items, taken=False, colour=tint, **{"position": None, **facts})

    def road(self, points: Sequence[Point], width: float, *, kind: str = "road", colour: str = "grey", **facts) -> int:
        """A road or path along a polyline; a straight one gets its compass direction as a fact."""
        (x0, y0), (x1, y1) = points[0], points[-1]
        angle = math.degrees(math.atan2(y1 - y0, x1 - x0))
        self.take_line(points, width + 2)
        it = self.item(((x0 + x1) / 2, (y0 + y1) / 2), math.hypot(x1 - x0, y1 - y0), width, angle, colour, 0, points)
        facts = {"direction": direction_of(angle), "colour": colour, "position": None, **facts}
        return self.add(kind, [it], taken=False, **facts)

    def scatter(
        self,
        kind: str,
        n: int,
        a: float,
        b: float,
        *,
        colour: str | Sequence[str],
        height: float,
        within: Box = WHOLE,
        gap: float = 1.0,
        angle: float | None = None,
        **facts,
    ) -> int:
        """Up to ``n`` objects at free places, all of one colour name or each of one out of a sequence."""
        radius = max(a, b) * 0.5 * (1.25 if a != b else 1.0) + gap
        items = []
        for at in self.spots(n, radius, within):
            tint = colour if isinstance(colour, str) else self.dice.pick(colour)
            size = self.dice.between(0.9, 1.1)
            turn = self.dice.between(0, 360) if angle is None else angle
            items.append(self.item(at, a * size, b * size, turn, tint, height))
        facts.setdefault("arrangement", "scattered")
        if isinstance(colour, str):
            facts.setdefault("colour", colour)
        return self.add(kind, items, taken=False, **facts)

    def trees(self, n: int, within: Box = WHOLE, *, rank: int = 1, size: float = 8, **facts) -> int:
        """Trees at free places: up to nine stand apart and are counted, more are `many`."""
        colour = facts.pop("colour", None) or self.leaf()
        size *= self.zoom * (1.0 if n > 9 else 1.15)
        gap = 0.5 if n <= 9 else -0.12 * size
        facts.setdefault("counted", n <= 9)
        facts.setdefault("arrangement", None)
        return self.scatter(
            "tree", n, size, size, colour=colour, height=size * 0.5, within=within, gap=gap, rank=rank, **facts
        )

    def row(
        self, kind: str, frame: Frame, n: int, step: float, v: float, a: float, b: float, *,
        colour: str | Sequence[str], height: float, turn: float = 0, start: float | None = None,
    ) -> list[Item]:  # fmt: skip
        """``n`` equal objects along the heading at offset ``v``, centred unless ``start`` is given (not yet added)."""
        first = -(n - 1) * step / 2 if start is None else start
        tints = [colour if isinstance(colour, str) else self.dice.pick(colour) for _ in range(n)]
        return [self.item(frame.at(first + i * step, v), a, b, frame.angle + turn, tints[i], height) for i in range(n)]

    def blob(
        self, x: float, y: float, r: float, *, stretch: float = 1.0, rough: float = 0.14, steps: int = 30
    ) -> list[Point]:
        """A smooth irregular outline of mean radius ``r``, longer by ``stretch`` along a random heading."""
        d = self.dice
        waves = [(k, rough / math.sqrt(k) * d.between(0.4, 1), d.between(0, 2 * math.pi)) for k in (2, 3, 4, 5)]
        outline = []
        for i in range(steps):
            t = 2 * math.pi * i / steps
            reach = r * (1 + sum(w * math.cos(k * t + p) for k, w, p in waves))
            outline.append((reach * math.cos(t) * stretch, reach * math.sin(t) / stretch))
        return placed(outline, x, y, d.between(0, 180))

    def stream(self, frame: Frame, width: float, bend: float, v: float = 0) -> tuple[list[Point], list[Point]]:
        """A winding band along the frame's heading: its (closed) outline and its centre line."""
        d = self.dice
        p1, p2 = d.between(0, 6.28), d.between(0, 6.28)
        middle, left, right = [], [], []
        for i in range(25):
            u = -130 + i * 260 / 24
            w = v + bend * math.sin(u / 26 + p1) + bend * 0.4 * math.sin(u / 11 + p2)
            half = width / 2 * (1 + 0.14 * math.sin(u / 17 + p2))
            middle.append(frame.at(u, w))
            left.append(frame.at(u, w - half))
            right.append(frame.at(u, w + half))
        return left + right[::-1], middle

    def water(self, kind: str, outline: Sequence[Point], colour: str, centre: Point, r: float, **facts) -> int:
        """A body of water; its outline becomes occupied."""
        it = self.item(centre, 2 * r, 2 * r, 0, colour, 0, outline)
        self.take([*outline])
        self.take_line([*outline, outline[0]], 2)
        return self.add(kind, [it], taken=False, colour=colour, **facts)

    def fill(self, least: int = 4) -> None:
        """Add common small things until ``least`` groups can be told: a picture needs material for five captions."""
        d = self.dice
        on = {"forest": "rock house", "rock": "rock bush", "sand": "rock bush palm", "water": "boat ship"}
        kinds = on.get(self.ground, "tree bush rock" if self.ground in ("grass", "soil") else "car tree").split()
        present = {group.kind for group in self.groups}
        kinds = [kind for kind in kinds if kind not in present]
        d.shuffle(kinds)
        sizes = {
            "tree": 9.0,
            "bush": 5.5,
            "rock": 8.0,
            "palm": 9.5,
            "car": 5.0,
            "house": 13.0,
            "boat": 9.0,
            "ship": 28.0,
        }
        for kind in kinds:
            if sum(group.rank < 2 for group in self.groups) >= least:
                return
            a = sizes[kind]
            round_ = kind in ("tree", "bush", "rock", "palm")
            colour = self.leaf() if kind in ("tree", "bush") else d.pick(_FILLERS[kind])
            height = 5 if kind in ("tree", "palm", "house") else 2
            self.scatter(kind, self.number(1, 7), a, a if round_ else a * 0.46, colour=colour, height=height)

    def scene(self, seed: int, index: int, label: str | None) -> Scene:
        """The finished description."""
        d = self.dice
        length = d.between(*self.world.shadow)
        share = d.between(0.35, 0.65)
        sun = (length * (share * 2) * d.pick((-1, 1)) * 0.7, length * (2 - share * 2) * d.pick((-1, 1)) * 0.7)
        return Scene(
            self.world.name, seed, index, label, self.ground, self.ground_colour, sun,
            tuple(self.groups), tuple(self.relations),
        )  # fmt: skip
