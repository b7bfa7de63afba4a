"""Options that `run` and `plan` share; each means the same as the key of that name in an experiment file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from petlbench.harness.experiment import Experiment

_WHAT, _HOW, _WHERE = "What to run", "How to run it", "Where"

Methods = Annotated[
    list[str] | None, typer.Argument(metavar="[all-methods | METHOD...]", help="Methods; all of them when left out.")
]
File = Annotated[
    Path | None,
    typer.Option("--experiment", "-e", metavar="FILE", help="Experiment file (YAML).", rich_help_panel=_WHAT),
]
Datasets = Annotated[
    list[str] | None,
    typer.Option("--dataset", "-d", help="Data set: name of a card or path of your own.", rich_help_panel=_WHAT),
]
Backbones = Annotated[
    list[str] | None,
    typer.Option("--backbone", "-b", help="Backbone: tiny-clip, an open_clip ARCH:TAG, ...", rich_help_panel=_WHAT),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seed", help="Seed; give it three times or more for a board.", rich_help_panel=_WHAT),
]
Preset = Annotated[
    str | None, typer.Option(help="`matched` (common protocol) or `paper` (published recipe).", rich_help_panel=_WHAT)
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any key of the experiment: method.lora.rank=16, train.epochs=5, dataset.ucm.root=DIR, ...",
        rich_help_panel=_HOW,
    ),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="A method file of your own.", rich_help_panel=_WHAT),
]
Results = Annotated[Path | None, typer.Option(help="Folder of records (default: results).", rich_help_panel=_WHERE)]
Force = Annotated[bool, typer.Option("--force", help="Run again what is already recorded.", rich_help_panel=_HOW)]


def experiment_from(
    methods: list[str] | None,
    file: Path | None,
    datasets: list[str] | None,
    backbones: list[str] | None,
    seeds: list[int] | None,
    preset: str | None,
    sets: list[str] | None,
    plugins: list[Path] | None,
    results: Path | None,
) -> Experiment:
    """The experiment that the options describe; the embedded one where neither file, data set nor backbone is given."""
    from petlbench.harness.experiment import EMBEDDED, load_experiment

    if file is None and not datasets and not backbones:
        file = EMBEDDED
    return load_experiment(
        file,
        sets or (),
        methods=methods or None,
        datasets=datasets or None,
        backbones=backbones or None,
        seeds=seeds or None,
        preset=preset,
        plugins=[str(p) for p in plugins] if plugins else None,
        results=None if results is None else str(results),
    )
