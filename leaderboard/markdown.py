"""A board as GitHub-flavoured Markdown. Everything that comes from records is escaped here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tabulate import tabulate

from petlbench.harness.metrics import DEFINITION, METRIC_VERSION
from petlbench.leaderboard import text
from petlbench.leaderboard.emphasis import Top, tops
from petlbench.leaderboard.explain import FEW_SEEDS, SEEDS_OVERLAP, WITHIN_NOISE
from petlbench.leaderboard.load import METRICS
from petlbench.leaderboard.pairwise import Pairwise
from petlbench.leaderboard.pairwise_text import HEADING, explain_pairs, list_groups
from petlbench.leaderboard.row import Row
from petlbench.leaderboard.scoring import SHORTLISTED
from petlbench.leaderboard.summary import NO_TRIAL, SEE_REASONS, SEPARATE, counted, problem_lines, unreadable
from petlbench.leaderboard.table import Board, Failure, Table

NAMES = {metric: text.metric(metric) for metric in METRICS}

_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("scoring", lambda row: text.markdown(row.scoring)),
    ("ms/query", lambda row: text.milliseconds(row.query.t2i_s if row.query else None)),
    ("trained params", lambda row: text.count(row.trained)),
    ("% of total", lambda row: text.share(row.trained, row.total)),
    ("stored", lambda row: text.size(row.stored_bytes)),
    ("peak memory", lambda row: text.unless(row.no_memory, text.size(row.peak_memory))),
    ("train samples/s", lambda row: text.unless(row.no_seconds, text.quantity(row.samples_per_s))),
    ("train s", lambda row: text.unless(row.no_seconds, text.quantity(row.train_s))),
    ("selection", lambda row: text.markdown(", ".join(row.rules))),
    ("tuning trials", lambda row: text.ranges(row.tuning_trials)),
)
_BEFORE = ("#", "method", "title", *NAMES.values(), "mR 95 %", "n")


def marks(row: Row) -> str:
    """The marks behind a row's name."""
    noise = WITHIN_NOISE if row.within_noise else SEEDS_OVERLAP if row.seeds_overlap else ""
    return noise + SHORTLISTED * (row.two_stage is not None) + FEW_SEEDS * row.few_seeds


def render_markdown(board: Board) -> str:
    """The whole board; equal boards give equal text."""
    parts = ["# Leaderboard", _summary(board)]
    for table in board.tables:
        parts += _table(table)
    if not board.tables:
        parts.append(NO_TRIAL)
    if board.failures:
        parts += ["## Failed and stopped trials", "These are not ranked.", _failures(board.failures)]
    if board.problems:
        parts += ["## Files with problems", _problems(board)]
    parts += [f"## How recall is measured (metric version {METRIC_VERSION})", DEFINITION]
    return "\n\n".join(parts) + "\n"


def _summary(board: Board) -> str:
    lines = [counted(board)]
    if left_out := unreadable(board):
        lines.append(f"**{left_out}** and are left out (see below).")
    return " ".join([*lines, SEPARATE])


def _table(table: Table) -> list[str]:
    facts = "\n".join(f"- **{term}**: {text.markdown(said)}" for term, said in table.facts)
    best = tops(table.rows)
    body = [_cells(row, best) for row in table.rows]
    for reference in table.references:
        recalls = [text.percent(reference.recalls.get(metric)) for metric in METRICS]
        body.append(_italic([text.NOTHING, text.markdown(reference.name), "", *recalls]))
    headers = [*_BEFORE, *(name for name, _ in _COLUMNS)]
    parts = [f"## {text.markdown(table.title)}", facts, _pipe(body, headers, right=len(METRICS) + 3)]
    if table.notes:
        parts.append("\n".join(f"- Note: {text.markdown(note)}" for note in table.notes))
    if table.pairs is not None:
        parts += _pairs(table.pairs)
    if any(row.other_rules for row in table.rows):
        parts.append(_other_rules(table))
    return parts


def _pairs(pairs: Pairwise) -> list[str]:
    lines = "\n".join(f"- {text.markdown(line)}" for line in list_groups(pairs))
    return [f"**{HEADING}.** {text.markdown(explain_pairs(pairs))}", lines]


def _cells(row: Row, best: dict[str, Top]) -> list[str]:
    shown = {metric: text.spread(row.mean[metric], row.sd[metric]) for metric in METRICS}
    recalls = [
        f"**{cell}**" if best[metric].place(row.mean[metric]) == "best" else cell for metric, cell in shown.items()
    ]
    name = f"{text.markdown(row.label)} {marks(row)}".rstrip()
    sizes = [cell(row) for _, cell in _COLUMNS]
    return [str(row.rank), name, text.markdown(row.title), *recalls, text.interval(row.interval), str(row.n), *sizes]


def _italic(cells: Sequence[str]) -> list[str]:
    padded = [*cells, *[text.NOTHING] * (len(_BEFORE) + len(_COLUMNS) - len(cells))]
    return [f"*{cell}*" if cell not in ("", text.NOTHING) else cell for cell in padded]


def _other_rules(table: Table) -> str:
    body = []
    for row in table.rows:
        name = f"{text.markdown(row.label)} {SHORTLISTED * (row.two_stage is not None)}".rstrip()
        for rule, recalls in row.other_rules.items():
            values = [text.percent(recalls[metric]) for metric in METRICS]
            body.append([name, text.markdown(rule), *values])
    inner = _pipe(body, ["method", "tie rule", *NAMES.values()], right=len(METRICS), skip=2)
    return (
        f"<details><summary>The same recalls under other tie rules (mean over seeds)</summary>\n\n{inner}\n\n</details>"
    )


def _failures(failures: Sequence[Failure]) -> str:
    body = []
    for entry, reason in failures:
        spec = entry.record.spec
        named = [spec[part]["name"] for part in ("method", "dataset", "backbone")]
        cells = [*named, spec["seed"], entry.record.status, text.shorten(reason), entry.name]
        body.append([text.markdown(cell) for cell in cells])
    return _pipe(body, ["method", "data set", "backbone", "seed", "status", "reason", "record"], right=0)


def _problems(board: Board) -> str:
    lines = [f"- {text.markdown(name)}: {outcome}" for name, outcome in problem_lines(board)]
    return "\n".join(lines) + f"\n\n{SEE_REASONS}"


def _pipe(body: Sequence[Sequence[str]], headers: Sequence[str], right: int, skip: int = 3) -> str:
    """A pipe table; after ``skip`` columns of text come ``right`` columns of numbers."""
    align = ["left"] * skip + ["right"] * right
    align += ["right" if skip + right else "left"] * (len(headers) - len(align))
    if not right:
        align = ["left"] * len(headers)
    return tabulate(body, headers=headers, tablefmt="pipe", disable_numparse=True, colalign=align)
