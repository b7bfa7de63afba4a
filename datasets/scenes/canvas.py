"""The drawing surface: scene units in, supersampled pixels out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from petlbench.datasets.scenes import textures
from petlbench.datasets.scenes.dice import Dice
from petlbench.datasets.scenes.model import FRAME, Point, Scene
from petlbench.datasets.scenes.palette import Ramp, Rgb
from petlbench.datasets.scenes.worlds import World

SUPERSAMPLE = 3
_SHADOW_OPACITY = 118
_LEVELS = np.arange(256)


def shade(colour: Rgb, factor: float) -> Rgb:
    """The colour times ``factor``, clipped to 0..255."""
    r, g, b = colour
    return min(255, int(r * factor)), min(255, int(g * factor)), min(255, int(b * factor))


def box(x: float, y: float, a: float, b: float, angle: float) -> list[Point]:
    """The four corners of a box of extent ``a`` along and ``b`` across the heading ``angle`` (degrees)."""
    turn = math.radians(angle)
    cx, cy = math.cos(turn) * a / 2, math.sin(turn) * a / 2
    sx, sy = -math.sin(turn) * b / 2, math.cos(turn) * b / 2
    return [
        (x - cx - sx, y - cy - sy),
        (x + cx - sx, y + cy - sy),
        (x + cx + sx, y + cy + sy),
        (x - cx + sx, y - cy + sy),
    ]


def placed(outline: Sequence[Point], x: float, y: float, angle: float, scale: float = 1.0) -> list[Point]:
    """An outline given about the origin, scaled, turned by ``angle`` degrees and moved to (x, y)."""
    turn = math.radians(angle)
    c, s = math.cos(turn) * scale, math.sin(turn) * scale
    return [(x + u * c - v * s, y + u * s + v * c) for u, v in outline]


def _hull(points: Sequence[Point]) -> list[Point]:
    """Convex hull, Andrew's monotone chain."""
    ordered = sorted(points)
    chains: list[list[Point]] = []
    for sweep in (ordered, ordered[::-1]):
        chain: list[Point] = []
        for p in sweep:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2], chain[-1]
                if (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax) > 0:
                    break
                chain.pop()
            chain.append(p)
        chains.append(chain[:-1])
    return chains[0] + chains[1]


@lru_cache(maxsize=2048)
def _crown(world: int, variant: int, radius: int, ramp: Ramp) -> Image.Image:
    """RGBA tree crown of ``radius`` pixels, lit from the north-west."""
    dice = Dice(world, 31, variant)
    side = 2 * radius + 1
    sheet = Image.new("L", (side, side), 0)
    mask = Image.new("L", (side, side), 0)
    draw, cover = ImageDraw.Draw(sheet), ImageDraw.Draw(mask)
    lobes = []
    for k in range(7):
        turn, reach = dice.between(0, 2 * math.pi), 0.0 if k == 0 else dice.between(0.25, 0.5)
        size = 0.72 if k == 0 else 0.5
        lobes.append((reach * math.cos(turn), reach * math.sin(turn), size, dice.integer(-18, 18)))
    for inset, shift, tone in ((1.0, 0.0, 55), (0.8, 0.14, 125), (0.5, 0.3, 205)):
        for x, y, size, jitter in lobes:
            cx, cy, r = radius * (1 + x - shift), radius * (1 + y - shift), radius * size * inset
            outline = [round(cx - r), round(cy - r), round(cx + r), round(cy + r)]
            draw.ellipse(outline, fill=tone + jitter)
            if inset == 1.0:
                cover.ellipse(outline, fill=255)
    picture = textures.coloured(sheet, ramp)
    picture.putalpha(mask)
    return picture


class Canvas:
    """One picture in the making.

    Args:
        world: The distribution the picture belongs to.
        scene: What is drawn; gives ground and sun.
        size: Side of the finished picture, pixels.
        dice: Randomness of appearance only (texture windows); facts come from the scene.
    """

    def __init__(self, world: World, scene: Scene, size: int, dice: Dice):
        self.world = world
        self.dice = dice
        self.sun = scene.sun
        self.size = size
        self.px = size * SUPERSAMPLE
        self.k = self.px / FRAME
        self.flips = (scene.sun[0] < 0, scene.sun[1] < 0)
        self.image = self._ground(scene)
        self.draw = ImageDraw.Draw(self.image)
        self._shadow: Image.Image | None = None
        self._shadow_draw: ImageDraw.ImageDraw | None = None

    def _ground(self, scene: Scene) -> Image.Image:
        ramp = self.world.grounds[scene.ground][scene.ground_colour]
        side = int(FRAME)
        kinds = {"water": "water", "forest": "canopy", "sand": "dunes", "rock": "height"}
        window = self.dice.integer(0, textures.TILE - side), self.dice.integer(0, textures.TILE - side)

        def cut(kind: str) -> Image.Image:
            source = textures.tile(self.world.name, kind)
            grey = source.crop((window[0], window[1], window[0] + side, window[1] + side))
            if self.flips[0]:
                grey = grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return grey.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if self.flips[1] else grey

        picture = textures.coloured(cut(kinds.get(scene.ground, "ground")), ramp)
        if scene.ground == "rock":
            slope = cut("slope")
            picture = ImageChops.multiply(picture, Image.merge("RGB", (slope, slope, slope)))
            picture = picture.point([min(255, level * 17 // 10) for level in range(256)] * 3)
        elif scene.ground in ("grass", "soil"):
            low, high = ramp
            worn = (shade(low, 1.25), shade(high, 1.12))
            picture = Image.composite(textures.coloured(cut("ground"), worn), picture, cut("patch"))
        return self._enlarged(picture, self.px, self.px)

    def _enlarged(self, picture: Image.Image, width: int, height: int) -> Image.Image:
        """Nearest neighbour where the grid fits exactly (the later reduction undoes it), bilinear elsewhere."""
        fits = width == picture.width * SUPERSAMPLE and height == picture.height * SUPERSAMPLE
        return picture.resize((width, height), Image.Resampling.NEAREST if fits else Image.Resampling.BILINEAR)

    def pixels(self, points: Sequence[Point]) -> list[Point]:
        """Units to whole pixels: rounding makes the drawing independent of the last bit of ``math.cos``."""
        k = self.k
        return [(round(x * k), round(y * k)) for x, y in points]

    def colour(self, name: str, tone: float = 0.5) -> Rgb:
        """A variant of a named object colour; ``tone`` in [0, 1) picks the variant and its brightness."""
        variants = self.world.colours[name]
        return shade(variants[int(tone * 7) % len(variants)], 0.92 + 0.16 * tone)

    def poly(self, points: Sequence[Point], fill: Rgb, outline: Rgb | None = None) -> None:
        """A filled polygon."""
        self.draw.polygon(self.pixels(points), fill=fill, outline=outline)

    def line(self, points: Sequence[Point], fill: Rgb, width: float) -> None:
        """A polyline ``width`` units wide."""
        self.draw.line(self.pixels(points), fill=fill, width=max(1, round(width * self.k)), joint="curve")

    def disc(self, x: float, y: float, r: float, fill: Rgb, outline: Rgb | None = None) -> None:
        """A filled circle."""
        k = self.k
        bounds = [round((x - r) * k), round((y - r) * k), round((x + r) * k), round((y + r) * k)]
        self.draw.ellipse(bounds, fill=fill, outline=outline)

    def dashes(self, points: Sequence[Point], fill: Rgb, width: float, dash: float, gap: float) -> None:
        """A dashed polyline; ``dash`` and ``gap`` in units."""
        for (x0, y0), (x1, y1) in pairwise(points):
            length = math.hypot(x1 - x0, y1 - y0)
            if length < dash:
                continue
            ux, uy = (x1 - x0) / length, (y1 - y0) / length
            at = 0.0
            while at < length:
                end = min(at + dash, length)
                self.line([(x0 + ux * at, y0 + uy * at), (x0 + ux * end, y0 + uy * end)], fill, width)
                at = end + gap

    def area(self, points: Sequence[Point], texture: str, ramp: Ramp, depth: float = 0.0) -> None:
        """A textured polygon.

        Args:
            points: Outline, units.
            texture: A tile's name, or ``furrows``.
            ramp: Its dark and light colour.
            depth: 0..1, how much darker the middle is than the rim (water).
        """
        outline = self.pixels(points)
        x0 = max(0, int(min(x for x, _ in outline)))
        y0 = max(0, int(min(y for _, y in outline)))
        x1 = min(self.px, int(max(x for x, _ in outline)) + 1)
        y1 = min(self.px, int(max(y for _, y in outline)) + 1)
        if x1 - x0 < 2 or y1 - y0 < 2:
            return
        width, height = x1 - x0, y1 - y0
        units = max(1, -(-width // SUPERSAMPLE)), max(1, -(-height // SUPERSAMPLE))
        units = min(units[0], textures.TILE), min(units[1], textures.TILE)
        if texture == "furrows":
            grey = textures.furrows(self.dice, *units)
        else:
            grey = textures.crop(textures.tile(self.world.name, texture), self.dice, *units, self.flips)
        picture = textures.coloured(grey, ramp)
        local = [(x - x0, y - y0) for x, y in outline]
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).polygon(local, fill=255)
        if depth:
            near = mask.resize((max(2, width // 12), max(2, height // 12)), Image.Resampling.BOX)
            reach = max(1, min(near.size) // 5)
            inner = near.filter(ImageFilter.BoxBlur(reach)).point([max(0, 2 * v - 255) for v in range(256)])
            deep = textures.coloured(grey, (shade(ramp[0], 1 - depth), shade(ramp[1], 1 - depth)))
            picture = Image.composite(deep, picture, inner.resize(units, Image.Resampling.BICUBIC))
        self.image.paste(self._enlarged(picture, width, height), (x0, y0), mask)

    def crown(self, x: float, y: float, r: float, ramp: Ramp, tone: float) -> None:
        """A tree crown seen from above."""
        radius = max(2, round(r * self.k))
        light, dark = 0.88 + 0.24 * int(tone * 4) / 4, 0.92
        sprite = _crown(self.world.key, int(tone * 16) % 8, radius, (shade(ramp[0], dark), shade(ramp[1], light)))
        if self.flips[0]:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.flips[1]:
            sprite = sprite.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        self.image.paste(sprite, (round(x * self.k) - radius, round(y * self.k) - radius), sprite)

    def cast(self, points: Sequence[Point], height: float) -> None:
        """Note the shadow of a convex prism; all shadows are laid down together by :meth:`lay_shadows`."""
        dx, dy = self.sun[0] * height, self.sun[1] * height
        self._shade().polygon(
            self.pixels(_hull([*points, *((x + dx, y + dy) for x, y in points)])), fill=_SHADOW_OPACITY
        )

    def cast_outline(self, points: Sequence[Point], height: float) -> None:
        """Note the shadow of a flat shape that floats at ``height`` (aircraft, bridges)."""
        dx, dy = self.sun[0] * height, self.sun[1] * height
        self._shade().polygon(self.pixels([(x + dx, y + dy) for x, y in points]), fill=_SHADOW_OPACITY)

    def cast_disc(self, x: float, y: float, r: float, height: float) -> None:
        """Note the shadow of a round body: a disc moved along the sun, drawn as a fat line with a round end."""
        k, dx, dy = self.k, self.sun[0] * height, self.sun[1] * height
        shade_draw = self._shade()
        if abs(dx) + abs(dy) > r:
            shade_draw.line(
                self.pixels([(x, y), (x + dx, y + dy)]), fill=_SHADOW_OPACITY, width=max(1, round(2 * r * k))
            )
        cx, cy = x + dx, y + dy
        shade_draw.ellipse(
            [round((cx - r) * k), round((cy - r) * k), round((cx + r) * k), round((cy + r) * k)], fill=_SHADOW_OPACITY
        )

    def _shade(self) -> ImageDraw.ImageDraw:
        if self._shadow_draw is None:
            self._shadow = Image.new("L", self.image.size)
            self._shadow_draw = ImageDraw.Draw(self._shadow)
        return self._shadow_draw

    def lay_shadows(self) -> None:
        """Darken the ground under every noted shadow once, however many overlap there."""
        if self._shadow is not None:
            mask = self._shadow
            self.image.paste((12, 16, 30), (0, 0), mask)
        self._shadow = self._shadow_draw = None

    def finish(self) -> Image.Image:
        """Reduce to the final size, then apply the sensor: gain, haze, focus and noise."""
        picture = self.image.reduce(SUPERSAMPLE)
        world, dice = self.world, self.dice
        gain, lift = dice.between(*world.gain), dice.between(*world.lift)
        tables = []
        for _ in range(3):
            own_gain, own_lift = gain * dice.between(0.955, 1.045), lift * dice.between(0.75, 1.25)
            tables.append(np.rint(_LEVELS * (own_gain * (255 - own_lift) / 255) + own_lift))
        picture = picture.point(np.clip(np.concatenate(tables), 0, 255).astype(int).tolist())
        if dice.chance(world.soften):
            picture = Image.blend(picture, picture.filter(ImageFilter.SMOOTH), 0.5)
        noise = textures.grain(world.name)
        if self.size > noise.width:
            noise = noise.resize((self.size, self.size), Image.Resampling.NEAREST)
        x, y = dice.integer(0, noise.width - self.size), dice.integer(0, noise.height - self.size)
        return ImageChops.add(picture, noise.crop((x, y, x + self.size, y + self.size)), scale=1, offset=-128)
