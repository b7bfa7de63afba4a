"""`benchmark plan`: what `run` would do, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petlbench.harness.cli import options as o
from petlbench.harness.cli.portions import Portions, portions_of
from petlbench.harness.cli.say import output, say_left_out, say_notes

if TYPE_CHECKING:
    from petlbench.harness.plan import Plan

_COLUMNS = ("method", "dataset", "backbone", "seed", "spec", "state", "share", "estimate")


def plan(
    methods: o.Methods = None,
    experiment: o.File = None,
    dataset: o.Datasets = None,
    backbone: o.Backbones = None,
    seed: o.Seeds = None,
    preset: o.Preset = None,
    set_: o.Sets = None,
    plugin: o.Plugins = None,
    results: o.Results = None,
    tuned: o.Tuned = False,
    tuned_from: o.TunedFrom = None,
    force: o.Force = False,
    jobs: o.Jobs = None,
    gpus_per_trial: o.GpusPerTrial = None,
    address: o.Address = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure now what `--gpus-per-trial auto` does not know yet.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    full: Annotated[bool, typer.Option("--full", help="With --json: the resolved spec of every trial.")] = False,
) -> None:
    """Show which trials a run would make, which are recorded already, and what the rest may cost.

    Takes the options of `benchmark run` that say what is run and where, and
    writes nothing but what --probe measures, in the cache. The estimate is
    the mean of earlier trials of the same method, data set and backbone; the
    share is what a trial gets of this machine, or of the cluster at --address.

    Examples:
      benchmark plan all-methods
      benchmark plan lora -d ucm --set dataset.ucm.root=DIR --json --full
    """
    asked = o.experiment_from(
        methods,
        experiment,
        dataset,
        backbone,
        seed,
        preset,
        [*(set_ or []), *o.machine_sets(jobs, gpus_per_trial, address)],
        plugin,
        results,
        tuned,
        tuned_from,
    )

    import json

    from petlbench.harness.plan import make_plan
    from petlbench.harness.recorded import RECORDED, seconds_of

    made = make_plan(asked, force=force)
    times, problems = seconds_of(Path(asked.results).expanduser().absolute())
    for problem in problems:
        typer.secho(f"warning: {problem}", fg="yellow", err=True)
    portions = portions_of(made.to_run, asked.resources, probe=probe)
    for note in portions.notes:
        typer.secho(note, err=True)
    rows = _rows(made, times, full, portions)
    todo = [row for row in rows if row["state"] != RECORDED]
    known = [row["estimated_s"] for row in todo if row["estimated_s"] is not None]
    if as_json:
        summary = {
            "to_run": len(todo),
            "recorded": len(rows) - len(todo),
            "estimated_s": sum(known),
            "unknown": len(todo) - len(known),
        }
        refused = [{"combination": label, "reason": reason} for label, reason in made.refused]
        typer.echo(json.dumps({"trials": rows, "refused": refused, "notes": made.notes, **summary}, indent=1))
        return
    _show(made, rows)
    estimate = f"about {_seconds(sum(known))} of trial time" if known else "cost unknown"
    rest = len(todo) - len(known)
    unknown = f", {rest} trial{'s' * (rest != 1)} of unknown cost" if known and rest else ""
    costs = f"; {estimate}{unknown}" if todo else ""
    typer.echo(f"{len(todo)} to run, {len(rows) - len(todo)} recorded{costs}")


def _rows(made: Plan, times: dict[tuple[str, str, str], float], full: bool, portions: Portions) -> list[dict[str, Any]]:
    rows = []
    for item in made.planned:
        spec = item.trial.spec
        row: dict[str, Any] = {
            "method": spec.method.name,
            "dataset": spec.dataset.name,
            "backbone": spec.backbone.name,
            "seed": spec.seed,
            "spec_id": spec.spec_id,
            "state": item.state,
            "note": item.note,
            "share": portions.text(spec.spec_id),
            "estimated_s": times.get((spec.method.name, spec.dataset.name, spec.backbone.name)),
            "record": str(item.path),
        }
        if full:
            row["spec"] = spec.model_dump(mode="json")
        rows.append(row)
    return rows


def _show(made: Plan, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from petlbench.harness.recorded import RECORDED

    console = output()
    table = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, overflow="fold")
    for row in rows:
        cost = "" if row["state"] == RECORDED else _seconds(row["estimated_s"])
        shown = {**row, "spec": row["spec_id"][:8], "estimate": cost}
        table.add_row(*(Text(str(shown[name])) for name in _COLUMNS))
    console.print(table)
    for row in rows:
        if row["note"]:
            label = f"{row['method']}/{row['dataset']}/{row['backbone']}/s{row['seed']}"
            console.print(f"{row['state']}: {label}: {row['note']}", markup=False, soft_wrap=True)
    say_notes(console, made.notes)
    say_left_out(console, made.refused)


def _seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
