"""`benchmark search`: each method's own settings, looked for on validation with an equal budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petlbench.harness.cli import options as o
from petlbench.harness.cli.say import output, say_left_out

if TYPE_CHECKING:
    from rich.console import Console

    from petlbench.harness.search.run import Searched


def search(
    methods: o.Methods = None,
    experiment: o.File = None,
    dataset: o.Datasets = None,
    backbone: o.Backbones = None,
    preset: o.Preset = None,
    set_: o.Sets = None,
    plugin: o.Plugins = None,
    results: o.Results = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            "-n",
            metavar="N",
            help="Configurations per method, its preset's own included (default: 20, unless --time is given).",
            rich_help_panel=o.WHAT,
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option("--time", metavar="SPAN", help="Time per method: 90s, 30m, 2h, ...", rich_help_panel=o.WHAT),
    ] = None,
    searcher: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="`optuna` (TPE, default), `random` or `grid`.", rich_help_panel=o.HOW),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="`asha` (default) or `hyperband` stop poor trials early, `pbt` has them take over from good ones, `fifo` neither.",
            rich_help_panel=o.HOW,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="S",
            help="Of the searched trials and proposals (default: 1000); not to be a seed of the board.",
            rich_help_panel=o.WHAT,
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed before.", rich_help_panel=o.HOW)
    ] = False,
    then_run: Annotated[
        bool | None,
        typer.Option(
            "--then-run/--no-run",
            help="Then run what was found on the board's seeds (default: for all-methods).",
            rich_help_panel=o.HOW,
        ),
    ] = None,
    tracker: o.Trackers = None,
    jobs: o.Jobs = None,
    gpus_per_trial: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="GPUs of a trial: 1 or 0.5 (default: one, if any).", rich_help_panel=o.HOW),
    ] = None,
    address: o.Address = None,
    ship_data: o.ShipData = False,
) -> None:
    """Look for each method's best settings on validation, all methods with the same budget.

    The test split is never opened. Trials, tables, plots and best.yaml go to
    search/ in the results folder. What is finished is not repeated: the same
    command goes on with an interrupted search, a larger budget extends it.
    Of all-methods, the tuned board over the board's seeds follows. Ctrl-C or
    SIGTERM lets running trials end their epoch; a second one ends at once.
    Exit code 0: every study has a best configuration; 1: one has none; 2: the
    request is wrong; 130, 143: interrupted.

    Examples:
      benchmark search lora --trials 30
      benchmark search all-methods --trials 20
      benchmark search adapter lora -d ucm --set dataset.ucm.root=DIR -b ViT-B-32:openai --time 2h
      benchmark run all-methods --tuned
    """
    given = (("trials", trials), ("time", time), ("searcher", searcher), ("scheduler", scheduler), ("seed", seed))
    sets = [*(set_ or []), *(f"search.{key}={value}" for key, value in given if value is not None)]
    sets += o.machine_sets(jobs, gpus_per_trial, address, ship_data)
    asked = o.experiment_from(
        methods, experiment, dataset, backbone, None, preset, sets, plugin, results, trackers=tracker
    )

    from petlbench.harness.experiment import ExperimentError
    from petlbench.harness.trackers import check_trackers

    check_trackers(asked.trackers)
    if then_run is None:
        then_run = "all-methods" in asked.methods
    if then_run and asked.search.seed in asked.seeds:
        raise ExperimentError(
            f"the searched seed {asked.search.seed} is among the board's seeds {asked.seeds}; choose another with --seed, or "
            "leave the board for later with --no-run"
        )

    console = output()
    # Importing torch takes seconds: say so before silence.
    with console.status("planning"):
        from petlbench.harness.provenance import command_line
        from petlbench.harness.search.progress import SearchDisplay
        from petlbench.harness.search.question import ask
        from petlbench.harness.search.report import publish_study, tracking
        from petlbench.harness.search.run import search as run_search
        from petlbench.harness.search.study import FOLDER

        questions, refused = ask(asked, command_line())
    say_left_out(console, refused)
    if not questions:
        console.print("nothing to search: every combination was left out")
        raise typer.Exit(1)
    root = Path(asked.results).expanduser().absolute() / FOLDER
    done = run_search(
        questions,
        root,
        asked.resources,
        SearchDisplay(console, len(questions)),
        command=command_line(),
        retry_failed=retry_failed,
        callbacks=tracking(asked.trackers, root.parent),
        ended=publish_study,
    )
    empty = _summary(done, console)
    if len(done) < len(questions) or not all(one.complete for one in done):
        console.print("interrupted; the same command goes on where it stopped")
        number = next((one.signal for one in done if one.signal is not None), None)
        raise typer.Exit(1 if number is None else 128 + number)
    if empty:
        raise typer.Exit(1)
    if then_run:
        from petlbench.harness.cli.run import execute

        # Of this command's own studies: others of the same methods may lie beside them.
        studies = [str(one.study.folder) for one in done]
        if code := execute(asked.model_copy(update={"tuned": studies}), console):
            raise typer.Exit(code)


def _summary(done: list[Searched], console: Console) -> bool:
    """Print what was found; True where a study has no score at all."""
    from rich.table import Table
    from rich.text import Text

    from petlbench.harness.search.progress import shown

    table = Table(box=None, pad_edge=False)
    for name, side in (
        ("study", "left"),
        ("trials", "right"),
        ("pruned", "right"),
        ("failed", "right"),
        ("preset mR", "right"),
        ("best mR", "right"),
        ("pairs seen", "right"),
        ("seconds", "right"),
        ("best configuration", "left"),
    ):
        table.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    empty = []
    for one in done:
        study = one.study
        best = study.best()
        if best is None and one.complete:
            empty.append(study)
        first = study.trials[0].best_mR if study.trials and study.trials[0].status == "ok" else None
        cells = (
            study.about.question.label,
            str(len(study.trials)),
            str(study.count("pruned")),
            str(study.count("failed")),
            _percent(first),
            _percent(best.best_mR if best else None),
            f"{sum(trial.samples_seen for trial in study.trials):,}",
            f"{study.state.spent_s:,.0f}",
            shown(best.config) if best else "none",
        )
        table.add_row(*map(Text, cells))
    console.print(table)
    for one in done:
        console.print(f"wrote {one.study.folder}", markup=False, highlight=False, soft_wrap=True)
    for study in empty:
        error = next(
            (t.error.message for t in study.trials if t.error), "no trial reached its first epoch; give it more --time"
        )
        console.print(
            f"failed: {study.about.question.label}: no trial has a score: {error.splitlines()[0]}",
            markup=False,
            style="red",
            soft_wrap=True,
        )
    return bool(empty)


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{value:.2f}"
