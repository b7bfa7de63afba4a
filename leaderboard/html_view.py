"""What the template of the HTML board fills in: plain values only, so that escaping happens in one place, the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from petlbench.leaderboard import text
from petlbench.leaderboard.emphasis import Top, tops
from petlbench.leaderboard.explain import MARKS
from petlbench.leaderboard.html_columns import COLUMNS, GROUPS, INTERVAL, MR, Column
from petlbench.leaderboard.interval_bar import Axis, Bar
from petlbench.leaderboard.load import METRICS, Entry
from petlbench.leaderboard.markdown import marks
from petlbench.leaderboard.pairwise_text import explain_pairs, list_groups
from petlbench.leaderboard.row import Row
from petlbench.leaderboard.scoring import KINDS
from petlbench.leaderboard.table import Board, Table


class Cell(NamedTuple):
    """Text, what it sorts by (empty: missing), the deviation behind it, and ``best`` or ``second``."""

    text: str
    value: str
    sd: str | None
    place: str | None


class Link(NamedTuple):
    """A record: its seed, its name, where it lies (None: unknown), its mR."""

    seed: str
    name: str
    href: str | None
    mr: str


@dataclass(frozen=True)
class RowView:
    """One row of a table."""

    rank: int
    label: str
    title: str
    marks: list[tuple[str, str]]
    """Mark and meaning."""
    trained: int
    scoring: str
    mean: Cell
    bar: Bar
    interval: Cell
    cells: list[tuple[Column, Cell]]
    records: list[Link]


@dataclass(frozen=True)
class TableView:
    """One section of the page."""

    anchor: str
    title: str
    dataset: str
    backbone: str
    rule: str
    axis: Axis
    best: str
    """Place of the best mean on the axis."""
    rows: list[RowView]
    references: list[tuple[str, str, list[tuple[Column, str]]]]
    """Name, mR, and the cells of :data:`COLUMNS`."""
    facts: list[tuple[str, str]]
    warnings: list[str]
    """Facts that a reader must not miss."""
    notes: list[str]
    explained: str
    """What was tested between all pairs of rows; empty where nothing was."""
    groups: list[str]
    """Rows that cannot be told apart, a line per group."""
    other_rules: list[tuple[str, str, list[str]]]
    """Method, tie rule, recalls in the order of the metrics."""


class FailureView(NamedTuple):
    """A trial that is not ranked."""

    named: list[str]
    status: str
    reason: str
    record: Link


def views(board: Board, linked: Callable[[str], str | None]) -> list[TableView]:
    """Every table of a board; anchors are distinct.

    Args:
        board: Of :func:`petlbench.leaderboard.table.build_board`.
        linked: A record's name to where the page finds it, see :func:`below`.
    """
    anchors = text.slugs(table.title for table in board.tables)
    return [_table(table, f"table-{anchor}", linked) for table, anchor in zip(board.tables, anchors, strict=True)]


def failures(board: Board, linked: Callable[[str], str | None]) -> list[FailureView]:
    """Trials that failed or were stopped."""
    result = []
    for entry, reason in board.failures:
        spec = entry.record.spec
        named = [*(str(spec[part]["name"]) for part in ("method", "dataset", "backbone")), str(spec["seed"])]
        result.append(FailureView(named, entry.record.status, text.shorten(reason), _link(entry, linked)))
    return result


def below(folder: str | None) -> Callable[[str], str | None]:
    """Addresses of records relative to the page; a colon or a space in a name cannot change what an address means.

    Args:
        folder: The results folder as seen from the page, such as ``""`` or ``"../"``; None where it is unknown.
    """
    return lambda name: None if folder is None else folder + quote(name)


def _table(table: Table, anchor: str, linked: Callable[[str], str | None]) -> TableView:
    best = tops(table.rows)
    pairs = table.pairs
    axis = Axis.of(table.rows)
    warned = ("Toy",)
    return TableView(
        anchor=anchor,
        title=table.title,
        dataset=table.setting.dataset,
        backbone=table.backbone,
        rule=table.setting.rule,
        axis=axis,
        best=axis.x(table.rows[0].mean["mR"]),
        rows=[_row(row, axis, best, linked) for row in table.rows],
        references=[
            (
                name,
                text.percent(recalls.get("mR")),
                [(column, text.percent(recalls.get(column.metric)) if column.metric else "") for column in COLUMNS],
            )
            for name, recalls in table.references
        ],
        facts=[fact for fact in table.facts if fact[0] not in warned],
        warnings=[said for term, said in table.facts if term in warned],
        notes=table.notes,
        explained=explain_pairs(pairs) if pairs else "",
        groups=list_groups(pairs) if pairs else [],
        other_rules=[
            (row.label, rule, [text.percent(recalls[metric]) for metric in METRICS])
            for row in table.rows
            for rule, recalls in row.other_rules.items()
        ],
    )


def _row(row: Row, axis: Axis, best: dict[str, Top], linked: Callable[[str], str | None]) -> RowView:
    return RowView(
        rank=row.rank,
        label=row.label,
        title=row.title,
        marks=[(mark, MARKS[mark]) for mark in marks(row)],
        trained=row.trained,
        scoring=row.group.entries[0].record.metrics["test"].scoring,
        mean=_cell(MR, row, best),
        bar=Bar.of(row, axis),
        interval=_cell(INTERVAL, row, best),
        cells=[(column, _cell(column, row, best)) for column in COLUMNS],
        records=[_link(entry, linked) for entry in row.group.entries],
    )


def _cell(column: Column, row: Row, best: dict[str, Top]) -> Cell:
    value = column.value(row)
    key = "" if value is None else value if isinstance(value, str) else f"{value:.10g}"
    if column.metric is None:
        return Cell(column.shown(row), key, None, None)
    sd = row.sd[column.metric]
    place = best[column.metric].place(row.mean[column.metric])
    return Cell(column.shown(row), key, None if sd is None else text.percent(sd), place)


def _link(entry: Entry, linked: Callable[[str], str | None]) -> Link:
    test = entry.record.metrics.get("test")
    mr = text.percent(test.recalls.get("mR") if test else None)
    return Link(str(entry.record.spec["seed"]), entry.name, linked(entry.name), mr)


def headers() -> list[tuple[str, str, int]]:
    """Group key, its words and its number of columns, for the groups after the means."""
    counted = Counter(column.group for column in COLUMNS)
    return [(key, GROUPS[key], counted[key]) for key in GROUPS if counted[key]]


def options(tables: Sequence[TableView]) -> dict[str, list[tuple[str, str]]]:
    """Filter to its choices: value and words, sorted."""
    used = {row.scoring for table in tables for row in table.rows}
    return {
        "dataset": [(name, name) for name in sorted({table.dataset for table in tables})],
        "backbone": [(name, name) for name in sorted({table.backbone for table in tables})],
        "rule": [(name, name) for name in sorted({table.rule for table in tables})],
        "scoring": [(key, words) for key, words in KINDS.items() if key in used],
    }
