"""`benchmark compare-published`: our records beside the numbers of papers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petlbench.harness.cli import options as o
from petlbench.harness.cli.records import complain, fitting, need_folder
from petlbench.harness.cli.say import output

if TYPE_CHECKING:
    from rich.console import Console

    from petlbench.leaderboard.compare import Comparison
    from petlbench.leaderboard.published import PublishedRow


def compare_published(
    methods: Annotated[
        list[str] | None,
        typer.Argument(metavar="METHOD", help="Methods by name; none means all that have published rows."),
    ] = None,
    datasets: Annotated[
        list[str] | None, typer.Option("--dataset", "-d", metavar="NAME", help="Data set (repeatable).")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, metavar="X", help="Points of mR within which two numbers count as alike.")
    ] = 2.0,
    results: o.Folder = Path("results"),
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE", help="A method file of your own; its published rows join."),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Print our recalls beside published ones, and what differs in protocol.

    A difference is shown only where test split, pretrained weights,
    activation and resolution are stated and the same, and nothing but that
    data set was trained on; otherwise the output says what makes the two
    incomparable. Other cuts of train are told beside it. Unreadable records
    are reported, left out, and make the command fail.
    """
    from petlbench.leaderboard.compare import compare, to_dict
    from petlbench.leaderboard.group import group_entries
    from petlbench.leaderboard.load import load_records
    from petlbench.leaderboard.published import load_published

    rows = load_published()
    wanted, rows = _resolve(methods, plugin, rows)
    chosen = _datasets(datasets, rows)
    need_folder(results)
    loaded = load_records(results)
    found = compare(rows, group_entries(loaded.entries), methods=wanted, datasets=chosen, tolerance=tolerance)
    if as_json:
        import json

        typer.echo(json.dumps([to_dict(one) for one in found], indent=1, ensure_ascii=False))
    else:
        _render(found, output(), everything=wanted is not None)
    if complain(loaded.problems):
        raise typer.Exit(2)


def _resolve(
    methods: list[str] | None, plugin: list[Path] | None, rows: list[PublishedRow]
) -> tuple[list[str] | None, list[PublishedRow]]:
    """The methods asked for, None for all, and the rows with those that methods of others declare."""
    from petlbench.leaderboard.published import PublishedError, declared
    from petlbench.methods import registry

    sources = registry.discover(plugin or ())
    wanted = registry.resolve(methods, sources) if methods else None
    for name, source in sources.items():
        if not source.builtin and (wanted is None or name in wanted):
            method = registry.load(source)
            rows = [*rows, *declared(name, method.title, method.published)]
    have = {row.row.ours for row in rows if row.row.ours}
    if wanted is not None and not any(name in have for name in wanted):
        raise PublishedError(
            f"no published row of {', '.join(wanted)} is known; there are rows of {', '.join(sorted(have))}"
        )
    return wanted, rows


def _datasets(datasets: list[str] | None, rows: Sequence[PublishedRow]) -> list[str] | None:
    from petlbench.leaderboard.published import PublishedError, base_name

    if not datasets:
        return None
    known = sorted({row.dataset for row in rows})
    chosen = []
    for name in datasets:
        base = base_name(name, known)
        if base is None:
            raise PublishedError(f"--dataset {name}: no published rows on it; there are rows on {', '.join(known)}")
        chosen.append(base)
    return chosen


def _render(found: Sequence[Comparison], console: Console, everything: bool) -> None:
    """One block per method and data set; those that nothing of ours meets are only listed, unless asked for by name."""
    from petlbench.leaderboard.load import METRICS
    from petlbench.leaderboard.text import plain

    absent: dict[str, list[str]] = {}
    shown: list[PublishedRow] = []
    for (method, dataset), members in groupby(found, key=lambda one: (one.published.row.ours, one.published.dataset)):
        block = list(members)
        if not everything and all(one.ours is None for one in block):
            absent.setdefault(str(method), []).append(dataset)
            continue
        console.print(f"{method} on {dataset}", style="bold", markup=False, highlight=False)
        _block(block, console)
        shown += [one.published for one in block]
    _sources(shown, console)
    if absent:
        listed = "; ".join(f"{method} ({', '.join(datasets)})" for method, datasets in absent.items())
        console.print(
            f"Published, but without a finished record in this folder: {plain(listed)}.", markup=False, highlight=False
        )
    if not shown and not absent:
        console.print("No published rows of these methods on these data sets.")
    if shown and len(fitting(console)) < len(METRICS):
        console.print("R@5 and R@10 have no room here; they are shown from 120 columns on, and by --json.", style="dim")


def _block(block: Sequence[Comparison], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from petlbench.leaderboard import text

    theirs = list(dict.fromkeys(one.published for one in block))
    ours = {one.ours.group.key: one.ours for one in block if one.ours is not None}
    letters = {row: _letter(place) for place, row in enumerate(theirs)}
    numbers = {key: str(place) for place, key in enumerate(ours, start=1)}
    shown = fitting(console)
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column("", no_wrap=True)
    grid.add_column("", overflow="fold", min_width=24)
    for name in (*map(text.metric, shown), "seeds", "trained"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in theirs:
        values = {**(row.recalls or {}), "mR": row.printed}
        cells = [text.spread(row.printed, row.row.mR_sd) if m == "mR" else text.percent(values.get(m)) for m in shown]
        on = f" on {row.row.backbone}" if row.row.backbone else ""
        name = f"theirs: {row.row.method}{on}, {row.where}" + (", about" if row.row.about else "")
        grid.add_row(letters[row], Text(text.plain(name)), *cells, _count(row.seeds), row.size or text.NOTHING)
    for key, one in ours.items():
        name = f"ours: {one.label}, {one.backbone}"
        cells = [text.spread(one.mean[m], one.sd[m]) if m == "mR" else text.percent(one.mean[m]) for m in shown]
        grid.add_row(numbers[key], Text(text.plain(name)), *cells, str(len(one.group.entries)), text.count(one.trained))
    for pair in block:
        if pair.ours is not None and (difference := pair.difference) is not None:
            cells = [f"{difference[m]:+.2f}" if m in difference else text.NOTHING for m in shown]
            names = f"{numbers[pair.ours.group.key]} - {letters[pair.published]}"
            grid.add_row(names, Text("difference, points"), *cells, "", "", style="green" if pair.within else "red")
    console.print(grid)
    for pair in block:
        if pair.ours is not None:
            names = f"{numbers[pair.ours.group.key]} - {letters[pair.published]}"
            said = f"{names}: {pair.verdict}"
            console.print(Text(text.plain(said)), style="" if pair.comparable else "yellow")
            for gap in pair.gaps:
                console.print(Text(f"  {'!' if gap.blocks else '-'} {text.plain(gap.line)}"))
    said_of: dict[str, list[str]] = {}
    for row in theirs:
        for note in _notes(row):
            said_of.setdefault(note, []).append(letters[row])
    for note, rows in said_of.items():
        console.print(Text(f"{', '.join(rows)}: {text.plain(note)}"), style="dim")
    console.print()


def _notes(row: PublishedRow) -> list[str]:
    from petlbench.leaderboard.protocol_gaps import chosen

    notes = [row.row.note] if row.row.note else []
    if row.misprinted and row.mean is not None:
        notes.append(f"the table prints mR {row.row.mR}, but its six recalls give {row.mean:.2f}, which is used here")
    if row.selection != "none":
        notes.append(f"choice of the epoch: {'. '.join(filter(None, [chosen(row), row.selection_note]))}")
    return notes


def _sources(rows: Sequence[PublishedRow], console: Console) -> None:
    """What a reader should know of each source, once."""
    from rich.text import Text

    from petlbench.leaderboard.text import plain

    for row in {row.source: row for row in rows if row.read_in}.values():
        console.print(Text(plain(f"{row.source}: {row.paper}{f', {row.url}' if row.url else ''}")), style="bold")
        for note in (f"read in: {row.read_in}", *row.source_notes):
            console.print(Text(f"  - {plain(note)}"))


def _count(value: int | None) -> str:
    return "?" if value is None else str(value)


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"{_letter(place // 26 - 1)}{_letter(place % 26)}"
