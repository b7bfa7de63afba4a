"""What the comparison of all pairs of a table says, as plain text (the writers escape it)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from petlbench.leaderboard.pairwise import LEVEL, MAX_ROWS, Pairwise
from petlbench.leaderboard.row import Row

HEADING = "Rows that cannot be told apart"

_NAMED = 4
"""Groups of at most this many rows are listed by name, larger ones by rank."""
_SHOWN = 12


def explain_pairs(pairs: Pairwise) -> str:
    """How the rows were compared, and how to read :func:`list_groups`."""
    tests = f"{pairs.pairs:,} pair{'s' * (pairs.pairs != 1)}"
    said = [
        f"Each row against each other: paired sign-flip test over the {pairs.images:,} test images ({pairs.flips:,} "
        f"flips), Holm-corrected over {tests}, level {100 * LEVEL:g} %. Two rows differ where no group holds both."
    ]
    if pairs.pairs > 1:
        said.append(
            "Correcting for all pairs asks for more than the test against the best row alone, so a row that differs "
            "from the best there may share its group here."
        )
    if beyond := [row for row in pairs.left_out if row.contributions is not None]:
        said.append(f"Only the best {MAX_ROWS} rows were compared; {len(beyond)} more were not.")
    return " ".join(said)


def list_groups(pairs: Pairwise) -> list[str]:
    """One line per group of rows, best first: ranks, and names where they are few."""
    if not pairs.differs.any():
        return ["No two of these rows differ."]
    shared = [group for group in pairs.groups if len(group) > 1]
    if not shared:
        return ["Every two of these rows differ."]
    lines = [describe_group([pairs.rows[i] for i in group]) for group in shared[:_SHOWN]]
    if len(shared) > _SHOWN:
        lines.append(f"{len(shared) - _SHOWN} more groups, see board_pairs.csv.")
    alone = [pairs.rows[group[0]] for group in pairs.groups if len(group) == 1]
    if alone:
        lines.append(f"Differing from every other row: {describe_group(alone)}.")
    return lines


def describe_group(rows: Sequence[Row]) -> str:
    """``ranks 1 to 4, 6 to 9``, or ``ranks 1, 2 (lora, full_finetune)``."""
    ranks = f"rank{'s' * (len(rows) > 1)} {rank_ranges(row.rank for row in rows)}"
    return f"{ranks} ({', '.join(row.label for row in rows)})" if len(rows) <= _NAMED else ranks


def rank_ranges(ranks: Iterable[int]) -> str:
    """``1 to 4, 6`` for 1, 2, 3, 4, 6; runs of two are not worth a word."""
    ordered = sorted(ranks)
    runs: list[list[int]] = [[rank] for rank in ordered[:1]]
    for before, rank in pairwise(ordered):
        if rank == before + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
