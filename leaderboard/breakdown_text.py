"""A breakdown as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from petlbench.leaderboard import text
from petlbench.leaderboard.breakdown import Part
from petlbench.leaderboard.load import METRICS

if TYPE_CHECKING:
    from petlbench.harness.breakdown import Breakdown, Method

INTERVALS = (
    "Brackets hold 95 % Wilson intervals of single groups, not corrected for their number. n counts pictures in both directions, "
    "since captions of one picture stand and fall together."
)
CONFUSED = 10
"""Pairs of classes that are listed per direction."""
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}


class Pair(NamedTuple):
    """Queries of one class that got a first answer of another."""

    asked: str
    answered: str
    queries: float
    share: float
    """Of the queries of the class, percent."""


def render_markdown(found: Breakdown) -> str:
    """A table per method."""
    lines = [
        f"# {text.markdown(found.dataset)} by {found.by}",
        "",
        text.markdown(found.said),
        "",
        text.markdown(INTERVALS),
    ]
    for method in found.methods:
        lines += ["", f"## {text.markdown(named(method))}", ""]
        lines.append(
            "| group | pictures | captions | " + " | ".join(text.metric(m) for m in METRICS[:-1]) + " | mR | 95 % |"
        )
        lines.append("| --- |" + " ---: |" * (len(METRICS) + 3))
        for part in method.parts:
            cells = [text.percent(part.cells[m].value if m in part.cells else None) for m in METRICS]
            row = [text.markdown(part.name), f"{part.images:,}", f"{part.captions:,}", *cells, bounds(part, "mR")]
            lines.append(f"| {' | '.join(row)} |")
        for way, said in DIRECTIONS.items():
            if way in method.confused:
                lines += ["", f"Most confused, {said} (class of the query, class of the first answer):", ""]
                lines += [f"- {_pair(pair)}" for pair in pairs(found, method, way)] or ["- none"]
        lines += [f"\nNote: {text.markdown(note)}." for note in method.notes]
    return "\n".join(lines) + "\n"


def render_csv(found: Breakdown, confusion: bool = False) -> str:
    """A line per method, group and recall; with ``confusion``, a line per method, direction and pair of classes instead."""
    buffer = io.StringIO()
    out = csv.writer(buffer, lineterminator="\n")
    if confusion:
        out.writerow(("method", "seeds", "direction", "class", "answered", "queries"))
        for method in found.methods:
            for way, matrix in method.confused.items():
                for asked, row in zip(found.classes, matrix.tolist(), strict=True):
                    for answered, queries in zip(found.classes, row, strict=True):
                        out.writerow(
                            (_cell(method.label), len(method.seeds), way, _cell(asked), _cell(answered), queries)
                        )
        return buffer.getvalue()
    out.writerow(("method", "seeds", "group", "images", "captions", "metric", "value", "low", "high"))
    for method in found.methods:
        for part in method.parts:
            for name, cell in part.cells.items():
                counts = part.images, part.captions
                out.writerow(
                    (
                        _cell(method.label),
                        len(method.seeds),
                        _cell(part.name),
                        *counts,
                        name,
                        cell.value,
                        cell.low,
                        cell.high,
                    )
                )
    return buffer.getvalue()


def render_json(found: Breakdown) -> str:
    """Everything, with whole matrices of confusions."""
    payload: dict[str, Any] = {
        "dataset": found.dataset,
        "split_sha256": found.split_sha256,
        "by": found.by,
        "rule": found.rule,
        "groups": found.said,
        "intervals": INTERVALS,
        "classes": list(found.classes),
        "methods": [
            {
                "method": method.label,
                "seeds": list(method.seeds),
                "parts": [
                    {
                        "name": part.name,
                        "images": part.images,
                        "captions": part.captions,
                        "recalls": {name: vars(cell) for name, cell in part.cells.items()},
                    }
                    for part in method.parts
                ],
                "notes": list(method.notes),
                "confusion": {way: matrix.tolist() for way, matrix in method.confused.items()},
            }
            for method in found.methods
        ],
    }
    return json.dumps(payload, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def named(method: Method) -> str:
    """The method and its seeds."""
    return f"{method.label}, seed{'s' * (len(method.seeds) > 1)} {', '.join(map(str, method.seeds))}"


def bounds(part: Part, metric: str) -> str:
    """The interval of a recall; a dash without one."""
    cell = part.cells.get(metric)
    return text.interval(None if cell is None else (cell.low, cell.high))


def pairs(found: Breakdown, method: Method, way: str, most: int = CONFUSED) -> list[Pair]:
    """Pairs of different classes by the share of the first that is answered by the second, largest first."""
    return sorted(_pairs(found, method, way), key=lambda pair: (-pair.share, -pair.queries, pair.asked, pair.answered))[
        :most
    ]


def _pairs(found: Breakdown, method: Method, way: str) -> Iterator[Pair]:
    for i, row in enumerate(method.confused[way].tolist()):
        asked = sum(row)
        for j, queries in enumerate(row):
            if i != j and queries:
                yield Pair(found.classes[i], found.classes[j], queries, 100 * queries / asked)


def _pair(pair: Pair) -> str:
    classes = f"{text.markdown(pair.asked)} → {text.markdown(pair.answered)}"
    return f"{classes}: {pair.queries:.3g} queries, {text.percent(pair.share, 1)} % of the class"


def _cell(value: str) -> str:
    return text.defused(text.plain(value))
