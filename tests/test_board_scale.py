"""What keeps boards of many records fast: valid benchmark records, and the paused collector."""

import gc
import importlib.util

import pytest
from support import ROOT

from petlbench.leaderboard.board import write_board
from petlbench.leaderboard.collector import collector_paused
from petlbench.leaderboard.table import build_board


def test_the_benchmark_measures_valid_records_with_and_without_ranks(tmp_path):
    spec = importlib.util.spec_from_file_location("aggregate", ROOT / "benchmarks" / "aggregate.py")
    aggregate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(aggregate)
    assert aggregate.generate(tmp_path, 205, 0.5) == 100  # row 0 of 20 tables has none, row 1 has, row 2 has begun
    board = build_board(tmp_path)
    assert not any(problem.unreadable for problem in board.problems) and len(board.problems) == 105
    assert len(board.tables) == 20
    assert sum(row.n for table in board.tables for row in table.rows) == 205
    assert [row.interval is not None for row in sorted(board.tables[-1].rows, key=lambda row: row.label)] == [
        False,
        True,
    ]


def test_the_collector_is_paused_only_within():
    assert gc.isenabled()
    with pytest.raises(KeyError), collector_paused():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()  # who had it off keeps it off
    finally:
        gc.enable()


def test_writing_a_board_leaves_the_collector_on(tmp_path):
    write_board(tmp_path, tmp_path / "out")
    assert gc.isenabled()
