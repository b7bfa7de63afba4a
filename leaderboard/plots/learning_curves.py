"""Validation mR per epoch, a small panel per row with the others behind it."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from petlbench.leaderboard.plots.families import FAMILIES, family_of
from petlbench.leaderboard.plots.style import INK, NAME_LIMIT, RULE, SOFT, best_rows, drawable, names, table_sheet, tint
from petlbench.leaderboard.row import Row
from petlbench.leaderboard.table import Table

TITLE = "Learning curves: validation mR per epoch"

_WIDTH = 9.6
_LEFT, _GAP_X, _GAP_Y = 0.62, 0.16, 0.36


def draw(table: Table) -> Figure | None:
    """A panel per row; None where no row was validated at two epochs or more."""
    rows, cut = best_rows(table.rows)
    curves = {row.group.key: found for row in rows if (found := curve(row)) is not None}
    if not any(len(epochs) > 1 for epochs, _ in curves.values()):
        return None
    shown = [row for row in rows if row.group.key in curves]
    columns = 1 if len(shown) == 1 else 2 if len(shown) == 2 else 3 if len(shown) < 10 else 5
    named = names(rows, 22 if columns == 5 else NAME_LIMIT)
    lines = math.ceil(len(shown) / columns)
    width = (_WIDTH - _LEFT - 0.16 - (columns - 1) * _GAP_X) / columns
    height = {1: 3.2, 2: 2.9, 3: 2.1}.get(columns, 1.15)
    without = [named[row.group.key] for row in rows if row.group.key not in curves]
    behind = " Pale lines are the other rows." if len(shown) > 1 else ""
    notes = [
        "The line is the mean over the seeds, the band reaches from the lowest to the highest seed; a ringed dot is the epoch "
        f"that a seed's selection chose.{behind} Validation, not test.",
        *([f"Not validated while training: {', '.join(without)}."] if without else []),
        *cut,
    ]
    body = lines * height + (lines - 1) * _GAP_Y + 0.75
    sheet = table_sheet(table, TITLE, _WIDTH, body, notes)
    ends = [value for _, values in curves.values() for value in (np.nanmin(values), np.nanmax(values))]
    pad = 0.05 * (max(ends) - min(ends)) or 1.0
    first = min(epochs[0] for epochs, _ in curves.values())
    last = max(epochs[-1] for epochs, _ in curves.values())
    for place, row in enumerate(shown):
        line, column = divmod(place, columns)
        axes = sheet.axes(_LEFT + column * (width + _GAP_X), 0.22 + line * (height + _GAP_Y), width, height)
        axes.set_ylim(max(0.0, min(ends) - pad), min(100.0, max(ends) + pad))
        axes.set_xlim(first - 0.04 * (last - first), last + 0.04 * (last - first))
        axes.xaxis.set_major_locator(MaxNLocator(6 if columns < 5 else 4, integer=True))
        axes.grid(color=RULE, lw=0.5)
        axes.set_axisbelow(True)
        for other in shown:
            if other is not row:
                epochs, values = curves[other.group.key]
                axes.plot(epochs, _mean(values), color=RULE, lw=0.8, zorder=1)
        _panel(axes, row, *curves[row.group.key])
        axes.set_title(drawable(f"{row.rank}  {named[row.group.key]}"), fontsize=7.6, loc="left", pad=3)
        axes.tick_params(labelleft=column == 0, labelbottom=place + columns >= len(shown))
        if column == 0:
            axes.set_ylabel("validation mR (%)" if height > 2 else "val mR (%)", fontsize=7.5)
        if place + columns >= len(shown):
            axes.set_xlabel("epoch", fontsize=7.5)
    return sheet.figure


def curve(row: Row) -> tuple[list[int], NDArray[np.float64]] | None:
    """Epochs, and validation mR as (seeds, epochs) with NaN where a seed was not validated; None without any."""
    found = [
        {line.epoch: line.val_mR for line in entry.record.curve if line.val_mR is not None}
        for entry in row.group.entries
    ]
    epochs = sorted({epoch for values in found for epoch in values})
    if not epochs:
        return None
    return epochs, np.array([[values.get(epoch, math.nan) for epoch in epochs] for values in found])


def _panel(axes: Axes, row: Row, epochs: list[int], values: NDArray[np.float64]) -> None:
    family = FAMILIES[family_of(row)]
    axes.fill_between(
        epochs, np.nanmin(values, 0), np.nanmax(values, 0), color=tint(family.colour, 0.25), lw=0, zorder=2
    )
    axes.plot(
        epochs, _mean(values), color=family.colour, lw=1.6, marker=family.marker if len(epochs) == 1 else "", zorder=3
    )
    for entry, line in zip(row.group.entries, values, strict=True):
        chosen = entry.record.selection.epoch if entry.record.selection else None
        if chosen in epochs:
            axes.plot(
                [chosen],
                [line[epochs.index(chosen)]],
                ls="none",
                marker="o",
                ms=4,
                mfc="white",
                mec=INK if family.colour != INK else SOFT,
                mew=0.8,
                zorder=4,
            )


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.nanmean(values, 0))
