"""Which rows cannot be told apart: means, intervals, and a line through every group (after Demšar 2006)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from petlbench.leaderboard.pairwise import Pairwise
from petlbench.leaderboard.plots.families import FAMILIES, family_of
from petlbench.leaderboard.plots.lists import (
    explain_test,
    list_axis,
    list_height,
    list_labels,
    list_width,
    not_compared,
    score_axis,
)
from petlbench.leaderboard.plots.style import FAINT, INK, explain_marks, family_handles, names, table_sheet
from petlbench.leaderboard.table import Table

TITLE = "Rows that cannot be told apart"

_PLOT, _COLUMN, _LEGEND = 4.4, 0.17, 0.42
_SHOWN = 24
"""Columns of groups; a table with more is read in the win matrix."""


def draw(table: Table) -> Figure | None:
    """Rows with their intervals, groups as lines beside them; None where fewer than two rows can be compared."""
    pairs = table.pairs
    if pairs is None:
        return None
    rows = list(pairs.rows)
    labels = list_labels(rows, names(table.rows))
    groups = [group for group in pairs.groups if len(group) > 1]
    left = list_width(labels)
    columns = pack(groups)
    side = max(1.1, _COLUMN * min(max(columns, default=0) + 1, _SHOWN) + 0.3)
    height = list_height(rows)
    hidden = sum(column >= _SHOWN for column in columns)
    sheet = table_sheet(table, TITLE, left + _PLOT + side + 0.2, _LEGEND + height + 0.5, _notes(table, pairs, hidden))
    axes = sheet.axes(left, _LEGEND, _PLOT, height)
    list_axis(axes, labels)
    ends = []
    for place, row in enumerate(rows):
        family = FAMILIES[family_of(row)]
        if row.interval:
            axes.plot(row.interval, [place, place], color=family.colour, lw=1.0, zorder=2, solid_capstyle="butt")
        axes.plot(
            [row.mean["mR"]], [place], marker=family.marker, ms=5.5, mfc=family.colour, mec=INK, mew=0.6, zorder=3
        )
        ends += [row.mean["mR"], *(row.interval or ())]
    score_axis(axes, ends)
    beside = sheet.axes(left + _PLOT + 0.1, _LEGEND, side - 0.1, height)
    beside.set_axis_off()
    beside.set_ylim(axes.get_ylim())
    beside.set_xlim(0, (side - 0.1) / _COLUMN)
    for column, group in zip(columns, groups, strict=True):
        if column < _SHOWN:
            _group(beside, column + 0.7, group)
    sheet.text(left + _PLOT + 0.1, _LEGEND - 0.08, "groups" if groups else "no groups", size=7.5, va="bottom")
    sheet.legend(family_handles(rows), left, 0.0, columns=4)
    return sheet.figure


def pack(groups: Sequence[tuple[int, ...]]) -> list[int]:
    """A column per group, so that groups of one column do not touch; groups come in the order of their first row."""
    ends: list[int] = []  # last row of the group that stands lowest in each column
    columns = []
    for group in groups:
        column = next((i for i, end in enumerate(ends) if group[0] > end + 1), len(ends))
        ends[column : column + 1] = [group[-1]]
        columns.append(column)
    return columns


def _group(axes: Axes, x: float, group: tuple[int, ...]) -> None:
    """A dot at every member, joined where members follow each other, thin where rows between them do not belong."""
    for before, after in pairwise(group):
        axes.plot(
            [x, x], [before, after], color=INK if after == before + 1 else FAINT, lw=1.6 if after == before + 1 else 0.5
        )
    axes.plot([x] * len(group), group, ls="none", marker="o", ms=3.4, color=INK)


def _notes(table: Table, pairs: Pairwise, hidden: int) -> list[str]:
    notes = [
        "Each black line is a group: no two rows with a dot on it differ. Two rows that share no line differ "
        f"({explain_test(pairs)}).",
        "Coloured lines are 95 % bootstrap intervals over the test images, for these seeds. Two intervals may overlap although "
        "the rows differ, for the test compares the rows image by image.",
    ]
    if hidden:
        notes.append(f"{hidden} more group{'s are' if hidden > 1 else ' is'} not drawn; see the win matrix.")
    return [*notes, *not_compared(pairs, table.rows), *explain_marks(pairs.rows)]
