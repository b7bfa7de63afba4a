"""`benchmark ls`: what there is."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer

from petlbench.harness.cli.say import output

ls = typer.Typer(help="List methods, datasets, backbones or results.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Pattern = Annotated[str, typer.Argument(metavar="PATTERN", help="Wildcard, e.g. '*clip*'.")]


def _print(rows: list[dict[str, Any]], as_json: bool, columns: list[str]) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name == columns[0])  # names are there to be copied
    for row in rows:
        table.add_row(*(Text("" if row[c] is None else str(row[c])) for c in columns))
    output().print(table)


@ls.command("methods")
def methods(
    pattern: Annotated[str, typer.Argument(metavar="NAME", help="One method for all about it, or a wildcard.")] = "*",
    plugin: Annotated[
        list[Path] | None, typer.Option("--plugin", metavar="FILE", help="A method file of your own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Methods: built in, from installed packages, and from --plugin files.

    The table gives the declared number of trained parameters on CLIP
    ViT-B/32, or on ViLT-B/32 for methods that sit on ViLT only; with a
    NAME or --json every form is built and counted.
    """
    from petlbench.methods import registry

    sources = registry.discover(plugin or ())
    one = not any(letter in pattern for letter in "*?[")
    names = registry.resolve([pattern], sources) if one else [n for n in sources if fnmatch.fnmatch(n, pattern)]
    classes = {name: registry.load(sources[name]) for name in names}

    from petlbench.harness.describe import description, fields_of, overview
    from petlbench.harness.variants import reference

    whole = as_json or (len(names) == 1 and one)
    rows = [(description if whole else overview)(cls, sources[n].origin, reference(cls)) for n, cls in classes.items()]
    if whole and not as_json:
        from rich.console import Console

        from petlbench.harness.cli.method_page import render_page

        render_page(rows[0], fields_of(classes[names[0]].Config), Console())
        return
    if not as_json:
        for row in rows:
            share = row["percent"]
            row["trained on B/32"] = "-" if row["trainable"] is None else f"{row['trainable']:,}"
            row["%"] = "-" if share is None else f"{share:.3f}" if share < 10 else f"{share:.1f}"
    _print(rows, as_json, ["name", "title", "family", "trained on B/32", "%", "presets", "backbones"])


@ls.command("datasets")
def datasets(pattern: Pattern = "*", as_json: Json = False) -> None:
    """Cards of data sets that come with petlbench."""
    from petlbench.datasets.registry import list_cards, load_card

    rows = []
    for name in list_cards():
        if fnmatch.fnmatch(name, pattern):
            card = load_card(name)
            expected = {split: counts.model_dump(exclude_none=True) for split, counts in card.expected.items()}
            sizes = " / ".join(f"{split} {counts['images']:,}" for split, counts in expected.items())
            rows.append(
                {
                    "name": name,
                    "title": card.title,
                    "format": card.format,
                    "images": sizes,
                    "licence": card.licence,
                    "citation": card.citation,
                    "expected": expected,
                    "notes": list(card.notes),
                }
            )
    _print(rows, as_json, ["name", "title", "format", "images", "licence"])


@ls.command("backbones")
def backbones(pattern: Pattern = "*", as_json: Json = False) -> None:
    """Backbones: the project's own and every open_clip architecture."""
    from petlbench.methods.backbones.registry import list_backbones

    rows = [
        {"name": b.name, "kind": b.kind, "zero-shot": "yes" if b.aligned else "no", "what": b.line}
        for b in list_backbones()
        if fnmatch.fnmatch(b.name, pattern)
    ]
    _print(rows, as_json, ["name", "kind", "zero-shot", "what"])


@ls.command("results")
def results(
    folder: Annotated[Path, typer.Option("--results", metavar="DIR", help="Folder of records.")] = Path("results"),
    as_json: Json = False,
) -> None:
    """Records in a results folder, failed ones too; a corrupt file is an error after the list."""
    from petlbench.harness.json_files import RecordError
    from petlbench.leaderboard.load import load_records

    loaded = load_records(folder)
    rows = []
    for entry in loaded.entries:
        record, test = entry.record, entry.record.metrics.get("test")
        rows.append(
            {
                "method": record.method.name,
                "dataset": record.spec["dataset"]["name"],
                "backbone": record.spec["backbone"]["name"],
                "seed": record.spec["seed"],
                "status": record.status,
                "mR": round(test.recalls["mR"], 2) if test and "mR" in test.recalls else None,
                "finished": record.provenance.get("finished"),
                "record": entry.name,
                "error": record.error.message if record.error else None,
            }
        )
    _print(rows, as_json, ["method", "dataset", "backbone", "seed", "status", "mR", "finished", "record"])
    if loaded.problems:
        raise RecordError("\n".join(problem.message for problem in loaded.problems))
