"""Options that verbs share.

Those of `run`, `plan` and `search` mean the same as the key of that name in an experiment file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from petlbench.harness.experiment import Experiment
    from petlbench.harness.retrial import Places

WHAT, HOW, WHERE = "What to run", "How to run it", "Where"
"""Panels of the help page."""

Methods = Annotated[
    list[str] | None,
    typer.Argument(metavar="METHOD", help="Methods by name; `all-methods`, or none, means all of them."),
]
File = Annotated[
    Path | None,
    typer.Option("--experiment", "-e", metavar="FILE", help="Experiment file (YAML).", rich_help_panel=WHAT),
]
Datasets = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset",
        "-d",
        metavar="NAME",
        help="Data set (repeatable): a card's name, the path of your own card or of a folder, or hf:OWNER/NAME.",
        rich_help_panel=WHAT,
    ),
]
Backbones = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone",
        "-b",
        metavar="NAME",
        help="Backbone (repeatable): tiny-clip, an open_clip ARCH:TAG, ...",
        rich_help_panel=WHAT,
    ),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seed", metavar="N", help="Seed (repeatable); a board wants three or more.", rich_help_panel=WHAT),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="`matched` (common protocol), `paper` (published recipe), or a method's own, such as `official`.",
        rich_help_panel=WHAT,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any key of an experiment file (repeatable): method.lora.rank=16, train.epochs=5, dataset.ucm.root=DIR, ...",
        rich_help_panel=HOW,
    ),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="A method file of your own (repeatable).", rich_help_panel=WHAT),
]
Results = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of records (default: results).", rich_help_panel=WHERE)
]
Tuned = Annotated[
    bool,
    typer.Option(
        "--tuned",
        help="Take the configurations that `benchmark search` found (in search/ of the results folder).",
        rich_help_panel=WHAT,
    ),
]
TunedFrom = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR", help="Likewise, from this folder of studies, or one study (repeatable).", rich_help_panel=WHAT
    ),
]
Trackers = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker",
        metavar="NAME",
        help="Send curves to tensorboard, wandb or mlflow (repeatable; default: nowhere).",
        rich_help_panel=HOW,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", metavar="N", help="Trials at a time (default: as many as fit).", rich_help_panel=HOW),
]
GpusPerTrial = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="GPUs of a trial: 1, 2, 0.5, or `auto`, which measures each method (default: one, if any).",
        rich_help_panel=HOW,
    ),
]
ShipData = Annotated[
    bool,
    typer.Option("--ship-data", help="Send data and weights to nodes that do not see them.", rich_help_panel=HOW),
]
Address = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="A running Ray cluster (default: none).", rich_help_panel=HOW),
]
Force = Annotated[bool, typer.Option("--force", help="Run again what is already recorded.", rich_help_panel=HOW)]

Folder = Annotated[Path, typer.Option(metavar="DIR", help="Folder of records.")]
Card = Annotated[
    str | None,
    typer.Option("--dataset", "-d", metavar="NAME", help="Data set of the records: a card's name or path."),
]
FilePlaces = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Places of the records' files, such as dataset.ucm.root=DIR."),
]
MethodFiles = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", help="A method file of your own (repeatable).")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


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
    tuned: bool = False,
    tuned_from: list[Path] | None = None,
    trackers: list[str] | None = None,
) -> Experiment:
    """The experiment that the options describe; the embedded one where neither file, data set nor backbone is given."""
    from petlbench.harness.experiment import EMBEDDED, load_experiment

    if file is None and not datasets and not backbones:
        file = EMBEDDED
    experiment = load_experiment(
        file,
        sets or (),
        methods=methods or None,
        datasets=datasets or None,
        backbones=backbones or None,
        seeds=seeds or None,
        preset=preset,
        plugins=[str(p) for p in plugins] if plugins else None,
        results=None if results is None else str(results),
        tuned=[str(folder) for folder in tuned_from] if tuned_from else None,
        trackers=trackers or None,
    )
    if tuned and not tuned_from:
        experiment.tuned = str(Path(experiment.results) / "search")
    return experiment


def places_from(sets: list[str] | None, card: str | None, plugins: list[Path] | None) -> Places:
    """Where the options of a verb that reads records say that things lie."""
    from petlbench.harness.retrial import Places

    return Places.from_sets(sets or [], card, tuple(str(p) for p in plugins or ()))


def machine_sets(
    jobs: int | None, gpus_per_trial: str | None, address: str | None, ship_data: bool = False
) -> list[str]:
    """The ``--set`` assignments that options about the machine stand for."""
    given = (
        ("max_concurrent", jobs),
        ("gpus_per_trial", gpus_per_trial),
        ("address", address),
        ("ship_data", ship_data or None),
    )
    return [f"resources.{key}={value}" for key, value in given if value is not None]
