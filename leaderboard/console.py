"""A board in the terminal: the few columns that fit."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from petlbench.leaderboard import text
from petlbench.leaderboard.load import METRICS
from petlbench.leaderboard.markdown import NAMES, marks
from petlbench.leaderboard.table import Table

_SHOWN = ("i2t_r1", "t2i_r1")
_TERMS = ("Marks", "Toy")
_WIDE = 100
"""Terminals narrower than this get the method, mR and its interval only."""


def render_console(tables: Sequence[Table], console: Console) -> None:
    """Print one compact table per setting; strings of records are shown as they are, never as rich markup."""
    shown = _SHOWN if console.width >= _WIDE else ()
    tail = ("trained", "train s") if console.width >= _WIDE else ("trained",)
    for table in tables:
        grid = RichTable(title=Text(text.plain(table.title)), title_justify="left")
        grid.add_column("#", justify="right")
        grid.add_column("method", overflow="fold", min_width=18)
        for name in (*(NAMES[metric] for metric in shown), "mR", "mR 95 %", "n", *tail):
            grid.add_column(name, justify="right", no_wrap=True)
        for row in table.rows:
            cells = [
                str(row.rank),
                f"{text.plain(row.label)} {marks(row)}".rstrip(),
                *(text.percent(row.mean[metric], 1) for metric in shown),
                text.spread(row.mean["mR"], row.sd["mR"]),
                text.interval(row.interval),
                str(row.n),
                text.count(row.trained),
                text.unless(row.no_seconds, text.quantity(row.train_s)),
            ][: len(grid.columns)]
            grid.add_row(*(Text(cell) for cell in cells), style="bold" if row.rank == 1 else "")
        grid.add_section()
        for name, recalls in table.references:
            values = [text.percent(recalls.get(metric), 1) for metric in shown]
            cells = ["", name, *values, text.percent(recalls.get(METRICS[-1]))]
            grid.add_row(*(Text(cell) for cell in cells), style="italic dim")
        console.print(grid)
        for term, said in table.facts:
            if term in _TERMS:
                console.print(Text(text.plain(said)), style="dim")
        for note in table.notes:
            console.print(Text(f"Note: {text.plain(note)}"), style="yellow")
