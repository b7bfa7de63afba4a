"""Every row against every other: p-values, wins, groups, and how boards say it."""

import io
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from factories import make_ranks, put_record, three
from hypothesis import given, settings
from hypothesis import strategies as st

from petlbench.leaderboard import statistics
from petlbench.leaderboard.board import write_board
from petlbench.leaderboard.csv_writer import render_pairs
from petlbench.leaderboard.explain import Options
from petlbench.leaderboard.frame import to_json
from petlbench.leaderboard.markdown import render_markdown
from petlbench.leaderboard.pairs_frame import PAIR_COLUMNS, TABLE_COLUMNS, pairs_to_frame
from petlbench.leaderboard.pairwise import LEVEL, MAX_ROWS, enough_flips, groups_not_told_apart, win_shares
from petlbench.leaderboard.pairwise_text import explain_pairs, list_groups, rank_ranges
from petlbench.leaderboard.table import build_board


def symmetric(size, pairs):
    differs = np.zeros((size, size), dtype=bool)
    for i, j in pairs:
        differs[i, j] = differs[j, i] = True
    return differs


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Two rows of equal skill, and one far below."""
    root = tmp_path_factory.mktemp("results")
    three(root, 4.0, method="alpha")
    three(root, 4.1, 10, method="beta")
    three(root, 0.5, 20, method="gamma")
    return build_board(root)


# Tests of all pairs ---------------------------------------------------------------------------------------------------


def test_every_pair_agrees_with_enumerating_all_signs():
    scores = np.array([[3.0, 0.5, 2.0, 1.0, 0.0, 4.0], [1.0, 0.0, 2.5, 0.5, 0.0, 1.0], [0.0, 0.0, 0.2, 0.0, 0.0, 0.1]])
    found = statistics.sign_flip_pairs(scores, flips=20_000)
    signs = np.array(list(itertools.product([-1, 1], repeat=6)))
    for i, j in itertools.permutations(range(3), 2):
        difference = scores[i] - scores[j]
        exact = (np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9).mean()
        assert found[i, j] == pytest.approx(exact, abs=0.015)
    assert np.array_equal(found, found.T) and (np.diag(found) == 1).all()


def test_pairs_agree_with_the_test_of_one_difference_over_blocks_of_flips(monkeypatch):
    rng = np.random.default_rng(3)
    scores = rng.random((5, 400)) + np.array([[0.0], [0.0], [0.03], [0.05], [0.2]])
    monkeypatch.setattr(statistics, "_BLOCK", 400 * 700)  # several blocks, the last one shorter
    pairs = statistics.sign_flip_pairs(scores, flips=9_999)
    alone = statistics.sign_flip(scores[0] - scores[1:], flips=9_999)
    assert pairs[0, 1:] == pytest.approx(alone, abs=0.02)
    assert pairs[0, 4] == pytest.approx(1e-4)  # never 0


def test_pairs_are_deterministic_and_move_with_the_seed():
    scores = np.random.default_rng(0).random((4, 50))
    first, again, other = (statistics.sign_flip_pairs(scores, 999, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_rows_that_agree_on_every_image_do_not_differ():
    scores = np.tile(np.random.default_rng(0).random(30), (3, 1))
    assert (statistics.sign_flip_pairs(scores, 99) == 1).all()


@pytest.mark.parametrize("rows", [2, 10, 37, MAX_ROWS])
def test_there_are_enough_flips_for_a_pair_to_differ_after_the_correction(rows):
    pairs = rows * (rows - 1) // 2
    flips = enough_flips(pairs, statistics.FLIPS)
    smallest = np.ones(pairs)
    smallest[0] = 1 / (1 + flips)
    assert flips >= statistics.FLIPS and statistics.holm(smallest)[0] < LEVEL / 2


def test_wins_by_hand():
    scores = np.array([[1.0, 2.0, 3.0, 0.0], [1.0, 1.0, 1.0, 1.0 + 1e-12]])
    assert win_shares(scores).tolist() == [[0.0, 50.0], [25.0, 0.0]]
    assert win_shares(np.array([[1.0], [1.0 + 1e-12]])).max() == 0  # rounding noise makes no winner


# Groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "groups"),
    [
        ([], ((0, 1, 2, 3),)),
        ([(0, 3)], ((0, 1, 2), (1, 2, 3))),
        ([(0, 2), (0, 3), (1, 3)], ((0, 1), (1, 2), (2, 3))),
        ([(0, 2)], ((0, 1, 3), (1, 2, 3))),  # the third row differs from the first, the fourth does not
        (list(itertools.combinations(range(4), 2)), ((0,), (1,), (2,), (3,))),
    ],
)
def test_groups_by_hand(pairs, groups):
    assert groups_not_told_apart(symmetric(4, pairs)) == groups


@settings(max_examples=60)
@given(st.integers(1, 9), st.data())
def test_two_rows_differ_exactly_where_no_group_holds_both(size, data):
    every = list(itertools.combinations(range(size), 2))
    chosen = data.draw(st.lists(st.sampled_from(every), unique=True)) if every else []
    differs = symmetric(size, chosen)
    groups = [set(group) for group in groups_not_told_apart(differs)]
    for i, j in every:
        assert any({i, j} <= group for group in groups) == (not differs[i, j])
    assert not any(a < b for a in groups for b in groups)  # none within another
    assert set.union(*groups) == set(range(size))


@pytest.mark.parametrize(
    ("ranks", "said"), [([1], "1"), ([2, 1], "1, 2"), ([1, 2, 3, 5, 7, 8], "1 to 3, 5, 7, 8"), ([], "")]
)
def test_ranks_in_words(ranks, said):
    assert rank_ranges(ranks) == said


# Boards ---------------------------------------------------------------------------------------------------------------


def test_equal_methods_share_a_group_and_a_weak_one_stands_alone(board):
    (table,) = board.tables
    pairs = table.pairs
    assert [row.label for row in pairs.rows][2] == "gamma"
    assert pairs.groups == ((0, 1), (2,))
    assert pairs.differs.tolist() == [[False, False, True], [False, False, True], [True, True, False]]
    assert pairs.difference[0, 2] == pytest.approx(pairs.rows[0].mean["mR"] - pairs.rows[2].mean["mR"])
    assert np.array_equal(pairs.difference, -pairs.difference.T)
    assert (pairs.wins + pairs.wins.T <= 100 + 1e-9).all() and pairs.wins[0, 2] > 70
    assert table.pairs is pairs  # made once


def test_correcting_for_all_pairs_never_lowers_a_p_value(board):
    (table,) = board.tables
    for place, row in enumerate(table.pairs.rows[1:], start=1):
        assert table.pairs.p_holm[0, place] >= row.p_holm - 0.02  # other flips, hence the margin


def test_rows_without_ranks_are_named_and_a_single_row_has_no_pairs(tmp_path):
    three(tmp_path, 3.0, method="alpha")
    assert build_board(tmp_path).tables[0].pairs is None
    three(tmp_path, 2.0, 10, method="beta")
    put_record(tmp_path, make_ranks(1.0), method="gamma", with_ranks=False)
    pairs = build_board(tmp_path).tables[0].pairs
    assert [row.label for row in pairs.left_out] == ["gamma"] and len(pairs.rows) == 2


def test_options_reach_the_tests(tmp_path):
    three(tmp_path, 3.0, method="alpha")
    three(tmp_path, 2.0, 10, method="beta")
    assert build_board(tmp_path, Options(flips=12_345)).tables[0].pairs.flips == 12_345


def test_markdown_says_which_rows_cannot_be_told_apart(board):
    markdown = render_markdown(board)
    first, second = (row.label for row in board.tables[0].pairs.rows[:2])
    assert "**Rows that cannot be told apart.** Each row against each other" in markdown
    assert f"- ranks 1, 2 ({first}, {second})\n" in markdown
    assert "- Differing from every other row: rank 3 (gamma)." in markdown
    assert "Holm-corrected over 3 pairs" in markdown


def test_words_for_no_difference_and_for_nothing_but_differences(tmp_path):
    three(tmp_path, 3.0, method="alpha")
    three(tmp_path, 3.0, method="beta")
    pairs = build_board(tmp_path).tables[0].pairs
    assert list_groups(pairs) == ["No two of these rows differ."]
    assert "Correcting for all pairs" not in explain_pairs(pairs)  # one pair needs no such remark
    three(tmp_path, 0.2, method="gamma")
    (tmp_path / "other").mkdir()
    three(tmp_path / "other", 5.0, method="alpha")
    three(tmp_path / "other", 0.2, 10, method="beta")
    assert list_groups(build_board(tmp_path / "other").tables[0].pairs) == ["Every two of these rows differ."]


def test_csv_and_json_hold_every_pair(board, tmp_path):
    frame = pd.read_csv(io.StringIO(render_pairs(board)))
    assert list(frame.columns) == [*TABLE_COLUMNS, *PAIR_COLUMNS] and len(frame) == 3
    row = frame.iloc[1]
    pairs = board.tables[0].pairs
    assert (row.rank_a, row.rank_b, row.label_b) == (1, 3, "gamma") and bool(row.differs)
    assert row.images_a_better_pct == pytest.approx(pairs.wins[0, 2])
    assert row.mR_difference_pp == pytest.approx(pairs.difference[0, 2])
    part = json.loads(to_json(board))["tables"][0]["comparison_of_all_pairs"]
    assert part["tests"] == 3 and part["not_told_apart"][1] == ["gamma"]
    assert [pair["p_holm_all_pairs"] for pair in part["pairs"]] == frame.p_holm_all_pairs.tolist()
    (path,) = write_board(board, tmp_path, formats=["pairs"])
    assert path.name == "board_pairs.csv" and path.read_text() == render_pairs(board)


def test_an_empty_board_has_the_columns_too(tmp_path):
    assert list(pairs_to_frame(build_board(tmp_path)).columns) == [*TABLE_COLUMNS, *PAIR_COLUMNS]
