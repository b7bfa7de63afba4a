"""`benchmark data doctor`: examine a data set, and write a mended copy of its annotations where asked."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petlbench.harness.cli.data_options import Name, Root, Sets, advance, bars, options, settled
from petlbench.harness.cli.say import output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.progress import Progress

    from petlbench.datasets.card import Card
    from petlbench.datasets.doctor import Against, DoctorReport
    from petlbench.datasets.doctor_pictures import Looks
    from petlbench.datasets.split import Split

Codes = list[str] | None


def _print_codes(asked: bool) -> None:
    if asked:
        from petlbench.datasets.findings import codes_table

        typer.echo(codes_table())
        raise typer.Exit


def doctor(
    dataset: Name,
    root: Root = None,
    set_: Sets = None,
    pixels: Annotated[bool, typer.Option(help="Decode every picture (slower, finds unreadable ones).")] = True,
    select: Annotated[
        Codes, typer.Option(metavar="CODE", help="Report only this code, or codes that begin so (repeatable): D02.")
    ] = None,
    ignore: Annotated[Codes, typer.Option(metavar="CODE", help="Do not report this code (repeatable).")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 on warnings too.")] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME[=DIR]", help="Also look for pictures and captions that are in this other set."),
    ] = None,
    fix: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Write a mended copy of the annotations, and a card, into this new folder."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what --fix wrote before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    codes: Annotated[
        bool,
        typer.Option(
            "--codes", callback=_print_codes, is_eager=True, help="Print every code with its remedy, and exit."
        ),
    ] = False,
) -> None:
    """Examine a data set: unusable pictures, captions, duplicates, leaks, counts, ceiling, class-only oracle.

    Exit code 1 when an error was found (with --fix: is left). Your files are never written to.
    """
    from rich.console import Console

    from petlbench.datasets.doctor import examine, lenient, render
    from petlbench.datasets.findings import chosen_codes, need_pictures
    from petlbench.datasets.layout import data_folders
    from petlbench.datasets.load import load
    from petlbench.datasets.places import Places
    from petlbench.datasets.registry import options_model
    from petlbench.datasets.validation import checked
    from petlbench.datasets.writers.common import keep_out

    wanted = chosen_codes(select or (), ignore or ())
    given = options(set_)
    card = settled(dataset, root, given)
    # Findings depend on what trials will do with blank captions; for the examination itself they are read as they are.
    meant = card.model_copy(update={"options": {**card.options, **given}})
    checked(options_model(card.format), meant.options, f"options of data set {card.name}")
    if fix is not None:
        keep_out(Path(fix).expanduser().absolute(), data_folders(meant, root), {})
    read = {**given, **lenient(card)}
    splits = load(card, root, **read)
    pixels = pixels and need_pictures(wanted)
    with bars(Console(stderr=True)) as bar:
        seen = _seen(splits, "pictures", bar) if pixels else {}
        other = None if against is None else _other(against, pixels, bar)
    places = Places.of(card, root, read, splits)
    report = examine(splits, meant, pixels, looks=seen, against=other, codes=wanted, places=places)
    if as_json:
        typer.echo(report.to_json())
    else:
        render(report, output())
    if fix is not None:
        report = _fix(fix, report, splits, meant, root, select or (), seen, other, wanted, force)
    if not report.ok or (strict and any(one.severity == "warning" for one in report.findings)):
        raise typer.Exit(1)


def _other(against: str, pixels: bool, bar: Progress) -> Against:
    """The set to compare with."""
    from petlbench.datasets.doctor import Against, lenient
    from petlbench.datasets.doctor_pictures import bad_pictures
    from petlbench.datasets.load import load

    name, _, folder = against.partition("=") if not Path(against).exists() else (against, "", "")
    card = settled(name, folder or None, {})
    splits = load(card, folder or None, **lenient(card))
    seen = _seen(splits, f"pictures of {card.name}", bar) if pixels else {}
    if bad := len(bad_pictures(seen)):
        typer.echo(f"{card.name}: {bad:,} of {len(seen):,} pictures cannot be used, and are not compared", err=True)
    return Against(card.name, splits, seen)


def _seen(splits: Mapping[str, Split], what: str, bar: Progress) -> Looks:
    from petlbench.datasets.doctor import look_at

    task = bar.add_task(what, total=sum(len(split.images) for split in splits.values()))
    return look_at(splits, partial(advance, bar, task))


def _fix(
    folder: str,
    report: DoctorReport,
    splits: Mapping[str, Split],
    card: Card,
    root: str | None,
    select: Sequence[str],
    seen: Looks,
    other: Against | None,
    wanted: frozenset[str],
    force: bool,
) -> DoctorReport:
    """Write a mended copy; what the doctor says of it."""
    from rich.console import Console

    from petlbench.datasets.doctor import examine
    from petlbench.datasets.fix import mend, mendable, write_mended
    from petlbench.datasets.layout import data_folders
    from petlbench.datasets.split import DataError

    codes = mendable(report.findings, select)
    if not codes:
        asked = sorted({one.code for one in report.findings if one.fix == "asked"})
        hint = f" ({', '.join(asked)} only where --select names them)" if asked else ""
        typer.echo(f"nothing to mend{hint}; nothing is written", err=True)
        return report
    mended = mend(splits, report.findings, codes)
    # Counts are those of the new card, so they are not compared with the old one's.
    bare = card.model_copy(update={"expected": {}})
    kept_places = {(name, image.name) for name, split in mended.splits.items() for image in split.images}
    left = {place: look for place, look in seen.items() if place in kept_places}
    after = examine(mended.splits, bare, bool(seen), looks=left, against=other, codes=wanted)
    if still := sorted({one.code for one in after.findings} & set(codes)):
        raise DataError(f"{', '.join(still)}: is still found once mended; leave it to --ignore and mend it by hand")
    with bars(Console(stderr=True)) as bar:
        tasks = {name: bar.add_task(f"pictures of {name}", total=None, visible=False) for name in mended.splits}

        def progress(name: str, done: int, total: int) -> None:
            bar.update(tasks[name], completed=done, total=total, visible=True)

        written = write_mended(mended, folder, card, data_folders(card, root), force=force, progress=progress)
    counts = {code: sum(change.code == code for change in mended.changes) for code in mended.codes}
    told = ", ".join(f"{code} ({number:,} changes)" for code, number in counts.items())
    typer.echo(f"mended: {told}; every change is in {written[-2]}", err=True)
    kept = {name: f"{len(split.images):,} of {len(splits[name].images):,}" for name, split in mended.splits.items()}
    typer.echo(f"pictures: {', '.join(f'{name} {number}' for name, number in kept.items())}", err=True)
    typer.echo(f"Read it by: -d {written[-1]}", err=True)
    return after
