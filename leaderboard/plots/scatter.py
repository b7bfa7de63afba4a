"""mR against what a method costs: points with intervals, the Pareto front, a numbered key by family."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from petlbench.leaderboard.plots.families import FAMILIES, family_of
from petlbench.leaderboard.plots.front import pareto_front
from petlbench.leaderboard.plots.key import WIDTH as KEY_WIDTH
from petlbench.leaderboard.plots.key import draw_key, key_height, key_lines
from petlbench.leaderboard.plots.place import Box, Label, freest, place_labels
from petlbench.leaderboard.plots.style import (
    BACKING,
    FAINT,
    INK,
    RULE,
    SOFT,
    Sheet,
    best_rows,
    drawable,
    names,
    table_sheet,
    tint,
)
from petlbench.leaderboard.row import Row
from petlbench.leaderboard.table import Table

INTERVALS = (
    "Vertical bars are 95 % bootstrap intervals over the test images, for these seeds; rows with fewer than three seeds have "
    "none."
)
FRONT = (
    "Filled and named: the front, where no other row is both cheaper and better by its mean mR; intervals that overlap may "
    "hide another order. Numbers are ranks by mR."
)

_WIDTH, _LEFT, _ZERO = 9.6, 0.62, 0.5
_LOG_FROM = 12.0
"""Axes whose largest value is this many times the smallest are logarithmic."""
_LEADER = 11.0
"""Points between a marker and its label from which a line joins the two."""
_NUMBER, _NAME, _REFERENCE = 6.2, 7.6, 6.5


class Cost(NamedTuple):
    """A horizontal axis."""

    of: Callable[[Row], float]
    """Never negative; 0 gets a place of its own on a logarithmic axis."""
    axis: str
    tick: Callable[[float], str]
    ringed: Callable[[Row], bool] = lambda row: False
    """Rows whose marker gets a ring, which a note must explain."""


class _Point(NamedTuple):
    row: Row
    x: float
    y: float
    on_front: bool
    axes: Axes


def draw_scatter(table: Table, rows: Sequence[Row], title: str, cost: Cost, notes: Sequence[str]) -> Figure:
    """Draw rows of a table.

    Args:
        table: What is described in the heading.
        rows: Those that have this cost, at least one.
        title: Of the picture.
        cost: The horizontal axis.
        notes: Plain text below, besides what intervals and the front are.
    """
    rows, cut = best_rows(rows)
    values = [cost.of(row) for row in rows]
    key = key_lines(rows)
    body = max(4.5, key_height(key))
    sheet = table_sheet(table, title, _WIDTH, body + 0.1, [FRONT, INTERVALS, *notes, *cut])
    positive = [value for value in values if value > 0]
    logarithmic = bool(positive) and max(positive) / min(positive) >= _LOG_FROM
    apart = logarithmic and len(positive) < len(values)
    left = _LEFT + (_ZERO + 0.09 if apart else 0.0)
    height = min(body, 6.4) - 0.45
    axes = sheet.axes(left, 0, _WIDTH - KEY_WIDTH - left - 0.1, height)
    zero = sheet.axes(_LEFT, 0, _ZERO, height, sharey=axes) if apart else None
    _scale(axes, values, logarithmic, cost)
    _limit_scores(axes, rows)
    if zero is not None:
        _break(axes, zero)
    (zero or axes).set_ylabel("mean recall mR on test (%)")
    front = pareto_front(values, [row.mean["mR"] for row in rows])
    points = [
        _Point(row, value, row.mean["mR"], i in front, zero if zero is not None and not value else axes)
        for i, (row, value) in enumerate(zip(rows, values, strict=True))
    ]
    segments = _front_line(axes, [points[i] for i in front]) if len(rows) > 1 else []
    for point in points:
        _mark(point, cost.ringed(point.row))
    frames = [part for part in (zero, axes) if part is not None]
    hard, soft = _obstacles(sheet, points, cost)
    hard += [_segment(sheet, axes, *ends) for ends in segments]
    hard += _references(sheet, frames, table, hard, soft)
    _label(sheet, frames, points, names(rows), hard, soft)
    draw_key(sheet, key)
    return sheet.figure


def _scale(axes: Axes, values: Sequence[float], logarithmic: bool, cost: Cost) -> None:
    axes.set_xlabel(cost.axis + (", logarithmic" if logarithmic else ""))
    known = [value for value in values if value > 0 or not logarithmic]
    low, high = min(known), max(known)
    if logarithmic:
        pad = (high / low) ** 0.07
        axes.set_xscale("log")
        axes.set_xlim(low / pad, high * pad)
        steps = (1.0,) if high / low > 400 else (1.0, 3.0) if high / low > 60 else (1.0, 2.0, 5.0)
        axes.xaxis.set_major_locator(LogLocator(10, steps, numticks=12))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        pad = 0.07 * (high - low) or 0.5 * high or 1.0
        axes.set_xlim(max(0.0, low - pad), high + pad)
        axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: cost.tick(value)))
    axes.grid(color=RULE, lw=0.5)
    axes.set_axisbelow(True)


def _limit_scores(axes: Axes, rows: Sequence[Row]) -> None:
    ends = [end for row in rows for end in (row.mean["mR"], *(row.interval or ()))]
    pad = 0.06 * (max(ends) - min(ends)) or 1.0
    axes.set_ylim(max(0.0, min(ends) - pad), min(100.0, max(ends) + 1.5 * pad))


def _break(axes: Axes, zero: Axes) -> None:
    """Make the narrow axes at the left hold what costs nothing, and show that the scale is broken between the two."""
    zero.set_xlim(-1, 1)
    zero.set_xticks([0], ["0"])
    zero.grid(color=RULE, lw=0.5)
    zero.set_axisbelow(True)
    zero.patch.set_visible(False)  # labels of the axes below may reach over
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", which="both", length=0, labelleft=False)
    slash: dict[str, Any] = {
        "marker": [(-0.6, -1), (0.6, 1)],
        "markersize": 7,
        "ls": "none",
        "c": SOFT,
        "mew": 0.8,
        "clip_on": False,
    }
    zero.plot([1], [0], transform=zero.transAxes, **slash)
    axes.plot([0], [0], transform=axes.transAxes, **slash)


def _references(
    sheet: Sheet, frames: Sequence[Axes], table: Table, hard: Sequence[Box], soft: Sequence[Box]
) -> list[Box]:
    """Lines of what needs no model, where they fall into the picture, each named on free ground; their names' boxes."""
    axes, scale = frames[-1], 72 / sheet.figure.dpi
    low, high = axes.get_ylim()
    area = axes.get_window_extent()
    boxes: list[Box] = []
    for name, recalls in table.references:
        value = recalls.get("mR")
        if value is None or not low < value < high:
            continue
        for part in frames:
            part.axhline(value, color=SOFT, lw=0.8, ls=(0, (4, 2)), zorder=1)
        said = drawable(f"{name}, {value:.1f}")
        width, height = _measure(sheet, said, _REFERENCE, False)
        y = axes.transData.transform((axes.get_xlim()[1], value))[1] * scale
        lefts = [area.x0 * scale + 4 + step * (area.width * scale - width - 8) / 12 for step in range(12, -1, -1)]
        spots = [Box(x, y + up, x + width, y + up + height) for up in (2.0, -2.0 - height) for x in lefts]
        box = spots[freest(spots, [*hard, *boxes], soft)]
        boxes.append(box)
        axes.annotate(
            said,
            (box.left, box.bottom),
            xycoords="figure points",
            fontsize=_REFERENCE,
            color=SOFT,
            bbox=BACKING,
            va="bottom",
        )
    return boxes


def _front_line(axes: Axes, front: Sequence[_Point]) -> list[tuple[float, float, float]]:
    """Draw the front as a staircase; its level parts as first x, last x and y."""
    low, high = axes.get_xlim()
    for point in front:
        if point.axes is not axes:
            point.axes.plot([0, 1], [point.y, point.y], color=SOFT, lw=1.0, zorder=2)
    inside = [point for point in front if point.axes is axes]
    free = [point for point in front if point.axes is not axes]
    xs = [*([low] if free else []), *(point.x for point in inside), high]
    ys = [*(point.y for point in free), *(point.y for point in inside)]
    axes.step(xs, [*ys, ys[-1]], where="post", color=SOFT, lw=1.0, zorder=2)
    return list(zip(xs, xs[1:], ys, strict=False))


def _mark(point: _Point, ringed: bool) -> None:
    family = FAMILIES[family_of(point.row)]
    if point.row.interval:
        point.axes.vlines(point.x, *point.row.interval, color=tint(family.colour, 0.4), lw=0.8, zorder=2.5)
    point.axes.plot(
        [point.x],
        [point.y],
        ls="none",
        marker=family.marker,
        ms=7.5 if point.on_front else 5.5,
        mfc=family.colour if point.on_front else tint(family.colour, 0.3),
        mec=INK if point.on_front else family.colour,
        mew=0.7,
        zorder=4 if point.on_front else 3,
        clip_on=False,
    )
    if ringed:
        point.axes.plot([point.x], [point.y], ls="none", marker="o", ms=12, mfc="none", mec=INK, mew=0.6, zorder=3)


def _obstacles(sheet: Sheet, points: Sequence[_Point], cost: Cost) -> tuple[list[Box], list[Box]]:
    """Markers, and intervals, as boxes in points."""
    hard, soft = [], []
    for point in points:
        x, y = _place(sheet, point, point.y)
        half = 6.2 if cost.ringed(point.row) else 4.2 if point.on_front else 3.2
        hard.append(Box(x - half, y - half, x + half, y + half))
        if point.row.interval:
            low, high = (_place(sheet, point, end)[1] for end in point.row.interval)
            soft.append(Box(x - 0.5, low, x + 0.5, high))
    return hard, soft


def _label(
    sheet: Sheet,
    frames: Sequence[Axes],
    points: Sequence[_Point],
    named: dict[str, str],
    hard: Sequence[Box],
    soft: Sequence[Box],
) -> None:
    """Numbers beside all points, and names beside those of the front."""
    order = sorted(points, key=lambda p: (not p.on_front, p.row.rank))
    spots = [_place(sheet, p, p.y) for p in order]
    texts = [f"{p.row.rank} {drawable(named[p.row.group.key])}" if p.on_front else str(p.row.rank) for p in order]
    labels = []
    for point, said, (x, y) in zip(order, texts, spots, strict=True):
        width, height = _measure(sheet, said, _NAME if point.on_front else _NUMBER, point.on_front)
        labels.append(Label(x, y, width + 1.0, height + 1.0))
    scale = 72 / sheet.figure.dpi
    first, last = frames[0].get_window_extent(), frames[-1].get_window_extent()
    inside = Box(first.x0 * scale + 2, first.y0 * scale + 2, last.x1 * scale - 2, first.y1 * scale + 4)
    places = place_labels(labels, hard, soft, inside)
    for point, said, label, (to_x, to_y) in zip(order, texts, labels, places, strict=True):
        x, y = label.x, label.y
        free = math.hypot(
            max(0.0, abs(to_x - x) - label.width / 2), max(0.0, abs(to_y - y) - label.height / 2)
        )  # between the point and the edge of its label
        point.axes.annotate(
            said,
            (point.x, point.y),
            (to_x - x, to_y - y),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_NAME if point.on_front else _NUMBER,
            fontweight="bold" if point.on_front else "normal",
            color=INK if point.on_front else SOFT,
            bbox=BACKING,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": FAINT, "shrinkA": 0, "shrinkB": 3}
            if free > _LEADER
            else None,
            annotation_clip=False,
            zorder=6,
        )


def _place(sheet: Sheet, point: _Point, y: float) -> tuple[float, float]:
    """Points from the lower left corner of the page."""
    across, up = point.axes.transData.transform((point.x, y)) * 72 / sheet.figure.dpi
    return float(across), float(up)


def _segment(sheet: Sheet, axes: Axes, first: float, last: float, y: float) -> Box:
    """A level line as a box in points."""
    (left, height), (right, _) = axes.transData.transform([(first, y), (last, y)]) * 72 / sheet.figure.dpi
    return Box(float(left), float(height) - 0.7, float(right), float(height) + 0.7)


def _measure(sheet: Sheet, said: str, size: float, bold: bool) -> tuple[float, float]:
    """Width and height of a text in points."""
    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    renderer = sheet.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    width, height, _ = renderer.get_text_width_height_descent(said, font, ismath=False)
    scale = 72 / sheet.figure.dpi
    return width * scale, height * scale
