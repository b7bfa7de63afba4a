"""`benchmark data`: prepare, examine and export data sets."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

data = typer.Typer(help="Prepare, examine and export data sets.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A card's name, or the path of your own card (.yaml).")]
Root = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder of the set's files (default: NAME inside the folder PETLBENCH_DATA)."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Option of the reader (repeatable), e.g. blank=drop."),
]


def _options(sets: list[str] | None) -> dict[str, Any]:
    from petlbench.harness.experiment import parse_assignment

    return dict(parse_assignment(assignment, "blank=drop") for assignment in sets or ())


def _bars(console: Console) -> Progress:
    """A progress bar that leaves no trace, and none at all where there is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


@data.command("prepare")
def prepare(
    dataset: Name,
    root: Root = None,
    resolution: Annotated[int, typer.Option(min=1, metavar="N", help="Side of the prepared pictures, pixels.")] = 224,
    set_: Sets = None,
) -> None:
    """Decode every picture once into the shared cache (trials do it by themselves when needed).

    The cache is the folder PETLBENCH_CACHE, else the user's cache folder.
    """
    from rich.console import Console

    from petlbench.datasets.cache import prepare as prepare_split
    from petlbench.datasets.load import load

    splits = load(dataset, root, **_options(set_))
    with _bars(Console()) as bar:
        for name, split in splits.items():
            if not split.images:  # a set may be cut without one of its splits
                bar.print(f"{name}: no pictures", highlight=False)
                continue
            task = bar.add_task(name, total=len(split.images))
            made = prepare_split(split, resolution, progress=partial(_advance, bar, task))
            bar.update(task, completed=len(split.images))
            was = "" if made.fresh else " (was there)"
            bar.print(
                f"{name}: {len(made):,} pictures at {resolution} px in {made.folder}{was}",
                markup=False,
                highlight=False,
                soft_wrap=True,
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

    from petlbench.datasets.doctor import examine, lenient, render
    from petlbench.datasets.load import load
    from petlbench.datasets.registry import load_card, options_model
    from petlbench.datasets.validation import checked

    card, given = load_card(dataset), _options(set_)
    # Findings depend on what trials will do with blank captions; for the examination itself they are read as they are.
    meant = card.model_copy(update={"options": {**card.options, **given}})
    checked(options_model(card.format), meant.options, f"options of data set {card.name}")
    splits = load(card, root, **{**given, **lenient(card)})
    with _bars(Console(stderr=True)) as bar:
        total = sum(len(split.images) for split in splits.values())
        task = bar.add_task("pictures", total=total, visible=pixels)
        report = examine(splits, meant, check_pixels=pixels, progress=partial(_advance, bar, task))
    if as_json:
        typer.echo(report.to_json())
    else:
        render(report, Console())
    if not report.ok:
        raise typer.Exit(1)


class ExportFormat(StrEnum):
    """Formats that `benchmark data export` writes."""

    vilt_arrow = "vilt-arrow"


@data.command("export")
def export(
    dataset: Name,
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder to write into; made if need be.")],
    format_: Annotated[
        ExportFormat, typer.Option("--format", help="vilt-arrow: the .arrow files of ViLT, IEFT and CUP.")
    ] = ExportFormat.vilt_arrow,
    stem: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the file names begin with (default: NAME_caption_karpathy)."),
    ] = None,
    root: Root = None,
    set_: Sets = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """Write a data set in another format, with a card that reads it back.

    The files appear when all of them are complete, or not at all.
    """
    from rich.console import Console

    from petlbench.datasets.load import load
    from petlbench.datasets.registry import load_card
    from petlbench.datasets.writers.vilt_arrow import write_vilt_arrow

    card = load_card(dataset)
    splits = load(card, root, **_options(set_))
    console = Console()
    with _bars(console) as bar:
        tasks = {name: bar.add_task(name, total=len(split.images)) for name, split in splits.items()}

        def progress(name: str, done: int, total: int) -> None:
            _advance(bar, tasks[name], done, total)

        written = write_vilt_arrow(splits, out, card, stem, force=force, progress=progress)
    for split, path in zip(splits.values(), written, strict=False):
        typer.echo(f"{split.name}: {len(split.images):,} pictures, {len(split.captions):,} captions in {path}")
    made = written[-1]
    typer.echo(f"Read them by: -d {made} --set dataset.{load_card(made).name}.root={made.parent}")
