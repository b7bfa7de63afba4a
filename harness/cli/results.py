"""`benchmark results`: records as a shared good - check them, take in those of others, compare two folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petlbench.harness.cli import options as o
from petlbench.harness.cli.records import complain, fitting, need_folder, need_records
from petlbench.harness.cli.say import output

if TYPE_CHECKING:
    from rich.console import Console

    from petlbench.leaderboard.load import Entry
    from petlbench.leaderboard.results_diff import FolderDiff
    from petlbench.leaderboard.results_merge import Plan

results = typer.Typer(help="Check, merge and compare folders of records.", no_args_is_help=True)

_SHOWN = 8
"""Keys named per differing trial, besides its recalls."""


@results.command("validate")
def validate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of records.")] = Path("results"),
    board: Annotated[
        bool,
        typer.Option("--board", help="Also check that its board files are what the records produce."),
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Check every record: schema, hash of its spec, name and place, ranks against recalls; and that no file is stray.

    Every problem is listed; exit code 1 if there is one. Records of an older
    schema version are migrated when read and counted.
    """
    from petlbench.leaderboard.results_validate import validate as check

    need_folder(folder)
    report = check(folder, board=board)
    if as_json:
        import json

        told = [{"file": problem.name, "message": problem.message} for problem in report.problems]
        payload = {"ok": report.ok, "records": len(report.entries), "migrated": report.migrated, "problems": told}
        typer.echo(json.dumps(payload, indent=1, ensure_ascii=False))
    else:
        complain(report.problems)
        done = sum(entry.record.status == "ok" for entry in report.entries)
        older = f", {len(report.migrated)} of an older schema version" if report.migrated else ""
        found = (
            f"{len(report.problems)} problem{'s' * (len(report.problems) != 1)}" if report.problems else "no problem"
        )
        typer.echo(f"{folder}: {len(report.entries)} readable records ({done} finished{older}); {found}")
    if not report.ok:
        raise typer.Exit(1)


@results.command("merge")
def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="SRC...", help="Folders whose records to take in.")],
    into: Annotated[Path, typer.Option(metavar="DIR", help="The folder that takes them in.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Copy the records of other folders, with their ranks, into one: all that fit, or nothing.

    All folders must validate. A trial that is there with the same result is
    skipped; a finished one replaces a failed one; the same trial with another
    result is a conflict: what differs is said, nothing is merged, and the
    exit code is 1. Trained weights are not copied.
    """
    from petlbench.leaderboard.results_merge import MergeError, plan_merge
    from petlbench.leaderboard.results_merge import merge as carry_out

    for folder in sources:
        need_folder(folder)
    try:
        plan = plan_merge(sources, into)
        written = [] if dry_run and not plan.of("conflict") else carry_out(plan)  # raises where there are conflicts
    except MergeError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
    _announce(plan, into, dry_run)
    if written:
        typer.echo(f"Make the board again: benchmark leaderboard --results {into}")


@results.command("diff")
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of records.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    tolerance: Annotated[
        float, typer.Option(min=0, metavar="X", help="Points by which recalls may differ and count as equal.")
    ] = 0.0,
    as_json: o.Json = False,
) -> None:
    """Say which trials only one of two folders holds, and by how much shared trials differ (B minus A).

    Cost, provenance and learning curves are not compared. Exit code 1 where
    the folders differ, 2 where a record is unreadable.
    """
    from petlbench.leaderboard.load import load_records
    from petlbench.leaderboard.results_diff import diff_folders, to_dict

    for folder in (a, b):
        need_folder(folder)
    loaded = [load_records(folder) for folder in (a, b)]
    for folder, side in zip((a, b), loaded, strict=True):
        need_records(folder, bool(side.entries or side.problems))
    found = diff_folders(loaded[0].entries, loaded[1].entries, tolerance)
    if as_json:
        import json

        typer.echo(json.dumps(to_dict(found, tolerance), indent=1, ensure_ascii=False))
    else:
        _render(found, a, b, tolerance, output())
    problems = [problem for side in loaded for problem in side.problems]
    if complain(problems):
        raise typer.Exit(2)
    if not found.equal:
        raise typer.Exit(1)


def _announce(plan: Plan, into: Path, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    for step in plan.steps:
        where = step.target.relative_to(into).as_posix()
        if step.fate == "add":
            typer.echo(f"{would}added     {where}")
        elif step.fate == "replace" and step.into is not None:
            typer.echo(f"{would}replaced  {where} (was {step.into.record.status})")
        elif step.fate == "unfinished":
            typer.echo(f"left out  {where} ({step.source.record.status}; {into} has a record of that trial)")
    counts = {fate: len(plan.of(fate)) for fate in ("add", "replace", "same", "unfinished")}
    typer.echo(
        f"{into}: {counts['add']} {would}added, {counts['replace']} {would}replaced, {counts['same']} there already, "
        f"{counts['unfinished']} left out"
    )


def _render(found: FolderDiff, a: Path, b: Path, tolerance: float, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from petlbench.leaderboard import text

    for side, entries in ((a, found.only_a), (b, found.only_b)):
        _list(f"only in {side}", entries, console)
    if found.differing:
        grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        grid.add_column("differing trial", overflow="fold", min_width=24)
        shown = fitting(console)
        for metric in shown:
            grid.add_column(text.metric(metric), justify="right", no_wrap=True)
        for trial in found.differing:
            by = trial.metrics or {}
            grid.add_row(Text(text.plain(trial.a.name)), *(f"{by[m]:+.2f}" if m in by else text.NOTHING for m in shown))
        console.print(grid)
        for trial in found.differing:
            others = [change.line for change in trial.changes if not change.key.startswith("metrics.test.recalls.")]
            more = [f"and {len(others) - _SHOWN} more keys"] if len(others) > _SHOWN else []
            for line in (*others[:_SHOWN], *more):
                console.print(Text(text.plain(f"{trial.a.name}: {line}")), style="dim", soft_wrap=True)
    equal = len(found.shared) - len(found.differing)
    within = f" within {tolerance:g} points" if tolerance else ""
    console.print(
        f"{len(found.only_a)} only in {a}, {len(found.only_b)} only in {b}, {len(found.differing)} differ, "
        f"{equal} equal{within}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _list(title: str, entries: Sequence[Entry], console: Console) -> None:
    if entries:
        console.print(f"{title}:", markup=False, highlight=False, soft_wrap=True)
    for entry in entries:
        console.print(f"  {entry.name}", markup=False, highlight=False, soft_wrap=True)
