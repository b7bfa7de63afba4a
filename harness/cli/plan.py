"""`benchmark plan`: what `run` would do, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from petlbench.harness.cli import options as o


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
    force: o.Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    full: Annotated[bool, typer.Option("--full", help="With --json: the resolved spec of every trial.")] = False,
) -> None:
    """Show which trials a run would make, which are recorded already, and what the rest may cost.

    The cost is the mean of earlier trials of the same method, data set and backbone; unknown where there is none.
    """
    asked = o.experiment_from(methods, experiment, dataset, backbone, seed, preset, set_, plugin, results)

    import json

    from rich.console import Console
    from rich.table import Table

    from petlbench.harness.plan import make_plan, seconds_of

    made = make_plan(asked, force=force)
    times = seconds_of(Path(asked.results).expanduser().absolute())
    rows: list[dict[str, Any]] = []
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
            "estimated_s": times.get((spec.method.name, spec.dataset.name, spec.backbone.name)),
            "record": str(item.path),
        }
        if full:
            row["spec"] = spec.model_dump(mode="json")
        rows.append(row)
    todo = [r for r in rows if r["state"] != "recorded"]
    known = [r["estimated_s"] for r in todo if r["estimated_s"] is not None]
    refused = [{"combination": label, "reason": reason} for label, reason in made.refused]
    if as_json:
        summary = {
            "to_run": len(todo),
            "recorded": len(rows) - len(todo),
            "estimated_s": sum(known),
            "unknown": len(todo) - len(known),
        }
        typer.echo(json.dumps({"trials": rows, "refused": refused, **summary}, indent=1))
        return
    console = Console()
    table = Table(box=None, pad_edge=False)
    for name in ("method", "dataset", "backbone", "seed", "spec", "state", "estimate"):
        table.add_column(name)
    for row in rows:
        cost = "recorded" if row["state"] == "recorded" else _seconds(row["estimated_s"])
        table.add_row(
            row["method"], row["dataset"], row["backbone"], str(row["seed"]), row["spec_id"][:8], row["state"], cost
        )
    console.print(table)
    for label, reason in made.refused:
        console.print(f"left out: {label}: {reason}", markup=False, soft_wrap=True)
    estimate = f"about {_seconds(sum(known))} of trial time" if known else "cost unknown"
    unknown = f", {len(todo) - len(known)} trials of unknown cost" if known and len(known) < len(todo) else ""
    console.print(f"{len(todo)} to run, {len(rows) - len(todo)} recorded; {estimate}{unknown}")


def _seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
