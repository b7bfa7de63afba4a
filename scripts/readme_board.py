"""Write the boards of ``results/`` into README.md, shortened: ``python scripts/readme_board.py``.

Boards of real data sets come first, those with most methods before others and with their plot of mR against trained parameters
(an SVG below ``docs/images``); those of made-up sets follow, folded.

``--check`` writes nothing and ends with exit code 1 if the README is out of date.
"""

from __future__ import annotations

import html
import sys
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

from petlbench.leaderboard import text
from petlbench.leaderboard.explain import FEW_SEEDS, SEEDS_OVERLAP, WITHIN_NOISE
from petlbench.leaderboard.markdown import marks
from petlbench.leaderboard.plots.write import FOLDER, caption, table_slugs, write_plots
from petlbench.leaderboard.scoring import SHORTLISTED
from petlbench.leaderboard.table import Board, Table, build_board

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- board -->", "<!-- end of board -->"
HEADERS = ["method", "i2t R@1", "t2i R@1", "mR", "mR 95 %", "seeds", "trained", "train s", "scoring", "ms/query"]
PICTURES = Path("docs", "images")
PLOTTED = 4
"""Rows from which a board has a plot."""
KEYS = {
    WITHIN_NOISE: "within the noise of the test images from the best row",
    SEEDS_OVERLAP: "other seeds may change the order with the best row",
    FEW_SEEDS: "fewer than three seeds",
    SHORTLISTED: "only a shortlist was scored, so recall is bounded by its first stage",
}


def short(table: Table) -> str:
    """One table with the columns that fit a README, mean ± standard deviation over seeds in percent."""
    body = []
    for row in table.rows:
        shown = [text.spread(row.mean[m], row.sd[m]) for m in ("i2t_r1", "t2i_r1", "mR")]
        name = f"{text.markdown(row.label)} {marks(row)}".rstrip()
        train_s = text.unless(row.no_seconds, text.quantity(row.train_s))
        query = text.milliseconds(row.query.t2i_s if row.query else None)
        sizes = [text.interval(row.interval), str(row.n), text.count(row.trained), train_s]
        body.append([name, *shown, *sizes, text.markdown(row.scoring), query])
    for reference in table.references:
        shown = [text.percent(reference.recalls.get(m)) for m in ("i2t_r1", "t2i_r1", "mR")]
        body.append([f"*{text.markdown(reference.name)}*", *shown, *[text.NOTHING] * 6])
    facts = dict(table.facts)
    used = [f"{mark} {meaning}" for mark, meaning in KEYS.items() if any(mark in marks(r) for r in table.rows)]
    lines = [
        f"**{text.markdown(table.title)}**",
        "",
        tabulate(
            body, HEADERS, tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 7, "left", "right")
        ),
    ]
    for said in (facts.get("Toy"), "; ".join(used) + "." if used else None):
        if said:
            lines += ["", text.markdown(said)]
    return "\n".join(lines)


def folded(table: Table) -> str:
    """The same below its title, to be opened by a click."""
    _, below = short(table).split("\n\n", 1)
    return f"<details><summary>{html.escape(table.title)}</summary>\n\n{below}\n\n</details>"


def picture(table: Table, slug: str) -> str:
    """The line that shows its plot; empty for a small table."""
    if len(table.rows) < PLOTTED:
        return ""
    return (
        f"![{text.markdown(caption('parameters', table))}]({(PICTURES / FOLDER / slug / 'parameters.svg').as_posix()})"
    )


def is_toy_table(table: Table) -> bool:
    """Whether its scores come from a made-up domain."""
    return "Toy" in dict(table.facts)


def updated(readme: str, board: Board) -> str:
    """The README with new boards between its two marks.

    Raises:
        ValueError: A mark is missing.
    """
    if readme.count(START) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md: expected one line {START} and one line {END}; put them back around the board")
    head, tail = readme.split(START)[0], readme.split(END)[1]
    largest_first = sorted(zip(board.tables, table_slugs(board), strict=True), key=lambda pair: -len(pair[0].rows))
    real = [
        f"{short(table)}\n\n{picture(table, slug)}".rstrip() for table, slug in largest_first if not is_toy_table(table)
    ]
    made_up = [folded(table) for table in board.tables if is_toy_table(table)]
    inner = "\n\n".join(real + made_up)
    return f"{head}{START}\n{inner}\n{END}{tail}"


def main() -> None:
    """Write, or compare with ``--check``."""
    path = ROOT / "README.md"
    now = path.read_text(encoding="utf-8")
    board = build_board(ROOT / "results")
    new = updated(now, board)
    if "--check" in sys.argv[1:]:
        if new != now:
            sys.exit("README.md: the board is out of date; run python scripts/readme_board.py")
        return
    shown = [table for table in board.tables if not is_toy_table(table) and len(table.rows) >= PLOTTED]
    write_plots(replace(board, tables=shown), ROOT / PICTURES, plots=["parameters"], kinds=["svg"])
    path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
