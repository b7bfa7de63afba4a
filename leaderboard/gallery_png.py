"""A gallery as pictures for a paper or a talk: the same queries, answers and marks as on the page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import BboxImage
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox, TransformedBbox
from PIL import Image

from petlbench.harness.gallery import Gallery, Item, Question, Side
from petlbench.leaderboard import text
from petlbench.leaderboard.gallery_html import HEADINGS, MARKS
from petlbench.leaderboard.plots.style import INK, RULE, SOFT, drawable, save, styled, wrap

PER_PAGE = 8
"""Queries per picture; more go into further pictures."""

COLOURS = {"hit": ("#0a7a3d", "solid"), "duplicate": ("#9a5b00", (0, (3, 1.5)))}
"""Mark of an answer to colour and line of its frame; they differ in both."""

_MARGIN, _QUERY, _SIDE, _GAP = 0.2, 4.2, 5.6, 0.25
_SIZE, _LINE = 8.0, 0.145
_SMALL, _SMALL_LINE = 6.8, 0.125
_TINY = 6.5
_THUMB = 1.3
_TRUTHS = 6
"""Own captions of a picture that are drawn."""
_LIMIT = 160
"""Characters of a caption that are drawn."""


@dataclass(frozen=True)
class _Row:
    """One query, laid out: lines per caption, and its height in inches."""

    question: Question
    query: list[str]
    """Of a caption its lines, of a picture those of its own captions."""
    sides: list[list[list[str]]]
    height: float


def draw_gallery(gallery: Gallery) -> list[bytes]:
    """PNG pictures, each of a few queries; equal galleries give equal bytes."""
    with styled():
        rows = [_row(question) for question in gallery.questions]
        pages = [rows[start : start + PER_PAGE] for start in range(0, len(rows), PER_PAGE)]
        return [
            save(_page(gallery, page, number, len(pages)), "png", gallery.data) for number, page in enumerate(pages, 1)
        ]


def _row(question: Question) -> _Row:
    if question.way == "t2i":
        query = _lines(f"“{question.query.text}”", _QUERY, 6)
        return _Row(question, query, [], max(0.3 + _LINE * len(query) + _THUMB + 0.3, 0.6 + _across(question)[1]))
    width = _QUERY - _THUMB - 0.2
    query = [line for item in question.truth[:_TRUTHS] for line in _lines(f"✓ {item.text}", width, 3, _SMALL)]
    if (more := len(question.truth) - _TRUTHS) > 0:
        query.append(f"and {more} more")
    sides = [[_lines(_answer(n, item), _SIDE - 0.15, 3) for n, item in enumerate(s.answers, 1)] for s in question.sides]
    tallest = max(sum(_LINE * len(lines) + 0.09 for lines in side) for side in sides)
    return _Row(question, query, sides, max(0.45 + _THUMB, 0.4 + _SMALL_LINE * len(query), 0.6 + tallest))


def _page(gallery: Gallery, rows: Sequence[_Row], number: int, pages: int) -> Figure:
    columns = len(gallery.names)
    width = 2 * _MARGIN + _QUERY + columns * (_SIDE + _GAP)
    head = wrap(f"{gallery.data}. {gallery.chosen}", width - 2 * _MARGIN, _SIZE)
    headings = sum(place == 0 or row.question.way != rows[place - 1].question.way for place, row in enumerate(rows))
    height = 0.75 + _LINE * len(head) + sum(row.height + 0.1 for row in rows) + 0.35 * headings + 0.1
    sheet = _Sheet(width, height)
    title = " and ".join(gallery.names) + (f" ({number} of {pages})" if pages > 1 else "")
    sheet.write(_MARGIN, 0.3, text.shorten(title, 110), size=13, weight="bold")
    for place, line in enumerate(head):
        sheet.write(_MARGIN, 0.52 + _LINE * place, line, color=SOFT)
    top = 0.52 + _LINE * len(head)
    left = _MARGIN
    for mark, (sign, meaning) in MARKS.items():
        sheet.write(left, top, f"{sign} {meaning}", color=COLOURS[mark][0], weight="bold", size=7.2)
        left += 1.6
    top += 0.15
    for place, row in enumerate(rows):
        if place == 0 or row.question.way != rows[place - 1].question.way:
            sheet.write(_MARGIN, top + 0.2, HEADINGS[row.question.way], size=10, weight="bold")
            top += 0.35
        sheet.line(top)
        _draw(sheet, gallery, row, top + 0.08)
        top += row.height + 0.1
    return sheet.figure


def _draw(sheet: _Sheet, gallery: Gallery, row: _Row, top: float) -> None:
    question = row.question
    noun = "Picture" if question.way == "i2t" else "Caption"
    sheet.write(_MARGIN, top + 0.15, f"{noun} {question.query.place}", weight="bold")
    below = top + 0.3
    if question.way == "t2i":
        for place, line in enumerate(row.query):
            sheet.write(_MARGIN, below + _LINE * (place + 0.5), line)
        below += _LINE * len(row.query) + 0.05
        sheet.picture(gallery, question.truth[0], _MARGIN + 0.05, below, _THUMB, "hit")
    else:
        sheet.picture(gallery, question.query, _MARGIN + 0.05, below, _THUMB)
        sheet.write(_MARGIN + 0.05, below + _THUMB + 0.13, _fit(_named(question.query), _THUMB), color=SOFT, size=_TINY)
        for place, line in enumerate(row.query):
            sheet.write(_MARGIN + _THUMB + 0.2, below + 0.1 + _SMALL_LINE * place, line, color=SOFT, size=_SMALL)
    for column, side in enumerate(question.sides):
        left = _MARGIN + _QUERY + _GAP + column * (_SIDE + _GAP)
        sheet.write(left, top + 0.15, text.shorten(gallery.names[column], 60), weight="bold")
        sheet.write(left, top + 0.33, _rank(side), color=SOFT)
        if question.way == "i2t":
            _captions(sheet, side, row.sides[column], left, top + 0.45)
        else:
            across, _ = _across(question)
            size = _SIDE / across
            for place, item in enumerate(side.answers):
                x, y = left + (place % across) * size, top + 0.48 + (place // across) * (size + 0.14)
                sheet.picture(gallery, item, x + 0.04, y, size - 0.12, item.mark)
                said = _named(item, f"{place + 1} {MARKS[item.mark][0] if item.mark else ''}")
                sheet.write(x + 0.04, y + size + 0.03, _fit(said, size - 0.1), color=SOFT, size=_TINY)


def _captions(sheet: _Sheet, side: Side, lines: Sequence[Sequence[str]], left: float, top: float) -> None:
    for item, said in zip(side.answers, lines, strict=True):
        height = _LINE * len(said) + 0.05
        if item.mark:
            sheet.frame(left - 0.05, top, _SIDE, height, item.mark)
        for place, line in enumerate(said):
            sheet.write(left, top + 0.115 + _LINE * place, line)
        top += height + 0.04


def _across(question: Question) -> tuple[int, float]:
    """Pictures in a row, and the height of all of a side's rows, inches."""
    answers = max(len(side.answers) for side in question.sides)
    across = min(max(answers, 4), 5) if answers <= 5 else 6
    rows = -(-answers // across)
    return across, rows * (_SIDE / across + 0.16)


def _rank(side: Side) -> str:
    twin = f", a duplicate at {side.duplicate_rank}" if side.duplicate_rank < side.rank else ""
    return f"right answer at rank {side.rank}{twin}"


def _answer(number: int, item: Item) -> str:
    sign = f"{MARKS[item.mark][0]} " if item.mark else ""
    return f"{number}. {sign}{text.shorten(item.text, _LIMIT)}" + (f"  [{item.label}]" if item.label else "")


def _named(item: Item, before: str = "") -> str:
    return f"{before} {item.label or item.text}".strip()


def _lines(said: str, width: float, most: int, size: float = _SIZE) -> list[str]:
    """At most so many lines; a word too long for a line is broken."""
    letters = max(8, int(width * 72 / size))
    words = [
        word[at : at + letters]
        for word in text.shorten(said, 2 * _LIMIT).split()
        for at in range(0, len(word), letters)
    ]
    lines = wrap(" ".join(words), width, size)
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][:-1] + "…"]


def _fit(said: str, width: float) -> str:
    return text.shorten(said, max(4, int(width * 72 / (0.58 * _TINY))))


class _Sheet:
    """A figure on which things are put at places in inches from the upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
        FigureCanvasAgg(self.figure)

    def write(
        self, left: float, top: float, said: str, size: float = _SIZE, color: str = INK, weight: str = "normal"
    ) -> None:
        """One line of text; its baseline lies at ``top``."""
        place = (left / self.width, 1 - top / self.height)
        self.figure.text(*place, drawable(said), size=size, color=color, weight=weight, va="baseline")

    def line(self, top: float) -> None:
        """A hairline across the page."""
        self._patch(_MARGIN, top, self.width - 2 * _MARGIN, 0.0, edgecolor=RULE, linewidth=0.7)

    def frame(self, left: float, top: float, width: float, height: float, mark: str) -> None:
        """The frame of a right answer or a duplicate."""
        colour, line = COLOURS[mark]
        self._patch(left, top, width, height, edgecolor=colour, linewidth=1.6, linestyle=line)

    def picture(
        self, gallery: Gallery, item: Item, left: float, top: float, side: float, mark: str | None = None
    ) -> None:
        """A picture whose longer side is ``side`` inches."""
        with Image.open(io.BytesIO(gallery.thumbnails[item.place])) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        scale = side / max(pixels.shape[:2])
        height, width = pixels.shape[0] * scale, pixels.shape[1] * scale
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        # Without axes, which take far longer to make than to fill.
        shown = BboxImage(TransformedBbox(Bbox.from_bounds(*box), self.figure.transFigure), interpolation="lanczos")
        shown.set_data(pixels)
        self.figure.add_artist(shown)
        if mark:
            self.frame(left - 0.035, top - 0.035, width + 0.07, height + 0.07, mark)

    def _patch(self, left: float, top: float, width: float, height: float, **options: object) -> None:
        corner = (left / self.width, 1 - (top + height) / self.height)
        patch = Rectangle(
            corner,
            width / self.width,
            height / self.height,
            fill=False,
            transform=self.figure.transFigure,
            **options,  # type: ignore[arg-type]
        )
        self.figure.add_artist(patch)
