"""`benchmark gallery`: what one or two methods answer to chosen queries, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from petlbench.harness.cli import options as o

if TYPE_CHECKING:
    from petlbench.harness.gallery_choose import Choice

_COUNT = 8


def gallery(
    records: Annotated[
        list[Path], typer.Argument(metavar="RECORD [RECORD]", help="One record, or two of the same test split.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where gallery.html and gallery.png are written.", show_default=False)
    ],
    query: Annotated[
        list[int] | None,
        typer.Option("--query", metavar="N", help="A query by its place in the split, from 0 (repeatable)."),
    ] = None,
    most_different: Annotated[
        int | None,
        typer.Option(
            "--most-different", metavar="K", help="Queries on which two methods differ most (default with two)."
        ),
    ] = None,
    failures: Annotated[
        int | None, typer.Option("--failures", metavar="K", help="Queries that are ranked worst (default with one).")
    ] = None,
    random: Annotated[int | None, typer.Option("--random", metavar="K", help="Queries drawn at random.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="S", help="With --random: draws the queries (default: 0).")
    ] = None,
    direction: Annotated[
        Literal["i2t", "t2i", "both"], typer.Option(help="Ask with pictures, captions or both.")
    ] = "both",
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Answers shown per query.")] = 5,
    dataset: o.Card = None,
    set_: o.FilePlaces = None,
    plugin: o.MethodFiles = None,
) -> None:
    """Show the first pictures or captions that one or two methods find, with the right answers framed.

    Numbers K are per direction. The first ten answers of each query are stored
    with a record's ranks; for more, and for records from before they were
    stored, the model is built again from its stored tensors.

    Examples:
      benchmark gallery RECORD_A RECORD_B --out gallery --most-different 8
      benchmark gallery RECORD --out gallery --failures 6 --direction t2i
      benchmark gallery RECORD_A RECORD_B --out gallery --direction i2t --query 17 --query 40
    """
    if len(records) > 2:
        raise typer.BadParameter(f"give one or two records, not {len(records)}", param_hint="RECORD [RECORD]")
    choice = _choice(len(records), query, most_different, failures, random, seed)
    if choice.rule == "query" and direction == "both":
        raise typer.BadParameter(
            "numbers count pictures or captions; give --direction i2t or t2i", param_hint="--query"
        )

    from petlbench.harness.gallery import make_gallery
    from petlbench.harness.gallery_choose import WAYS
    from petlbench.harness.gallery_data import tell_each
    from petlbench.harness.json_files import write_atomically
    from petlbench.leaderboard.gallery_html import render_gallery
    from petlbench.leaderboard.gallery_png import draw_gallery

    told = tell_each([path.expanduser() for path in records], o.places_from(set_, dataset, plugin), top)
    made = make_gallery(told, choice, WAYS if direction == "both" else (direction,), top)
    page, pictures = render_gallery(made).encode(), draw_gallery(made)
    names = [
        "gallery.html",
        *(f"gallery{f'-{number}' if number > 1 else ''}.png" for number in range(1, len(pictures) + 1)),
    ]
    out = out.expanduser()
    for name, content in zip(names, (page, *pictures), strict=True):
        write_atomically(out / name, content)
        typer.echo(f"wrote {out / name}")
    # Pictures of an earlier, longer gallery are not of this page.
    number = len(pictures) + 1
    while (older := out / f"gallery-{number}.png").is_file():
        older.unlink()
        typer.echo(f"removed {older}, of an earlier gallery")
        number += 1
    for one in told:
        if one.rebuilt:
            typer.echo(f"{one.path}: its ranks hold no {top} first answers, so the model was built again")


def _choice(
    records: int,
    query: list[int] | None,
    most_different: int | None,
    failures: int | None,
    random: int | None,
    seed: int | None,
) -> Choice:
    from petlbench.harness.gallery_choose import Choice

    counts = {"most_different": most_different, "failures": failures, "random": random}
    given = [name for name, value in counts.items() if value is not None] + (["query"] if query else [])
    if len(given) > 1:
        listed = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise typer.BadParameter(
            f"{listed} are different choices; give one of them", param_hint=f"--{given[0].replace('_', '-')}"
        )
    if seed is not None and random is None:
        raise typer.BadParameter("goes with --random", param_hint="--seed")
    if query:
        return Choice("query", tuple(query))
    if random is not None:
        return Choice("random", count=random, seed=seed or 0)
    if failures is not None:
        return Choice("failures", count=failures)
    if most_different is not None and records == 1:
        raise typer.BadParameter("compares two methods; give two records", param_hint="--most-different")
    if most_different is not None or records == 2:
        return Choice("most_different", count=_COUNT if most_different is None else most_different)
    return Choice("failures", count=_COUNT)
