"""`benchmark evaluate`: measure stored weights, and see that recorded metrics come out again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from petlbench.errors import PetlbenchError
from petlbench.harness.cli.say import output, say_notes

if TYPE_CHECKING:
    from petlbench.harness.evaluation import Comparison
    from petlbench.harness.retrial import Places

_MAIN = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "mR")


def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="RECORD|FOLDER|METHOD", help="A record, a results folder, or a method's name.")
    ],
    official_checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--official-checkpoint",
            metavar="FILE",
            help="Weights that the authors of METHOD released.",
            show_default=False,
        ),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", metavar="PATH", help="A stored adapter of METHOD.", show_default=False)
    ] = None,
    split: Annotated[Literal["test", "val"], typer.Option(help="Which split to measure.")] = "test",
    method: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="NAME", help="With FOLDER: only records of this method (repeatable)."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", "-d", metavar="NAME", help="Data set: a card's name, or a card's path.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", "-b", metavar="NAME", help="With METHOD: the backbone.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="With METHOD: options to start from (default: official, else paper, else matched)."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="With METHOD: the seed it was built with.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="With METHOD: any key of an experiment file. With records: places of files, such as dataset.ucm.root=DIR.",
        ),
    ] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option("--plugin", metavar="FILE", help="A method file of your own (repeatable).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With METHOD: write what was measured, and on what, as JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Measure stored weights. Nothing is trained, and no record is written.

    Given a record, or a results folder, the trial is built again, the stored
    adapter is loaded, and what comes out is compared with what was recorded;
    they must be equal to the last digit, else the exit code is 1.

    Examples:
      benchmark evaluate results/scenes/lora/tiny-clip-s0-12345678.json
      benchmark evaluate results --method lora
      benchmark evaluate harma --official-checkpoint FILE -d rsitmd-precomp -b ViT-B-32-quickgelu:openai
      benchmark evaluate lora --adapter results/scenes/lora/tiny-clip-s0-12345678.adapter
    """
    path = Path(target).expanduser()
    plugins = tuple(str(p) for p in plugin or ())
    # A folder may be called like a method; then the name is the method's, and ./NAME the folder's.
    is_record = path.suffix == ".json" or (
        path.is_dir() and not (target.isidentifier() and _is_method(target, plugins))
    )
    if is_record:
        _refuse("a method's name", official_checkpoint=official_checkpoint, adapter=adapter, backbone=backbone)
        _refuse("a method's name", preset=preset, seed=seed, out=out)
        from petlbench.harness.retrial import Places

        _records(path, Places.from_sets(set_ or [], dataset, plugins), split, method, as_json)
        return
    _refuse("a results folder", method=method or None)
    if (official_checkpoint is None) == (adapter is None):
        raise typer.BadParameter(
            f"{target} is a method, so give its weights: --official-checkpoint FILE or --adapter PATH (or give a record)",
            param_hint="RECORD|FOLDER|METHOD",
        )
    _weights(
        target,
        official_checkpoint,
        adapter,
        split,
        out,
        as_json,
        {"dataset": dataset, "backbone": backbone, "preset": preset, "seed": seed, "sets": set_, "plugins": plugins},
    )


def _is_method(name: str, plugins: Sequence[str]) -> bool:
    from petlbench.methods import registry

    return name in registry.discover(plugins)


def _refuse(goes_with: str, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise typer.BadParameter(f"goes with {goes_with}", param_hint=f"--{name.replace('_', '-')}")


def _records(path: Path, places: Places, split: str, methods: list[str] | None, as_json: bool) -> None:
    import json

    from petlbench.harness.evaluation import evaluate_record
    from petlbench.harness.json_files import RecordError

    paths = _found(path, methods) if path.is_dir() else [path]
    if not paths:
        raise RecordError(f"{path}: no finished record{f' of {_or(methods)}' if methods else ''} below this folder")
    done: list[Comparison] = []
    problems: list[PetlbenchError] = []
    for record in paths:
        try:
            compared = evaluate_record(record, places, split)
        except PetlbenchError as error:
            if len(paths) == 1:
                raise
            problems.append(error)  # told at the end: one missing adapter must not hide the other records
            continue
        done.append(compared)
        if not as_json:
            _show(compared)
    if as_json:
        typer.echo(json.dumps([_row(compared) for compared in done], indent=1))
    elif len(paths) > 1:
        same = sum(c.same is True for c in done)
        typer.echo(f"{same} of {len(paths)} records give their metrics again, {len(problems)} could not be evaluated")
    if problems:
        raise PetlbenchError("\n".join(str(problem) for problem in problems))
    if any(compared.same is False for compared in done):
        raise typer.Exit(1)


def _found(folder: Path, methods: list[str] | None) -> list[Path]:
    """Finished records of a results folder; unreadable ones stay in, so that they are reported."""
    from petlbench.harness.json_files import RecordError
    from petlbench.harness.record_files import find_records, read_record

    found = []
    for path in find_records(folder):
        try:
            record = read_record(path)
        except RecordError:
            found.append(path)
            continue
        if record.status == "ok" and (not methods or record.method.name in methods):
            found.append(path)
    return found


def _or(names: list[str] | None) -> str:
    return " or ".join(names or ())


def _row(compared: Comparison) -> dict[str, Any]:
    return {
        "record": str(compared.path),
        "spec_id": compared.record.spec_id,
        "method": compared.record.method.name,
        "split": compared.split,
        "same": compared.same,
        "differing": compared.differing,
        "recorded": compared.recorded,
        "found": compared.found,
        "notes": list(compared.notes),
    }


def _show(compared: Comparison) -> None:
    from rich.table import Table
    from rich.text import Text

    console = output()
    console.print(f"{compared.path} ({compared.split})", markup=False, highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in ("metric", "recorded", "now", "difference"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for key in dict.fromkeys((*_MAIN, *compared.differing)):
        was, is_ = compared.recorded.get(key), compared.found.get(key)
        apart = "" if was is None or is_ is None else "0" if was == is_ else f"{is_ - was:+.3g}"
        cells = (key, "" if was is None else f"{was:.4f}", "" if is_ is None else f"{is_:.4f}", apart)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    say_notes(console, compared.notes)
    verdict = {
        True: f"all {len(compared.recorded)} recorded metrics come out again, exactly",
        False: f"{len(compared.differing)} of {len(compared.recorded)} recorded metrics differ (tolerance 0)",
        None: "nothing was recorded for this split, so there is nothing to compare with",
    }[compared.same]
    console.print(verdict, style="bold red" if compared.same is False else None, highlight=False)


def _weights(
    method: str,
    official: Path | None,
    adapter: Path | None,
    split: str,
    out: Path | None,
    as_json: bool,
    asked: dict[str, Any],
) -> None:
    import json

    from petlbench.harness.adapters import read_about
    from petlbench.harness.evaluation import evaluate_adapter, evaluate_official
    from petlbench.harness.json_files import write_atomically
    from petlbench.harness.retrial import trial_for

    if official is not None:
        report = evaluate_official(trial_for(method, **asked), official, split)
    else:
        assert adapter is not None
        adapter = adapter.expanduser()
        report = evaluate_adapter(trial_for(method, **asked, about=read_about(adapter)), adapter, split)
    text = json.dumps(report, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    if out is not None:
        write_atomically(out, f"{text}\n".encode())
    if as_json:
        typer.echo(text)
        return
    _show_report(report)
    if out is not None:
        typer.echo(f"wrote {out}")


def _show_report(report: dict[str, Any]) -> None:
    from rich.table import Table

    console = output()
    weights, spec, params = report["weights"], report["spec"], report["params"]
    lines = [
        f"{report['method']['title']} ({report['method']['name']}), {weights['kind']} {weights['file']}: "
        f"{weights['tensors']} tensors, {params['trained']:,} trained scalars of {params['total']:,}",
        f"options: {', '.join(f'{key}={value}' for key, value in spec['method']['options'].items()) or 'none'}",
        f"{spec['dataset']['name']} {report['split']}, {spec['backbone']['name']} ({report['backbone']['source']}, "
        f"{report['backbone']['activation']}, {report['backbone']['resolution']} px)",
    ]
    if dropped := weights.get("dropped"):
        reasons = dict.fromkeys(dropped.values())
        lines.append(f"set aside: {len(dropped)} tensors ({'; '.join(reasons)})")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    recalls = report["metrics"]["recalls"]
    table = Table(box=None, pad_edge=False)
    for key in _MAIN:
        table.add_column(key, justify="right")
    table.add_row(*(f"{recalls[key]:.2f}" for key in _MAIN))
    console.print(table)
