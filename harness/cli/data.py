"""`benchmark data`: prepare and examine data sets."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

data = typer.Typer(help="Prepare and examine data sets.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of a card, or path of your own.")]
Root = Annotated[str | None, typer.Option(help="Folder that holds the set's files.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Option of the reader, e.g. blank=drop.")
]


def _options(sets: list[str] | None) -> dict[str, object]:
    import yaml

    from petlbench.harness.experiment import ExperimentError

    found = {}
    for assignment in sets or ():
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ExperimentError(f"--set {assignment}: expected KEY=VALUE, as in blank=drop")
        found[key] = yaml.safe_load(text)
    return found


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


@data.command("prepare")
def prepare(
    dataset: Name,
    root: Root = None,
    resolution: Annotated[int, typer.Option(help="Side of the prepared pictures, pixels.")] = 224,
    set_: Sets = None,
) -> None:
    """Decode every picture once into the shared cache (trials do it by themselves when needed)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from petlbench.datasets.cache import prepare as prepare_split
    from petlbench.datasets.load import load

    splits = load(dataset, root, **_options(set_))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        for name, split in splits.items():
            task = bar.add_task(name, total=len(split.images))
            made = prepare_split(split, resolution, progress=partial(_advance, bar, task))
            bar.update(task, completed=len(split.images))
            bar.print(
                f"{name}: {len(made)} pictures at {resolution} px in {made.folder}"
                + ("" if made.fresh else " (was there)")
            )


@data.command("doctor")
def doctor(
    dataset: Name,
    root: Root = None,
    set_: Sets = None,
    pixels: Annotated[bool, typer.Option(help="Decode every picture (slower, finds unreadable ones).")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Examine a data set: counts, unreadable pictures, duplicates, overlap, ceiling, class-only oracle.

    Exit code 1 when an error was found.
    """
    from rich.console import Console

    from petlbench.datasets.doctor import examine, render
    from petlbench.datasets.load import load
    from petlbench.datasets.registry import load_card

    card = load_card(dataset)
    report = examine(load(card, root, **_options(set_)), card, check_pixels=pixels)
    if as_json:
        typer.echo(report.to_json())
    else:
        render(report, Console())
    if not report.ok:
        raise typer.Exit(1)
