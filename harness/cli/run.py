"""`benchmark run`: train, evaluate, record and rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from petlbench.harness.cli import options as o
from petlbench.harness.cli.say import output, say_left_out, say_notes

if TYPE_CHECKING:
    from rich.console import Console

    from petlbench.harness.experiment import Experiment


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
    tuned: o.Tuned = False,
    tuned_from: o.TunedFrom = None,
    tracker: o.Trackers = None,
    jobs: o.Jobs = None,
    gpus_per_trial: o.GpusPerTrial = None,
    address: o.Address = None,
    ship_data: o.ShipData = False,
) -> None:
    """Train every method under one protocol, record each trial, and print the board.

    What already has a record is skipped, so the same command finishes an
    interrupted run. Ctrl-C or SIGTERM lets running trials end their epoch;
    a second one ends at once. Exit code 0: every trial has its record;
    1: some failed; 2: the request is wrong; 130, 143: interrupted. With no experiment file, data set or backbone given,
    everything runs on the embedded default: no data, no network needed.

    Examples:
      benchmark run all-methods
      benchmark run lora linear_probe --set method.lora.rank=16
      benchmark run -d rsicd --set dataset.rsicd.root=DIR -b ViT-B-32:openai
      benchmark run -e my_experiment.yaml --seed 0 --seed 1 --seed 2
      benchmark run all-methods --tuned
      benchmark run all-methods -b ViT-B-32:openai --gpus-per-trial auto
    """
    sets = [*(set_ or []), *o.machine_sets(jobs, gpus_per_trial, address, ship_data)]
    asked = o.experiment_from(
        methods, experiment, dataset, backbone, seed, preset, sets, plugin, results, tuned, tuned_from, tracker
    )

    if code := execute(asked, output(), force=force):
        raise typer.Exit(code)


def execute(asked: Experiment, console: Console, *, force: bool = False) -> int:
    """Run what an experiment asks for and publish the board.

    Returns:
        The exit code: 0 where every trial has its record; 1 where one failed or is missing; 128 + n after signal n, and then
        no board is published.
    """
    from petlbench.harness.trackers import check_trackers

    check_trackers(asked.trackers)
    # Importing torch takes seconds: say so before silence.
    with console.status("planning"):
        from petlbench.harness.plan import make_plan
        from petlbench.harness.provenance import command_line

        plan = make_plan(asked, force=force, command=command_line(), check_pictures=True)
    say_left_out(console, plan.refused)
    say_notes(console, plan.notes)
    if not plan.planned:
        console.print("nothing to run: every combination was left out")
        return 1
    todo = plan.to_run
    if skipped := len(plan.planned) - len(todo):
        console.print(f"{skipped} of {len(plan.planned)} trials are recorded already (--force runs them again)")
    folder = Path(asked.results).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)

    from petlbench.harness.leftovers import clear_finished
    from petlbench.harness.recorded import RECORDED

    clear_finished(p.trial for p in plan.planned if p.state == RECORDED)
    failed: list[tuple[str, str]] = []
    lost: list[str] = []
    interrupted = False
    if todo:
        from petlbench.harness.progress import make_display
        from petlbench.harness.schedule import run_trials

        outcome = run_trials(todo, asked.resources, make_display(console), asked.trackers)
        failed, lost, interrupted = outcome.failed, outcome.lost, outcome.interrupted
        if outcome.restarts:
            console.print(
                f"{outcome.restarts} restart{'s' * (outcome.restarts > 1)} of trials that lost process or node"
            )
        say_notes(console, outcome.notes)
        if outcome.signal is not None:
            console.print(
                "interrupted; the same command finishes the rest, `benchmark leaderboard` ranks what there is"
            )
            return 128 + outcome.signal

    from petlbench.harness.cli.leaderboard import publish

    problems = publish(folder, folder, console)
    for label, reason in failed:
        console.print(f"failed: {label}: {reason}", markup=False, style="red", soft_wrap=True)
    for label in lost:
        console.print(
            f"given up: {label}: its nodes were lost again and again; the same command runs it again",
            markup=False,
            style="red",
            soft_wrap=True,
        )
    if interrupted:
        console.print("interrupted; the same command finishes the rest")
    elif failed:
        console.print("failed trials run again with the same command")
    return 1 if failed or lost or interrupted or problems else 0
