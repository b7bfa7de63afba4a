"""What `benchmark ls methods NAME` prints: one method, all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def render_page(row: dict[str, Any], fields: dict[str, dict[str, str]], console: Console) -> None:
    """Print a method.

    Args:
        row: From :func:`petlbench.harness.describe.description`.
        fields: From :func:`petlbench.harness.describe.fields_of`.
        console: Where to print.
    """
    _say(console, f"{row['title']} ({row['name']}), {row['family']}", style="bold")
    for paragraph in row["description"].split("\n\n"):
        _say(console, " ".join(paragraph.split()))
    _heading(console, "Source")
    for label in ("paper", "code", "licence", "origin", "backbones"):
        if row[label]:
            _say(console, f"  {label}: {row[label]}")
    _say(console, f"  released weights: {row['official'] or 'none known'}")

    _heading(console, "Options")
    _table(
        console,
        ("option", "default", "values", "meaning"),
        [(name, f["default"], f["type"], f["doc"]) for name, f in fields.items()],
    )
    _heading(console, f"Size on {row['counted_on']}, measured by building it")
    _table(
        console,
        ("form", "trainable", "%", "total", "declared", "note"),
        [
            ("default", *_counts(row), "", row.get("reason", "")),
            *(
                (f"preset {name}", *_counts(p), "", p.get("reason", ""))
                for name, p in row["presets"].items()
                if p["trainable"] != row["trainable"]
            ),
            *(
                (name, *_counts(v), f"{v['declared']:,}", v["note"] + (f" ({v['reason']})" if "reason" in v else ""))
                for name, v in row["variants"].items()
            ),
        ],
        right=("trainable", "%", "total", "declared"),
    )
    _heading(console, "Presets, where they differ from the defaults")
    _presets(console, row["presets"], fields)
    if row["space"]:
        _heading(console, "Search space")
        rows = [(key, d["kind"], ", ".join(map(str, d["values"]))) for key, d in row["space"].items()]
        _table(console, ("key", "kind", "values"), rows)
    if row["published"]:
        _heading(console, "Published rows (i2t R@1, 5, 10, t2i R@1, 5, 10)")
        _table(
            console,
            ("data set", "values", "trained", "chosen on", "source"),
            [
                (
                    p["dataset"],
                    " ".join(f"{value:g}" for value in p["values"]),
                    p["trainable"],
                    p["selection"],
                    p["source"] + ("" if p["seen"] else " (recalled, not read there)"),
                )
                for p in row["published"]
            ],
        )
    _heading(console, "Choices that are ours")
    for choice in row["choices"] or ["none"]:
        _say(console, f"  - {choice}")


def _presets(console: Console, presets: dict[str, Any], fields: dict[str, dict[str, str]]) -> None:
    from petlbench.harness.experiment import flattened
    from petlbench.methods.recipe import Recipe

    usual = flattened(Recipe().model_dump(mode="json"))
    for name, preset in presets.items():
        options = {f"method.{k}": v for k, v in preset["method"].items() if str(v) != fields[k]["default"]}
        recipe = {f"train.{k}": v for k, v in flattened(preset["train"]).items() if v != usual.get(k)}
        said = ", ".join(f"{key}={value}" for key, value in {**options, **recipe}.items())
        _say(console, f"  {name}: {said or 'the defaults'}")


def _counts(row: dict[str, Any]) -> tuple[str, str, str]:
    if row["trainable"] is None:
        return ("-", "", "")
    return (f"{row['trainable']:,}", f"{row['percent']:.3f}", "" if row["total"] is None else f"{row['total']:,}")


def _heading(console: Console, text: str) -> None:
    console.print()
    _say(console, text, style="bold")


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, markup=False, highlight=False, style=style)


def _table(
    console: Console, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]], right: tuple[str, ...] = ()
) -> None:
    from rich.table import Table
    from rich.text import Text

    if not rows:
        _say(console, "  none")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        first = name == columns[0]
        table.add_column(name, overflow="fold", no_wrap=first, justify="right" if name in right else "left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)
