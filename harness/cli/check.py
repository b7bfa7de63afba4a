"""`benchmark check`: does a method keep the contract?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petlbench.harness.cli.say import output

if TYPE_CHECKING:
    from rich.console import Console

    from petlbench.harness.contract_outcome import Check

_STYLE = {"ok": "green", "failed": "bold red", "not applicable": "dim"}


def check(
    methods: Annotated[
        list[str] | None,
        typer.Argument(metavar="METHOD", help="Methods, or all-methods; those of --plugin when left out."),
    ] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option("--plugin", metavar="FILE", help="A method file of your own.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every check, not only what failed or does not apply.")
    ] = False,
) -> None:
    """Put methods through the contract on small untrained backbones: seconds, on the CPU. Exit code 1 if one fails."""
    from petlbench.methods import registry

    wanted = methods or [path.stem for path in plugin or ()]
    if not wanted:
        raise typer.BadParameter("name one or more methods, or all-methods", param_hint="METHOD")
    sources = registry.discover(plugin or ())
    names = registry.resolve(wanted, sources)

    from petlbench.harness.contract import check_method

    console = output()
    failed = 0
    for name in names:
        checks = check_method(registry.load(sources[name]))
        failed += any(c.outcome == "failed" for c in checks)
        render(name, checks, console, verbose)
    if len(names) > 1:
        console.print(f"{len(names) - failed} of {len(names)} methods keep the contract", highlight=False)
    if failed:
        raise typer.Exit(1)


def render(name: str, checks: Sequence[Check], console: Console, verbose: bool = False) -> None:
    """Print one table for what a method declares and one per backbone and preset.

    Args:
        name: The method.
        checks: From :func:`petlbench.harness.contract.check_method`.
        console: Where to print.
        verbose: Show passed checks line by line too.
    """
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    for subject in dict.fromkeys(c.subject for c in checks):
        mine = [c for c in checks if c.subject == subject]
        counts = {outcome: sum(c.outcome == outcome for c in mine) for outcome in _STYLE}
        summary = ", ".join(
            f"[{_STYLE[outcome]}]{n} {outcome}[/]" for outcome, n in counts.items() if n or outcome == "ok"
        )
        console.print(f"[bold]{escape(name)}[/] {escape(subject or 'as declared')}: {summary}", highlight=False)
        shown = [c for c in mine if verbose or c.outcome != "ok"]
        if not shown:
            continue
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 2))
        table.add_column("check", no_wrap=True)
        table.add_column("outcome", no_wrap=True)
        table.add_column("message", overflow="fold")
        for c in shown:
            table.add_row(c.name, Text(c.outcome, style=_STYLE[c.outcome]), Text(c.message))
        console.print(table)
