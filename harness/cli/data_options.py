"""What the verbs of `benchmark data` share: their options, and how a set and its progress are told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from petlbench.datasets.card import Card

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A card's name, the path of your own card (.yaml) or of a folder in any known format, or hf:OWNER/NAME.",
    ),
]
Root = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder of the set's files (default: NAME inside the folder PETLBENCH_DATA)."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Option of the reader (repeatable): blank=drop, fold=1/5, val_list=FILE, format=table where it is not found, ...",
    ),
]


def options(sets: list[str] | None) -> dict[str, Any]:
    """Options of the reader from ``--set`` assignments."""
    from petlbench.harness.experiment import parse_assignment

    return dict(parse_assignment(assignment, "blank=drop") for assignment in sets or ())


def settled(dataset: str, root: str | None, given: dict[str, Any]) -> Card:
    """The card with format and files found; takes ``format`` out of the options, and says what was found."""
    from petlbench.datasets.layout import settle
    from petlbench.datasets.registry import load_card

    settled = settle(load_card(dataset), root, given, given.pop("format", None))
    if settled.told:
        typer.echo(settled.told, err=True)
    return settled.card


def bars(console: Console) -> Progress:
    """A progress bar that leaves no trace, and none at all where there is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    """Move a bar to where the work is."""
    bar.update(task, completed=done, total=total)
