"""Boards on which dot products, exact pair scorers and shortlists stand together: labels, costs, marks, notes."""

import io
import json
import re

import pandas as pd
import pytest
from factories import edit, make_ranks, md_rows, put_record, query_part, reranks, scores_pairs, three, two_stage_part
from rich.console import Console
from support import ROOT

from petlbench.harness.record import MetricsPart
from petlbench.leaderboard import text
from petlbench.leaderboard.console import render_console
from petlbench.leaderboard.csv_writer import render_csv
from petlbench.leaderboard.frame import to_frame, to_json
from petlbench.leaderboard.markdown import render_markdown
from petlbench.leaderboard.scoring import label
from petlbench.leaderboard.table import build_board

DOUBLE_DAGGER = "‡"


@pytest.fixture
def mixed(tmp_path):
    """Three kinds of scoring, three seeds each, on one backbone and one test split."""
    three(tmp_path, 1.5, method="dual")
    three(tmp_path, 2.5, base=10, method="fusion", change=scores_pairs)
    three(tmp_path, 2.2, base=20, method="fusion", change=reranks())
    return tmp_path


def header(markdown):
    (line,) = [line for line in markdown.splitlines() if line.startswith("| #")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def column(markdown, name):
    """Method to cell of one column of the only table."""
    place = header(markdown).index(name)
    rows = [cells for cells in md_rows(markdown, "") if len(cells) == len(header(markdown)) and cells[0].isdigit()]
    return {cells[1]: cells[place] for cells in rows}


def test_the_three_kinds_of_scoring_share_a_table_and_each_row_says_its_own(mixed):
    board = build_board(mixed)
    (table,) = board.tables
    assert [(row.rank, row.label, row.scoring) for row in table.rows] == [
        (1, "fusion (scoring=every pair)", "every pair"),
        (2, "fusion (scoring=top-32 of own cosine)", "top-32 of own cosine"),
        (3, "dual", "dot product"),
    ]
    assert all(row.interval is not None for row in table.rows)  # statistics know no kinds of scoring
    assert table.rows[2].p_holm == pytest.approx(2 / 10_000)
    markdown = render_markdown(board)
    assert list(column(markdown, "scoring").values()) == ["every pair", "top-32 of own cosine", "dot product"]


def test_only_shortlist_rows_carry_the_mark_in_markdown_and_console(mixed):
    board = build_board(mixed)
    markdown = render_markdown(board)
    names = list(column(markdown, "scoring"))
    assert [DOUBLE_DAGGER in name for name in names] == [False, True, False]
    assert f"{DOUBLE_DAGGER} only a shortlist was scored" in dict(board.tables[0].facts)["Marks"]
    details = re.search(r"<details>.*?</details>", markdown, re.DOTALL)[0]
    assert all((DOUBLE_DAGGER in line) is ("top-32" in line) for line in details.splitlines())
    assert details.count(DOUBLE_DAGGER) == 4  # one per other tie rule
    console = Console(file=io.StringIO(), width=200)
    render_console(board.tables, console)
    shown = console.file.getvalue()
    marked = [line for line in shown.splitlines() if DOUBLE_DAGGER in line and "│" in line]
    assert len(marked) == 1 and "top-32 of own cosine" in marked[0]
    assert "bounds the recalls" in shown and "recall@32" in shown


def test_the_mark_stands_beside_other_marks(tmp_path):
    put_record(tmp_path, make_ranks(2.5, 0), method="fusion", change=reranks())
    markdown = render_markdown(build_board(tmp_path))
    assert list(column(markdown, "scoring")) == [f"fusion {DOUBLE_DAGGER}†"]


def test_facts_explain_the_kinds_of_scoring_that_occur_and_no_others(mixed, tmp_path):
    facts = dict(build_board(mixed).tables[0].facts)
    assert re.findall(r"(?:^|; )(dot product|every pair|top-k of a first stage):", facts["Scoring"]) == [
        "dot product",
        "every pair",
        "top-k of a first stage",
    ]
    assert "among the 40 test pictures" in facts["ms/query"] and "encoded beforehand" in facts["ms/query"]
    alone = tmp_path / "alone"
    three(alone, 2.0)
    said = dict(build_board(alone).tables[0].facts)
    assert said["Scoring"].startswith("dot product:") and "pair:" not in said["Scoring"]
    assert DOUBLE_DAGGER not in render_markdown(build_board(alone))


def test_a_shortlist_row_has_a_note_with_its_bound_and_its_loss_over_the_seeds(tmp_path):
    bounds = [{"i2t_rk": 96.0, "t2i_rk": 91.0}, {"i2t_rk": 97.0, "t2i_rk": 92.0}, {"i2t_rk": 98.0, "t2i_rk": 94.5}]
    for seed, bound in enumerate(bounds):
        put_record(tmp_path, make_ranks(2.2, seed), seed=seed, method="fusion", change=reranks(bound=bound))
    (note,) = build_board(tmp_path).tables[0].notes
    assert note.startswith(
        f"fusion {DOUBLE_DAGGER}: only the 32 best candidates of each query by own cosine were scored as pairs"
    )
    assert "(7,680 pairs, means over 3 seeds)" in note
    assert (
        "recall@32, which bounds this row's recalls at cut-offs up to 32, is 97.00 % image to text and 92.50 %" in note
    )
    assert "16 pictures and 32 captions gave" in note
    assert "i2t R@1 40.00 with every pair, 38.75 with the shortlist (-1.25)" in note
    assert "t2i R@1 30.00 with every pair, 30.50 with the shortlist (+0.50)" in note
    assert "mR 59.00 with every pair, 58.88 with the shortlist (-0.12)" in note


def test_a_loss_that_nobody_measured_is_said_to_be_unknown(tmp_path):
    change = reranks(sample=None, first_stage="lora on vit-x, seed 0", first_stage_spec_id="c" * 64)
    put_record(tmp_path, make_ranks(2.2), method="fusion", change=change)
    (note,) = build_board(tmp_path).tables[0].notes
    assert "by lora on vit-x, seed 0 (spec cccccccc) were scored" in note
    assert note.endswith("is unknown: no sample of queries was scored both ways.")


def test_another_shortlist_is_another_row(tmp_path):
    put_record(tmp_path, make_ranks(2.0, 0), seed=0, method="fusion", change=reranks())
    put_record(tmp_path, make_ranks(2.0, 1), seed=1, method="fusion", change=reranks(k=8))
    put_record(
        tmp_path, make_ranks(2.0, 2), seed=2, method="fusion", change=reranks(first_stage="lora on vit-x, seed 0")
    )
    rows = build_board(tmp_path).tables[0].rows
    assert {row.label for row in rows} == {
        f"fusion (scoring=top-{what})"
        for what in ("32 of own cosine", "8 of own cosine", "32 of lora on vit-x, seed 0")
    }
    assert all(row.n == 1 for row in rows)


def test_a_query_is_shown_in_milliseconds_and_unknown_in_older_records(mixed):
    shown = column(render_markdown(build_board(mixed)), "ms/query")
    assert list(shown.values()) == ["13", "10.5", "–"]
    (row, *_) = build_board(mixed).tables[0].rows
    assert row.query.t2i_s == pytest.approx(0.013) and row.query.pairs_per_query_t2i == 40


def test_query_costs_are_means_over_the_seeds_that_state_them(tmp_path):
    for seed, seconds in enumerate((0.002, None, 0.004)):
        part = None if seconds is None else query_part(t2i_s=seconds)
        put_record(tmp_path, make_ranks(2.0, seed), seed=seed, change=lambda p, part=part: p["cost"].update(query=part))
    assert list(column(render_markdown(build_board(tmp_path)), "ms/query").values()) == ["3"]


def test_query_costs_of_other_conditions_get_the_footnote(tmp_path):
    put_record(tmp_path, change=lambda p: p["cost"].update(query=query_part()))
    put_record(tmp_path, method="prompt", change=lambda p: p["cost"].update(query=query_part(), threads=8))
    (note,) = build_board(tmp_path).tables[0].notes
    assert "seconds and ms/query do not compare across all rows" in note and "threads: 1 (lora)" in note


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "–"), (0.0, "0"), (1.23456e-4, "0.123"), (4e-7, "<0.001"), (0.0999, "99.9"), (12.3456, "12,346")],
)
def test_milliseconds_for_people(seconds, shown):
    assert text.milliseconds(seconds) == shown


def test_a_first_stage_is_named_without_effect(tmp_path):
    hostile = "<b>x</b> a|b `c` [y](http://evil.example) *d*\n# h \u202e" + "z" * 200
    put_record(tmp_path, make_ranks(2.2), method="fusion", change=reranks(first_stage=hostile))
    put_record(tmp_path, make_ranks(2.5), method="fusion", change=scores_pairs)
    markdown = render_markdown(build_board(tmp_path))
    assert "<b>" not in markdown and "\u202e" not in markdown and "\n# h" not in markdown and "http:" not in markdown
    assert not re.search(r"(?<!\\)\]\(", markdown)
    assert "z" * 100 not in markdown
    cell = md_rows(markdown, "fusion (scoring=top")[0][header(markdown).index("scoring")]
    assert cell.startswith("top-32 of &lt;b&gt;x&lt;/b&gt; a\\|b \\`c\\`")
    put_record(tmp_path / "formula", make_ranks(2.2), change=reranks(first_stage="=1+1"))
    frame = pd.read_csv(io.StringIO(render_csv(build_board(tmp_path / "formula"))))
    assert frame["first_stage"][0] == "'=1+1"


def test_labels_by_hand():
    plain = {"recalls": {}, "tie_rule": "index", "metric_version": 1}
    shortlist = MetricsPart(**plain, scoring="two_stage", two_stage=two_stage_part(k=5, first_stage=" lora \n on x "))
    assert label(MetricsPart(**plain)) == "dot product"
    assert label(MetricsPart(**plain, scoring="pairs")) == "every pair"
    assert label(shortlist) == "top-5 of lora on x"


def test_csv_and_json_hold_scoring_shortlist_and_query_of_every_row(mixed):
    board = build_board(mixed)
    frame = pd.read_csv(io.StringIO(render_csv(board)))
    assert frame["scoring"].tolist() == ["pairs", "two_stage", "embeddings"]
    exact, shortlist, dual = (frame.iloc[place] for place in range(3))
    assert shortlist["two_stage_k"] == 32 and shortlist["first_stage"] == "own cosine"
    assert shortlist["first_stage_i2t_recall_at_k_pct"] == 96.25
    assert shortlist["first_stage_t2i_recall_at_k_pct"] == 91.5
    assert (shortlist["sample_images"], shortlist["sample_captions"]) == (16, 32)
    assert (shortlist["sample_exact_mR_pct"], shortlist["sample_two_stage_mR_pct"]) == (59.0, 58.875)
    assert shortlist["query_t2i_pairs"] == 32 and shortlist["query_t2i_s"] == pytest.approx(0.0105)
    assert exact["query_t2i_s"] == pytest.approx(0.013) and exact["query_i2t_s"] == pytest.approx(0.0797)
    assert exact[["two_stage_k", "first_stage", "sample_images"]].isna().all()
    assert dual[["two_stage_k", "query_t2i_s", "query_i2t_s", "pair_s"]].isna().all()
    assert ",32,own cosine," in render_csv(board)  # whole numbers stay whole beside missing ones
    rows = json.loads(to_json(board), parse_constant=pytest.fail)["tables"][0]["rows"]
    assert [(row["scoring"], row["two_stage_k"]) for row in rows] == [
        ("pairs", None),
        ("two_stage", 32),
        ("embeddings", None),
    ]
    assert rows[2]["query_t2i_s"] is None


def test_records_from_before_pair_scorers_are_dot_products_of_unknown_query_cost(tmp_path):
    for path in three(tmp_path, 2.0):
        edit(path, lambda p: (p["cost"].pop("query"), p["metrics"]["test"].pop("two_stage")))
        edit(path, lambda p: p["metrics"]["test"].pop("scoring"))
    board = build_board(tmp_path)
    assert board.problems == [] and board.tables[0].notes == []
    markdown = render_markdown(board)
    assert column(markdown, "scoring") == {"lora": "dot product"} and column(markdown, "ms/query") == {"lora": "–"}


def test_committed_records_stand_on_boards_with_their_scoring():
    board = build_board(ROOT / "results")
    assert board.problems == []
    rows = [row for table in board.tables for row in table.rows]
    frame = to_frame(board)
    assert len(frame) == len(rows) > 0
    kinds = {"embeddings": "dot product", "pairs": "every pair", "two_stage": "top-"}
    for row, kind in zip(rows, frame["scoring"], strict=True):
        assert row.scoring.startswith(kinds[kind])
