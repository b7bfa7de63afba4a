"""What all plots share: type, ink, page layout in inches, names of rows, and saving to bytes that never vary."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from matplotlib import get_data_path, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font, LoadFlags
from matplotlib.lines import Line2D

from petlbench.leaderboard import text
from petlbench.leaderboard.explain import MARKS, TOY, is_toy
from petlbench.leaderboard.markdown import marks
from petlbench.leaderboard.plots.families import FAMILIES, family_of
from petlbench.leaderboard.row import Row
from petlbench.leaderboard.table import Table

INK, SOFT, FAINT, RULE = "#1a1a1a", "#595959", "#9a9a9a", "#d9d9d9"
"""Text, secondary text, marks that step back, lines of the grid."""

BACKING = {"boxstyle": "square,pad=0.06", "facecolor": (1.0, 1.0, 1.0, 0.8), "linewidth": 0}
"""Box behind text that may lie on lines (a halo of its letters would triple the size of an SVG)."""

NAME_LIMIT = 34
"""Characters of a row's name."""

MAX_ROWS = 60
"""Rows of a picture; names of more would not be legible."""

_FONT = "DejaVu Sans"  # comes with matplotlib, so that pictures are the same on every machine
_RC: Any = {  # matplotlib types its keys one by one
    "font.family": [_FONT],
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a title is a dollar sign
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "svg.hashsalt": "petlbench",
    "svg.fonttype": "path",  # nothing of a record is ever text of the SVG's body
    "path.simplify": False,
    "hatch.linewidth": 0.6,
}
_RULES = {
    "best_val": "best epoch on validation",
    "last": "last epoch",
    "test_max": "best epoch ON TEST (optimistic)",
    "none": "nothing selected",
}
_MEAN_RECALL = "mR is the mean of R@1, R@5 and R@10 over both directions, image to text and text to image."
_MARGIN, _HEAD, _LINE, _NOTE_SIZE = 0.16, 0.74, 0.145, 7.0
_PNG_DPI = 160


class Sheet:
    """A figure with a title, a line that says what was measured, a body to draw in, and notes below it.

    Places are inches from the left edge and from the top of the body.
    """

    def __init__(self, about: str, title: str, width: float, body: float, notes: Sequence[str] = ()):
        """Lay out the page.

        Args:
            about: What was measured.
            title: What the picture shows, in a few words.
            width: Inches.
            body: Height of the body, inches.
            notes: Plain text under the body, one paragraph each.
        """
        paragraphs = [line for note in notes for line in _wrap(note, width, _NOTE_SIZE)]
        told = _wrap(about, width, 8.5)
        self.width = width
        self._head = _HEAD + (len(told) - 1) * 0.16
        self.height = self._head + body + len(paragraphs) * _LINE + 0.2
        self.figure = Figure(figsize=(width, self.height), dpi=100, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.text(_MARGIN, 0.27 - self._head, title, size=12.5, weight="bold", va="baseline")
        for number, line in enumerate(told):
            self.text(_MARGIN, 0.5 - self._head + 0.16 * number, line, size=8.5, color=SOFT, va="baseline")
        for number, line in enumerate(paragraphs):
            self.text(_MARGIN, body + 0.12 + _LINE * number, line, size=_NOTE_SIZE, color=SOFT, va="baseline")

    def axes(self, left: float, top: float, width: float, height: float, **options: Any) -> Axes:
        """Axes whose frame lies at this place; options as of ``Figure.add_axes``."""
        bottom = self.height - self._head - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height), **options
        )

    def text(self, left: float, top: float, said: str, **options: Any) -> None:
        """Text on the page."""
        place = (left / self.width, 1 - (self._head + top) / self.height)
        self.figure.text(*place, drawable(said), **options)

    def legend(self, handles: Sequence[Artist], left: float, top: float, columns: int) -> None:
        """A legend whose upper left corner is this place."""
        self.figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(left / self.width, 1 - (self._head + top) / self.height),
            ncols=columns,
            frameon=False,
            fontsize=7.2,
            borderpad=0,
            borderaxespad=0,
            handletextpad=0.3,
            columnspacing=1.0,
            labelspacing=0.25,
        )


def table_sheet(table: Table, title: str, width: float, body: float, notes: Sequence[str] = ()) -> Sheet:
    """A sheet about a table of a board; see :class:`Sheet`."""
    return Sheet(describe(table), title, width, body, [*notes, *_always(table)])


def describe(table: Table) -> str:
    """Data set, backbone, resolution, selection and seeds in one line of plain text."""
    record = table.rows[0].group.entries[0].record
    data, provenance = record.data, record.backbone or {}
    seeds = sorted({row.n for row in table.rows if row.trained} or {row.n for row in table.rows})
    spread = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    parts = [
        f"{data.title}, {data.splits['test'].images:,} test images" if data else table.setting.dataset,
        f"backbone {table.backbone}",
        *([f"{provenance['resolution']} px"] if "resolution" in provenance else []),
        f"selection: {_RULES[table.setting.rule]}",
        f"{spread} seed{'s' * (seeds[-1] != 1)}",
    ]
    return text.plain("  ·  ".join(parts)).replace(" · ", "  ·  ")


def names(rows: Sequence[Row], limit: int = NAME_LIMIT) -> dict[str, str]:
    """A name per group key: the method's title, with what tells it from the other rows of that method."""
    titles = {row.group.method: row.title for row in rows}
    shared = Counter(titles.values())
    found = {}
    for row in rows:
        plainly = row.label if shared[row.title] > 1 else row.title + row.label[len(row.group.method) :]
        found[row.group.key] = text.shorten(plainly, limit)
    return found


def best_rows(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows that fit a page, best first, and a note where some do not."""
    ordered = sorted(rows, key=lambda row: row.rank)
    cut = len(ordered) - MAX_ROWS
    return ordered[:MAX_ROWS], [f"The best {MAX_ROWS} rows are shown; {cut} more are not."] if cut > 0 else []


def explain_marks(rows: Sequence[Row]) -> list[str]:
    """What the marks of these rows mean, in one paragraph; none without any."""
    used = "".join(marks(row) for row in rows)
    return ["  ".join(f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in used)] if used else []


def drawable(said: str) -> str:
    """Plain text in which a character that the font lacks is a box."""
    known = _characters()
    return "".join(char if ord(char) in known else "\u25a1" for char in text.plain(said))


@contextmanager
def styled() -> Iterator[None]:
    """The settings under which figures are made and saved, whatever those of the user are."""
    with rc_context():
        from matplotlib import rcdefaults, rcParams

        rcdefaults()
        rcParams.update(_RC)
        yield


def save(figure: Figure, kind: str, about: str) -> bytes:
    """The figure as ``svg`` or ``png``; equal figures give equal bytes.

    Args:
        figure: Made under :func:`styled`.
        kind: File ending.
        about: Plain text for the SVG's metadata.
    """
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Title": about} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=_PNG_DPI, metadata=metadata)
    return buffer.getvalue()


def family_handles(rows: Sequence[Row], hollow: bool = False) -> list[Artist]:
    """Legend of the families that occur."""
    occurring = {family_of(row) for row in rows}
    return [
        Line2D(
            [],
            [],
            ls="none",
            marker=family.marker,
            ms=5,
            mfc=tint(family.colour, 0.35) if hollow else family.colour,
            mec=family.colour if hollow else INK,
            mew=0.7,
            label=family.label,
        )
        for key, family in FAMILIES.items()
        if key in occurring
    ]


def tint(colour: str, strength: float) -> tuple[float, float, float]:
    """A colour mixed with white, opaque; ``strength`` 1 is the colour itself."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (1 - strength * (1 - channel) for channel in channels)
    return red, green, blue


def _wrap(said: str, width: float, size: float) -> list[str]:
    """Lines that fit between the margins."""
    return wrap(said, width - 2 * _MARGIN, size)


def wrap(said: str, width: float, size: float) -> list[str]:
    """Lines of at most ``width`` inches, with 4 % to spare for letters set on a grid of pixels; a longer word stands alone."""
    lines: list[str] = []
    for word in drawable(said).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and inches(longer, size) <= 0.96 * width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _always(table: Table) -> list[str]:
    backbones = [str(entry.record.spec["backbone"]["name"]) for row in table.rows for entry in row.group.entries]
    return [_MEAN_RECALL, *([TOY] if is_toy(table.setting.dataset, backbones) else [])]


def inches(said: str, size: float) -> float:
    """Width of a line of text; kerning, which only takes away, is left out."""
    return sum(map(_advance, said)) * size / 72


@cache
def _advance(char: str) -> float:
    """How far a letter moves the pen, in multiples of the font's size."""
    font = FT2Font(_font_file())
    font.set_size(100, 72)
    return float(font.load_char(ord(char), flags=LoadFlags.NO_HINTING).linearHoriAdvance) / 65536 / 100


@cache
def _characters() -> frozenset[int]:
    return frozenset(FT2Font(_font_file()).get_charmap())


def _font_file() -> str:
    return f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
