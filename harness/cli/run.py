"""`benchmark run`: train, evaluate, record and rank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petlbench.harness.cli import options as o


def run(
    methods: o.Methods = None,
    experiment: o.File = None,
    dataset: o.Datasets = None,
    backbone: o.Backbones = None,
    seed: o.Seeds = None,
    preset: o.Preset = None,
    set_: o.Sets = None,
    plugin: o.Plugins = None,
    results: o.Results = None,
    force: o.Force = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", metavar="N", help="Trials at a time (default: as many as fit).", rich_help_panel=o.HOW
        ),
    ] = None,
    gpus_per_trial: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="GPUs of a trial, e.g. 0.5 (default: one, if any).", rich_help_panel=o.HOW),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A running Ray cluster (default: none).", rich_help_panel=o.HOW),
    ] = None,
) -> None:
    """Train every method under one protocol, record each trial, and print the board.

    What already has a record is skipped, so the same command finishes an
    interrupted run. With no experiment file, data set or backbone given,
    everything runs on the embedded default: no data, no network needed.

    Examples:
      benchmark run all-methods
      benchmark run lora linear_probe --set method.lora.rank=16
      benchmark run -d rsicd --set dataset.rsicd.root=DIR -b ViT-B-32:openai
      benchmark run -e my_experiment.yaml --seed 0 --seed 1 --seed 2
    """
    sets = list(set_ or [])
    for key, value in (("max_concurrent", jobs), ("gpus_per_trial", gpus_per_trial), ("address", address)):
        if value is not None:
            sets.append(f"resources.{key}={value}")
    asked = o.experiment_from(methods, experiment, dataset, backbone, seed, preset, sets, plugin, results)

    from rich.console import Console

    console = Console()
    # Importing torch takes seconds: say so before silence.
    with console.status("planning"):
        from petlbench.harness.plan import make_plan
        from petlbench.harness.provenance import command_line

        plan = make_plan(asked, force=force, command=command_line(), check_pictures=True)
    for label, reason in plan.refused:
        console.print(f"left out: {label}: {reason}", markup=False, soft_wrap=True)
    if not plan.planned:
        console.print("nothing to run: every combination was left out")
        raise typer.Exit(1)
    todo = plan.to_run
    if skipped := len(plan.planned) - len(todo):
        console.print(f"{skipped} of {len(plan.planned)} trials are recorded already (--force runs them again)")
    folder = Path(asked.results).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)

    failed: list[tuple[str, str]] = []
    interrupted = False
    if todo:
        from petlbench.harness.progress import make_display
        from petlbench.harness.schedule import run_trials

        outcome = run_trials(todo, asked.resources, make_display(console))
        failed, interrupted = outcome.failed, outcome.interrupted

    from petlbench.harness.cli.leaderboard import publish

    problems = publish(folder, folder, console)
    for label, reason in failed:
        console.print(f"failed: {label}: {reason}", markup=False, style="red", soft_wrap=True)
    if interrupted:
        console.print("interrupted; the same command finishes the rest")
    elif failed:
        console.print("failed trials run again with the same command")
    if failed or interrupted or problems:
        raise typer.Exit(1)
