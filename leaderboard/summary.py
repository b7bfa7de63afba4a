"""The first sentences of a board, and what it says about files it could not use; plain text."""

from __future__ import annotations

from petlbench.leaderboard.table import Board

SEPARATE = "Rows of different splits, backbones, selection rules or metrics never share a table."
NO_TRIAL = "No finished trial yet: run `benchmark run`, then `benchmark leaderboard`."
SEE_REASONS = "`benchmark leaderboard` prints the reasons and what to do."


def counted(board: Board) -> str:
    """How many trials and tables there are, in a sentence."""
    trials = len({entry.name for table in board.tables for row in table.rows for entry in row.group.entries})
    tables = len(board.tables)
    return (
        f"{trials:,} finished trial{'s' * (trials != 1)} in {tables:,} table{'s' * (tables != 1)}; "
        f"{len(board.failures):,} failed or stopped."
    )


def unreadable(board: Board) -> str:
    """How many record files could not be read, without a verb; empty where all could."""
    found = len({problem.name for problem in board.problems if problem.unreadable})
    return f"{found:,} record file{'s' * (found > 1)} could not be read" if found else ""


def problem_lines(board: Board) -> list[tuple[str, str]]:
    """File and what became of it, sorted by file."""
    whole = {problem.name for problem in board.problems if problem.unreadable}
    return [
        (name, "record left out" if name in whole else "no interval and no test for its row")
        for name in sorted({problem.name for problem in board.problems})
    ]
