"""Which scene class a method takes for which: classes of queries against classes of first answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from petlbench.harness.json_files import write_atomically
from petlbench.leaderboard import text
from petlbench.leaderboard.breakdown_text import DIRECTIONS, named
from petlbench.leaderboard.plots.cells import cells_axes, colour_bar, paint, write_number
from petlbench.leaderboard.plots.lists import list_width
from petlbench.leaderboard.plots.style import INK, RULE, Sheet, drawable, inches, save, styled
from petlbench.leaderboard.plots.write import KINDS, file_slug

if TYPE_CHECKING:
    from petlbench.harness.breakdown import Breakdown, Method

TITLE = "Scene classes taken for each other"

_CELL = 0.23
"""Inches."""
_NUMBERED = 5.0
"""Percent from which a cell has its figure."""
_NAME_LIMIT = 24


def draw(found: Breakdown, method: Method, way: str) -> Figure:
    """A cell per pair of classes: the share of the first class's queries whose first answer is of the second.

    Args:
        found: With confusions.
        method: One of its methods.
        way: ``i2t`` or ``t2i``.
    """
    counts = method.confused[way]
    asked = counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        shares = 100 * counts / asked[:, None]  # a class that nothing asked is NaN: a grey row
    classes = [text.shorten(name, _NAME_LIMIT) for name in found.classes]
    rows = [f"{name} ({queries:,.0f})" for name, queries in zip(classes, asked, strict=True)]
    left = list_width(rows)
    top = 0.28 + max(inches(drawable(name), 7.0) for name in classes)
    size = _CELL * len(classes)
    right = np.trace(counts) / asked.sum() if asked.sum() else 0.0
    queries = "pictures" if way == "i2t" else "captions"
    notes = [
        f"Read along a row: of the {queries} of the class at the left (their number in brackets), the share, percent, whose first "
        f"answer is of the class above. Framed: the class itself, {100 * right:.1f} % over all {queries}. Shares below "
        f"{_NUMBERED:g} % have no figure.",
        *(["Means over the seeds."] if len(method.seeds) > 1 else []),
        *method.notes,
    ]
    about = f"{found.dataset}, test  ·  {named(method)}  ·  {DIRECTIONS[way]}"
    sheet = Sheet(about, TITLE, max(left + size + 1.0, 5.5), top + max(size, 1.2) + 0.15, notes)
    axes = cells_axes(sheet, left, top, size, rows, classes, rotation=90, fontsize=7.0)
    axes.set_xlabel("class of the first answer", fontsize=7.5, loc="left")
    edges = np.arange(len(classes) + 1) - 0.5
    axes.hlines(edges, -0.5, edges[-1], color=RULE, lw=0.4, zorder=0)
    axes.vlines(edges, -0.5, edges[-1], color=RULE, lw=0.4, zorder=0)
    bins = paint(axes, shares)
    for i, j in np.argwhere(shares >= _NUMBERED):
        write_number(axes, i, j, shares[i, j], bold=i == j)
    for i in range(len(classes)):
        axes.add_patch(Rectangle((i - 0.44, i - 0.44), 0.88, 0.88, fill=False, ec=INK, lw=0.6))
    colour_bar(sheet, bins, left + size + 0.2, top, max(size, 1.2), f"{queries} (%)")
    return sheet.figure


def write_confusions(found: Breakdown, out_dir: Path) -> list[Path]:
    """Write ``confusion-METHOD-DIRECTION.svg`` and ``.png`` for every method; equal breakdowns give equal bytes.

    Raises:
        ValueError: The breakdown holds no confusions.
        OSError: ``out_dir`` cannot be written.
    """
    if not any(method.confused for method in found.methods):
        raise ValueError("the breakdown holds no confusions; make it with confused=True")
    rendered = {}
    names = [file_slug(method.label) for method in found.methods]
    for place, (method, name) in enumerate(zip(found.methods, names, strict=True)):
        distinct = name if names.count(name) == 1 else f"{name}-{place + 1}"
        for way in method.confused:
            with styled():
                figure = draw(found, method, way)
                about = text.plain(f"{TITLE}: {found.dataset}, {named(method)}, {DIRECTIONS[way]}")
                for kind in KINDS:
                    rendered[out_dir / f"confusion-{distinct}-{way}.{kind}"] = save(figure, kind, about)
    for path, content in rendered.items():
        write_atomically(path, content)
    return list(rendered)
