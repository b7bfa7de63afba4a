"""The numbered key beside a scatter plot: families with their marker, methods with their rank."""

from __future__ import annotations

from collections.abc import Sequence

from petlbench.leaderboard.plots.families import FAMILIES, family_of
from petlbench.leaderboard.plots.style import INK, SOFT, Sheet, names, tint
from petlbench.leaderboard.row import Row

WIDTH = 2.65
"""Inches."""

_LINE, _GAP = 0.131, 0.07

Line = tuple[str, str, str]
"""Family, number and name; headings have no number."""


def key_height(lines: Sequence[Line]) -> float:
    """Inches that the key needs at most."""
    return len(lines) * _LINE + len(FAMILIES) * _GAP


def key_lines(rows: Sequence[Row]) -> list[Line]:
    """The key of these rows from top to bottom."""
    named = names(rows)
    lines = []
    for key, family in FAMILIES.items():
        members = [row for row in rows if family_of(row) == key]
        if members:
            lines.append((key, "", family.label))
            lines += [(key, str(row.rank), named[row.group.key]) for row in members]
    return lines


def draw_key(sheet: Sheet, lines: Sequence[Line]) -> None:
    """Draw the key at the right edge of the page."""
    left = sheet.width - WIDTH + 0.1
    canvas = sheet.axes(left, 0, WIDTH - 0.2, 1.0)
    canvas.set_axis_off()
    top = 0.05
    for key, number, name in lines:
        family = FAMILIES[key]
        if number:
            sheet.text(left + 0.36, top, number, size=6.6, color=SOFT, ha="right", va="center")
            sheet.text(left + 0.44, top, name, size=7, va="center")
        else:
            top += _GAP if top > 0.1 else 0.0
            canvas.plot(
                [0.1 / (WIDTH - 0.2)],
                [1 - top],
                transform=canvas.transAxes,
                ls="none",
                marker=family.marker,
                ms=6,
                mfc=tint(family.colour, 0.75),
                mec=INK,
                mew=0.6,
                clip_on=False,
            )
            sheet.text(left + 0.22, top, name, size=7.2, weight="bold", va="center")
        top += _LINE
