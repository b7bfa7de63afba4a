"""`benchmark data`: prepare, examine and export data sets."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from petlbench.harness.cli.data_options import Name, Root, Sets, advance, bars, options, settled
from petlbench.harness.cli.doctor import doctor
from petlbench.harness.cli.say import output

data = typer.Typer(help="Prepare, examine and export data sets.", no_args_is_help=True)
data.command("doctor")(doctor)


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

    given = options(set_)
    splits = load(settled(dataset, root, given), root, **given)
    with bars(Console()) as bar:
        for name, split in splits.items():
            if not split.images:  # a set may be cut without one of its splits
                bar.print(f"{name}: no pictures", highlight=False)
                continue
            task = bar.add_task(name, total=len(split.images))
            made = prepare_split(split, resolution, progress=partial(advance, bar, task))
            bar.update(task, completed=len(split.images))
            was = "" if made.fresh else " (was there)"
            bar.print(
                f"{name}: {len(made):,} pictures at {resolution} px in {made.folder}{was}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


class ExportFormat(StrEnum):
    """Formats that `benchmark data export` writes."""

    vilt_arrow = "vilt-arrow"
    karpathy = "karpathy"
    csv = "csv"
    pir_json = "pir-json"


class ExportPictures(StrEnum):
    """What `benchmark data export` does with pictures, where files do not hold them."""

    auto = "auto"
    refer = "refer"
    copy = "copy"


@data.command("export")
def export(
    dataset: Name,
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder to write into; made if need be.")],
    format_: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="vilt-arrow: the .arrow files of ViLT, IEFT and CUP, pictures inside. karpathy: one JSON. csv: one table. "
            "pir-json: the train/val/test JSON of PIR and HarMA.",
        ),
    ] = ExportFormat.vilt_arrow,
    stem: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What the file names begin with (default: NAME_caption_karpathy, dataset_NAME or NAME).",
        ),
    ] = None,
    pictures: Annotated[
        ExportPictures,
        typer.Option(
            help="Leave picture files where they are (refer), or write them too (copy); auto does what it can."
        ),
    ] = ExportPictures.auto,
    root: Root = None,
    set_: Sets = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """Write a data set in another format, with a card that reads it back.

    Splits are written as they are read, with their order, so that their hashes stay. The files appear when all of them are
    complete, or not at all.
    """
    from petlbench.datasets.layout import data_folders
    from petlbench.datasets.load import load
    from petlbench.datasets.writers.common import keep_out

    given = options(set_)
    card = settled(dataset, root, given)
    splits = load(card, root, **given)
    meant = card.model_copy(update={"options": {**card.options, **given}})
    keep_out(Path(out).expanduser().absolute(), data_folders(meant, root), splits)
    console = output()
    with bars(console) as bar:
        tasks = {name: bar.add_task(name, total=len(split.images)) for name, split in splits.items()}

        def progress(name: str, done: int, total: int) -> None:
            advance(bar, tasks[name], done, total)

        if format_ is ExportFormat.vilt_arrow:
            from petlbench.datasets.writers.vilt_arrow import write_vilt_arrow

            written = write_vilt_arrow(splits, out, card, stem, force=force, progress=progress)
        else:
            from petlbench.datasets.writers.annotations import write_annotations

            written = write_annotations(
                splits, out, card, format_.value, stem, pictures=pictures.value, force=force, progress=progress
            )
    *files, made = written
    for name, split in splits.items():
        if split.images:
            path = next((file for file in files if file.stem.endswith(f"_{name}")), files[0])
            typer.echo(f"{name}: {len(split.images):,} pictures, {len(split.captions):,} captions in {path}")
    typer.echo(f"Read them by: -d {made}")
