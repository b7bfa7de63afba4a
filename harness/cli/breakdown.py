"""`benchmark breakdown`: recall per scene class, per length of captions, per number of duplicates; confusion of classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from petlbench.harness.cli import options as o
from petlbench.harness.cli.say import output

if TYPE_CHECKING:
    from petlbench.harness.breakdown import Breakdown

_SHOWN = ("i2t_r1", "i2t_r10", "t2i_r1", "t2i_r10", "mR")
_NARROW = ("i2t_r1", "t2i_r1", "mR")
_WIDE = 110
"""Terminals narrower than this get R@1 and mR only."""


def breakdown(
    records: Annotated[list[Path], typer.Argument(metavar="RECORD...", help="Records of one test split.")],
    by: Annotated[
        Literal["class", "length", "duplicates"] | None,
        typer.Option(help="What queries are grouped by (default: class, or length where the set has no classes)."),
    ] = None,
    rule: Annotated[
        Literal["index", "optimistic", "pessimistic", "duplicate_aware"], typer.Option(help="Tie rule.")
    ] = "index",
    confusion: Annotated[
        bool, typer.Option("--confusion", help="Also count the class of the first answer by the class of the query.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Draw the confusions into this folder, as SVG and PNG (counts them too)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print as CSV.")] = False,
    as_md: Annotated[bool, typer.Option("--md", help="Print as Markdown.")] = False,
    dataset: o.Card = None,
    set_: o.FilePlaces = None,
    plugin: o.MethodFiles = None,
) -> None:
    """Say where methods are strong and weak, from the ranks beside their records. Nothing is trained.

    Records that differ in the seed only are averaged. Every recall has a 95 %
    Wilson interval; small groups have wide ones.

    Examples:
      benchmark breakdown results/ucm/lora/*.json results/ucm/full_finetune/*.json
      benchmark breakdown results/ucm/lora/*.json --by duplicates --md
      benchmark breakdown RECORD --confusion --json
      benchmark breakdown RECORD --plot DIR
    """
    if as_json + as_csv + as_md > 1:
        raise typer.BadParameter("give one of --json, --csv and --md", param_hint="--json")

    from petlbench.harness.breakdown import make_breakdown
    from petlbench.leaderboard import breakdown_text as writers

    places = o.places_from(set_, dataset, plugin)
    paths = list(dict.fromkeys(path.expanduser() for path in records))
    found = make_breakdown(paths, places, by, rule, confused=confusion or plot is not None)
    if plot is not None:
        from petlbench.leaderboard.plots.confusion import write_confusions

        for path in write_confusions(found, plot.expanduser()):
            typer.echo(f"wrote {path}", err=True)
    if as_csv:
        typer.echo(writers.render_csv(found, confusion), nl=False)
    elif as_json or as_md:
        typer.echo((writers.render_json if as_json else writers.render_markdown)(found), nl=False)
    else:
        _show(found)


def _show(found: Breakdown) -> None:
    from rich.table import Table
    from rich.text import Text

    from petlbench.leaderboard import text
    from petlbench.leaderboard.breakdown_text import DIRECTIONS, INTERVALS, bounds, named, pairs

    console = output()
    shown = _SHOWN if console.width >= _WIDE else _NARROW

    def say(line: str, style: str | None = None) -> None:
        console.print(text.plain(line), style=style, markup=False, highlight=False, soft_wrap=True)

    say(f"{found.dataset}, by {found.by}, tie rule {found.rule}. {found.said}")
    for method in found.methods:
        console.print()
        say(named(method), "bold")
        table = Table(box=None, pad_edge=False)
        for name in ("group", "pictures", "captions", *map(text.metric, shown), "95 %"):
            table.add_column(name, justify="left" if name == "group" else "right", no_wrap=name != "group")
        for part in method.parts:
            if part.name == "all":
                table.add_section()
            cells = [text.percent(part.cells[m].value if m in part.cells else None) for m in shown]
            row = [text.plain(part.name), f"{part.images:,}", f"{part.captions:,}", *cells, bounds(part, "mR")]
            table.add_row(*map(Text, row), style="bold" if part.name == "all" else None)
        console.print(table)
        for way, said in DIRECTIONS.items():
            if way in method.confused:
                say(f"most confused, {said} (class of the query, class of the first answer):")
                for pair in pairs(found, method, way):
                    say(
                        f"  {pair.asked} -> {pair.answered}: {pair.queries:.3g} queries, {pair.share:.1f} % of the class"
                    )
        for note in method.notes:
            say(f"note: {note}")
    console.print()
    say(INTERVALS)
