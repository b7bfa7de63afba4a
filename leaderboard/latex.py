"""A board as LaTeX tables for a paper: booktabs, the best of a column bold, the second best underlined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from petlbench.leaderboard import text
from petlbench.leaderboard.emphasis import Top, tops
from petlbench.leaderboard.latex_text import MARKS, foreign, latex
from petlbench.leaderboard.load import METRICS
from petlbench.leaderboard.markdown import marks
from petlbench.leaderboard.row import Row
from petlbench.leaderboard.summary import NO_TRIAL
from petlbench.leaderboard.table import Board, Table

_HEADER = r"""% Written by `benchmark leaderboard`; do not edit. Use it with \input{board}, and in the preamble:
%   \usepackage[T1]{fontenc}
%   \usepackage{textcomp,booktabs,threeparttable}"""
_FOREIGN = "% Holds characters beyond Latin ({}): compile with lualatex or xelatex and a font that has them."
_COLUMNS = 12
"""Number, method, trained, six recalls, mR, interval, seeds."""
_SETTING = ("Data set", "Backbone", "Selection")
_TOLD = ("Scoring", "95 %", "Test", "Toy")
"""Facts that stand below a table; those of :data:`_SETTING` come first, in one paragraph."""


def render_latex(board: Board) -> str:
    r"""One ``table*`` per table of the board; equal boards give equal text.

    The text is meant for ``\input``; its first lines say which packages it needs. Everything that comes from records is
    escaped.
    """
    slugs = text.slugs(table.title for table in board.tables)
    blocks = [_table(table, slug) for table, slug in zip(board.tables, slugs, strict=True)] or [f"% {NO_TRIAL}"]
    header = [_HEADER]
    if beyond := foreign("".join(blocks)):
        header.append(_FOREIGN.format(" ".join(f"U+{ord(c):04X}" for c in beyond[:20])))
    return "\n\n".join(["\n".join(header), *blocks]) + "\n"


def _table(table: Table, slug: str) -> str:
    best = tops(table.rows)
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{_caption(table)}}}",
            rf"\label{{tab:{slug}}}",
            r"\begin{threeparttable}",
            r"\footnotesize\setlength{\tabcolsep}{3pt}",
            r"\begin{tabular}{@{}rlr rrr rrr rcr@{}}",
            r"\toprule",
            r"& & & \multicolumn{3}{c}{image to text} & \multicolumn{3}{c}{text to image} & & & \\",
            r"\cmidrule(lr){4-6}\cmidrule(lr){7-9}",
            r"\# & method & trained & R@1 & R@5 & R@10 & R@1 & R@5 & R@10 & mR & 95\,\% & seeds \\",
            r"\midrule",
            *(_line(_cells(row, best)) for row in table.rows),
            r"\midrule",
            *(_line(_reference(name, recalls)) for name, recalls in table.references),
            r"\bottomrule",
            r"\end{tabular}",
            *_notes(table),
            r"\end{threeparttable}",
            r"\end{table*}",
        ]
    )


def _caption(table: Table) -> str:
    said = (
        r"Recalls in percent, mean over the seeds, mR \ensuremath{\pm} standard deviation; best in \textbf{bold}, second "
        r"best \underline{underlined}."
    )
    return f"{latex(table.title)}. {said}"


def _cells(row: Row, best: dict[str, Top]) -> list[str]:
    signs = "".join(MARKS[mark] for mark in marks(row))
    name = latex(row.label) + (rf"\textsuperscript{{{signs}}}" if signs else "")
    shown = [_recall(row, metric, best[metric]) for metric in METRICS]
    interval = (
        r"\textendash{}" if row.interval is None else r"{}\,\textendash\,{}".format(*map(text.percent, row.interval))
    )
    return [str(row.rank), name, latex(text.count(row.trained)), *shown, interval, str(row.n)]


def _recall(row: Row, metric: str, top: Top) -> str:
    value = text.percent(row.mean[metric])
    command = {"best": r"\textbf", "second": r"\underline", None: ""}[top.place(row.mean[metric])]
    shown = f"{command}{{{value}}}" if command else value
    sd = row.sd[metric] if metric == "mR" else None  # deviations of all recalls do not fit a page; they are in the CSV
    return shown if sd is None else rf"{shown}\,$_{{\pm {text.percent(sd)}}}$"


def _reference(name: str, recalls: dict[str, float]) -> list[str]:
    values = [text.percent(recalls[metric]) if metric in recalls else r"\textendash{}" for metric in METRICS]
    return ["", rf"\emph{{{latex(name)}}}", "", *values, "", ""]


def _line(cells: Sequence[str]) -> str:
    assert len(cells) == _COLUMNS
    return " & ".join(cells).strip() + r" \\"


def _notes(table: Table) -> Iterable[str]:
    """Table notes: the setting, the marks that occur, the tests, and what a reader must beware of."""
    facts = dict(table.facts)
    yield r"\begin{tablenotes}[flushleft]\scriptsize"
    setting = " ".join(f"{latex(term)}: {latex(facts[term])}" for term in _SETTING if term in facts)
    yield rf"\item {setting}"
    if "Marks" in facts:
        yield rf"\item {latex(facts['Marks'])}"
    for term in _TOLD:
        if term in facts:
            yield rf"\item {latex(term)}: {latex(facts[term])}"
    for note in table.notes:
        yield rf"\item {latex(note)}"
    yield r"\end{tablenotes}"
