"""`benchmark cache`: what lies in the cache folder, and making room."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Annotated

import typer

from petlbench.harness.cli.say import output

cache = typer.Typer(help="List the cache folder, or clear parts of it.", no_args_is_help=True)


Kinds = Annotated[list[str] | None, typer.Option("--kind", metavar="KIND", help="Only this kind (repeatable).")]


@cache.command("ls")
def ls(
    kind: Kinds = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """What lies in the cache: kind, size, age, and what it belongs to.

    The cache is the folder PETLBENCH_CACHE, else the user's cache folder.
    """
    import json
    import time

    from rich.table import Table
    from rich.text import Text

    from petlbench.datasets.cache import cache_folder
    from petlbench.datasets.cache_entries import KINDS, cache_entries

    folder = cache_folder()
    entries = cache_entries(folder, kind or ())
    if as_json:
        listed = [
            {
                "kind": one.kind,
                "path": str(one.path),
                "bytes": one.bytes,
                "used": round(one.used, 3),
                "belongs_to": one.belongs_to,
                "in_use": one.in_use,
            }
            for one in entries
        ]
        typer.echo(json.dumps({"schema_version": 1, "folder": str(folder), "entries": listed}, indent=2))
        return
    table = Table(title=Text(f"Cache: {folder}"))
    for column in ("kind", "entry", "size", "last used", "belongs to"):
        table.add_column(column, justify="right" if column == "size" else "left")
    small = {name: [one for one in entries if one.kind == name] for name in ("index", "probes")}
    for one in entries:
        if one.kind in small:
            continue
        told = one.belongs_to + (" (in use)" if one.in_use else "")
        age = says_age(time.time() - one.used)
        table.add_row(one.kind, Text(one.path.name[:12]), says_size(one.bytes), age, Text(told))
    for name, listed_small in small.items():
        if listed_small:
            size = says_size(sum(one.bytes for one in listed_small))
            table.add_row(name, f"{len(listed_small)} files", size, "", KINDS[name])
    console = output()
    console.print(table)
    console.print(f"{says_size(sum(one.bytes for one in entries))} in {len(entries):,} entries", highlight=False)


@cache.command("clear")
def clear(
    kind: Kinds = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only what was not used for so long: 30d, 12h, 2w.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove entries of the cache; they are made again when needed.

    What a process makes or uses this moment stays. Nothing outside the cache folder is touched.
    """
    import time

    from petlbench.datasets.cache import cache_folder
    from petlbench.datasets.cache_entries import cache_entries, parse_age, remove_entry
    from petlbench.datasets.split import DataError

    if not (kind or older_than or all_):
        raise DataError("say what to remove: --kind KIND, --older-than AGE (e.g. 30d), or --all")
    if all_ and (kind or older_than):
        raise DataError("--all means everything; leave it out, or leave out --kind and --older-than")
    folder, least = cache_folder(), parse_age(older_than) if older_than else 0.0
    entries = [one for one in cache_entries(folder, kind or ()) if time.time() - one.used >= least]
    if not entries:
        typer.echo(f"{folder}: nothing to remove")
        return
    size = says_size(sum(one.bytes for one in entries))
    kinds = ", ".join(f"{number} {name}" for name, number in Counter(one.kind for one in entries).items())
    what = f"{len(entries):,} entries ({kinds}), {size}, in {folder}"
    if not yes:
        if not sys.stdin.isatty():
            raise DataError(f"would remove {what}; there is nobody to ask, so say --yes")
        typer.confirm(f"Remove {what}?", abort=True)
    gone = [one for one in entries if remove_entry(one, folder)]
    typer.echo(f"removed {len(gone):,} entries, {says_size(sum(one.bytes for one in gone))}")
    if kept := len(entries) - len(gone):
        typer.echo(f"{kept:,} {'is' if kept == 1 else 'are'} in use and stay{'s' * (kept == 1)}")


def says_size(size: float) -> str:
    """Bytes in words."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def says_age(seconds: float) -> str:
    """An age in words."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' * (number != 1)} ago"
    return "just now"
