"""Folder of records to board: grouping, tables, marks, reports of what is wrong, writers."""

import json
import re

import numpy as np
import pytest
from factories import IMAGES, edit, make_ranks, md_rows, put_failed, put_record, ranks_from, three

from petlbench.harness.metrics import Ranks
from petlbench.leaderboard import text
from petlbench.leaderboard.csv_writer import render_csv
from petlbench.leaderboard.explain import Options
from petlbench.leaderboard.frame import to_frame
from petlbench.leaderboard.load import METRICS, load_records
from petlbench.leaderboard.markdown import render_markdown
from petlbench.leaderboard.table import build_board, chance


def only_table(root):
    board = build_board(root)
    assert [p.message for p in board.problems] == []
    (table,) = board.tables
    return table


def row_of(table, label):
    return next(row for row in table.rows if row.label == label)


# Grouping -------------------------------------------------------------------------------------------------------------


def test_seeds_of_one_spec_make_one_row_with_mean_and_sample_deviation(tmp_path):
    paths = three(tmp_path, 2.0)
    (row,) = only_table(tmp_path).rows
    scores = [json.loads(p.read_text())["metrics"]["test"]["recalls"]["mR"] for p in paths]
    assert row.n == 3 and row.group.seeds == (0, 1, 2)
    assert row.mean["mR"] == pytest.approx(sum(scores) / 3)
    mean = sum(scores) / 3
    assert row.sd["mR"] == pytest.approx((sum((s - mean) ** 2 for s in scores) / 2) ** 0.5)
    assert row.train_s == pytest.approx(13.0)  # 12, 13, 14


def test_two_configurations_of_a_method_are_two_rows_named_by_what_differs(tmp_path):
    three(tmp_path, 2.0, options={"rank": 8})
    three(tmp_path, 2.5, base=10, options={"rank": 16})
    three(tmp_path, 2.2, base=20, method="prompt")
    assert {row.label for row in only_table(tmp_path).rows} == {"lora (rank=8)", "lora (rank=16)", "prompt"}


def test_a_label_keeps_sections_apart_where_the_short_key_would_be_ambiguous(tmp_path):
    def more(payload):
        payload["spec"]["train"]["rank"] = 2

    put_record(tmp_path, make_ranks(2.0))
    put_record(tmp_path, make_ranks(2.5), options={"rank": 16}, change=more)
    assert {row.label for row in only_table(tmp_path).rows} == {
        "lora (method.options.rank=8, train.rank=unset)",
        "lora (method.options.rank=16, train.rank=2)",
    }


def test_code_of_another_origin_is_another_row(tmp_path):
    put_record(tmp_path, make_ranks(2.0, 0), seed=0)
    put_record(tmp_path, make_ranks(2.0, 1), seed=1, change=lambda p: p["method"].update(origin="mine.py"))
    table = only_table(tmp_path)
    assert [row.n for row in table.rows] == [1, 1]
    assert len({row.label for row in table.rows}) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["backbone"].update(sha256="f" * 64),
        lambda p: p["backbone"].update(activation="gelu"),
        lambda p: p["backbone"].update(resolution=256),
        lambda p: p["backbone"].update(mean=[0.0, 0.0, 0.0]),
        lambda p: p["data"]["splits"]["test"].update(sha256="f" * 64),
        lambda p: p["data"]["splits"]["train"].update(sha256="f" * 64),
        lambda p: p["data"]["splits"].update(val={**p["data"]["splits"]["train"], "sha256": "f" * 64}),
        lambda p: p["data"].update(name="other"),
        lambda p: p["selection"].update(rule="last"),
        lambda p: p["selection"].update(rule="test_max"),
        lambda p: p["metrics"]["test"].update(tie_rule="expected"),
        lambda p: p["metrics"]["test"].update(metric_version=99),
    ],
)
def test_what_cannot_be_compared_never_shares_a_table(tmp_path, change):
    three(tmp_path, 2.0)
    three(tmp_path, 2.5, base=10, method="prompt", change=change)
    tables = build_board(tmp_path).tables
    assert [[row.group.method for row in t.rows] for t in sorted(tables, key=lambda t: t.rows[0].label)] == [
        ["lora"],
        ["prompt"],
    ]
    assert all(table.rows[0].rank == 1 for table in tables)


def test_the_name_of_a_backbone_does_not_split_a_table_but_its_weights_do(tmp_path):
    put_record(tmp_path, make_ranks(2.0), backbone="b1", change=lambda p: p["backbone"].update(sha256="e" * 64))
    put_record(
        tmp_path,
        make_ranks(2.1),
        backbone="b2",
        method="prompt",
        change=lambda p: p["backbone"].update(sha256="e" * 64),
    )
    assert only_table(tmp_path).backbone == "b1, b2"


def test_rows_in_which_nothing_was_chosen_join_every_selection_rule(tmp_path):
    put_record(tmp_path, make_ranks(1.0), method="zero-shot", rule="none")
    assert [t.setting.rule for t in build_board(tmp_path).tables] == ["none"]
    put_record(tmp_path, make_ranks(2.0))
    put_record(tmp_path, make_ranks(2.2), method="prompt", rule="test_max")
    tables = build_board(tmp_path).tables
    assert [(t.setting.rule, [r.label for r in t.rows]) for t in tables] == [
        ("best_val", ["lora", "zero-shot"]),
        ("test_max", ["prompt", "zero-shot"]),
    ]
    assert "optimistic" in dict(tables[1].facts)["Selection"]
    assert tables[0].rows[1] is not tables[1].rows[1]
    assert len(to_frame(build_board(tmp_path))) == 4
    assert "3 finished trials in 2 tables" in render_markdown(build_board(tmp_path))


# Ranking, intervals, tests --------------------------------------------------------------------------------------------


def test_rows_are_ranked_by_mean_mr_and_near_ties_are_marked(tmp_path):
    three(tmp_path, 2.5, base=0, method="a")
    three(tmp_path, 2.5, base=40, method="b")
    three(tmp_path, 0.5, base=80, method="weak")
    table = only_table(tmp_path)
    assert [row.rank for row in table.rows] == [1, 2, 3]
    assert table.rows[0].mean["mR"] >= table.rows[1].mean["mR"] > table.rows[2].mean["mR"]
    assert table.rows[0].p_holm is None
    assert table.rows[1].within_noise and not table.rows[2].within_noise
    # The smallest p a sign-flip test of 9,999 flips can give, times two comparisons.
    assert table.rows[2].p_holm == pytest.approx(2 / 10_000)
    markdown = render_markdown(build_board(tmp_path))
    assert md_rows(markdown, table.rows[1].label)[0][1].endswith("≈")
    assert "≈" not in md_rows(markdown, "weak")[0][1]
    assert "Holm-corrected over the table's 2 comparisons" in markdown


def test_the_interval_covers_the_mean_and_repeats_and_follows_the_options(tmp_path):
    three(tmp_path, 2.0)
    (row,) = only_table(tmp_path).rows
    low, high = row.interval
    assert low < row.mean["mR"] < high
    assert high - low < 20
    assert only_table(tmp_path).rows[0].interval == row.interval
    assert build_board(tmp_path, Options(seed=1)).tables[0].rows[0].interval != row.interval
    with pytest.raises(ValueError, match="resamples is 0, expected at least 1"):
        Options(resamples=0)


def test_contributions_are_averaged_over_seeds_before_images_are_drawn(tmp_path):
    """Half the images are found by seed 0 only, the others by seeds 1 and 2: the average spreads less than any seed."""
    n = IMAGES
    for seed in range(3):
        miss = np.where((np.arange(n) % 2 == 0) == (seed == 0), 0, n - 1)
        put_record(tmp_path, ranks_from(np.arange(n), miss, miss), seed=seed)
    (row,) = only_table(tmp_path).rows
    assert row.mean["mR"] == pytest.approx(50.0)
    low, high = row.interval  # Each image scores 1/3 or 2/3: standard error 100 / 6 / sqrt(40) = 2.6
    assert 44 < low < 46 and 54 < high < 56


@pytest.mark.parametrize(("seeds", "dagger"), [(1, True), (2, True), (3, False)])
def test_fewer_than_three_seeds_get_a_dagger_and_no_interval(tmp_path, seeds, dagger):
    for seed in range(seeds):
        put_record(tmp_path, make_ranks(2.0, seed), seed=seed)
    (row,) = only_table(tmp_path).rows
    assert (row.interval is None) is dagger
    markdown = render_markdown(build_board(tmp_path))
    (cells,) = [cells for cells in md_rows(markdown, "lora") if len(cells) > 10]
    assert ("†" in cells[1]) is dagger
    assert ("fewer than 3 seeds" in markdown) is dagger
    assert (cells[10] == "–") is dagger
    assert ("±" in cells[3]) is (seeds > 1)


def test_one_seed_is_enough_where_nothing_is_trained(tmp_path):
    put_record(
        tmp_path, make_ranks(1.0), method="zero-shot", rule="none", change=lambda p: p["params"].update(trained=0)
    )
    (row,) = only_table(tmp_path).rows
    assert row.interval is not None and not row.few_seeds


def test_seeds_whose_ranges_overlap_are_marked_though_images_tell_the_rows_apart(tmp_path):
    """All images agree on the order of the means, while one seed of the weaker row is as good as one of the better."""
    n = IMAGES

    def hits(every):  # every image: found by `every` of 10 captions' worth of cut-offs
        rank = {0: 50, 1: 7, 2: 3, 3: 0}[every]
        return ranks_from(np.arange(n), np.full(n, min(rank, n - 1)), np.full(n, min(rank, n - 1)))

    for seed, (good, weak) in enumerate([(3, 3), (3, 1), (2, 0)]):
        put_record(tmp_path, hits(good), seed=seed, method="good")
        put_record(tmp_path, hits(weak), seed=seed, method="weak")
    weak = row_of(only_table(tmp_path), "weak")
    assert weak.p_holm < 0.05 and weak.seeds_overlap
    markdown = render_markdown(build_board(tmp_path))
    assert md_rows(markdown, "weak")[0][1] == "weak ◦"
    assert "ranges over seeds overlap" in markdown


def test_reference_rows_are_unranked_and_italic(tmp_path):
    oracle = dict.fromkeys(METRICS, 12.5)
    put_record(tmp_path, change=lambda p: p["data"]["splits"]["test"].update(class_only=oracle))
    references = {ref.name: ref.recalls for ref in only_table(tmp_path).references}
    assert references["ceiling of the split"]["t2i_r1"] == 99.5
    assert references["oracle that knows only the class"]["mR"] == 12.5
    assert references["chance"]["t2i_r5"] == pytest.approx(100 * 5 / IMAGES)
    cells = md_rows(render_markdown(build_board(tmp_path)), "*chance*")[0]
    assert cells[0] == "–" and cells[6] == "*2.50*"
    assert "chance" not in to_frame(build_board(tmp_path))["label"].tolist()


def test_chance_by_hand():
    # Four images with two captions each; one of 8 is drawn for R@1: 2/8. Of five drawn, all miss: C(6,5)/C(8,5) = 6/56.
    found = chance(4, 8)
    assert found["i2t_r1"] == pytest.approx(25.0)
    assert found["i2t_r5"] == pytest.approx(100 * (1 - 6 / 56))
    assert found["t2i_r1"] == pytest.approx(25.0) and found["t2i_r5"] == found["t2i_r10"] == 100.0


# What is wrong --------------------------------------------------------------------------------------------------------


def test_a_corrupt_record_is_reported_and_the_board_made_from_the_others(tmp_path):
    three(tmp_path, 2.0)
    bad = put_record(tmp_path, method="prompt")
    edit(bad, lambda p: p["params"].update(trained="lots"))
    board = build_board(tmp_path)
    (problem,) = board.problems
    assert problem.unreadable and problem.name == bad.relative_to(tmp_path).as_posix()
    assert str(bad) in problem.message and "`params.trained`" in problem.message and "'lots'" in problem.message
    assert "move it away" in problem.message
    assert [row.label for row in board.tables[0].rows] == ["lora"]
    markdown = render_markdown(board)
    assert "**1 record file could not be read**" in markdown
    assert text.markdown(problem.name) in markdown
    assert str(tmp_path) not in markdown  # the board does not depend on where the folder lies


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda p: p.update(cost=None), "cost"),
        (lambda p: p.update(metrics={}), r"metrics\.test"),
        (lambda p: p["data"]["splits"].pop("test"), r"data\.splits\.test"),
        (lambda p: p["metrics"]["test"]["recalls"].pop("t2i_r5"), r"metrics\.test\.recalls\.t2i_r5"),
        (lambda p: p["metrics"]["test"]["recalls"].update(i2t_r1=101.0), r"metrics\.test\.recalls\.i2t_r1"),
        (lambda p: p["metrics"]["test"]["recalls"].update(mR=99.0), r"metrics\.test\.recalls\.mR"),
        (
            lambda p: p["metrics"]["test"]["other_rules"]["expected"].pop("mR"),
            r"metrics\.test\.other_rules\.expected\.mR",
        ),
        (lambda p: p["spec"].pop("seed"), r"spec\.seed"),
        (lambda p: p["spec"].pop("backbone"), r"spec\.backbone\.name"),
        (lambda p: p["spec"]["train"].update(lr=1.0), "spec_id"),
    ],
)
def test_a_record_that_contradicts_itself_is_left_out_with_its_key_named(tmp_path, change, key):
    path = put_record(tmp_path)
    edit(path, change)
    entries, (problem,) = load_records(tmp_path)
    assert entries == []
    assert re.search(rf"key `{key}`", problem.message) and str(path) in problem.message
    assert "version control" in problem.message or "move it away" in problem.message


def test_a_copied_record_is_reported_not_counted_twice(tmp_path):
    path = put_record(tmp_path)
    copy = path.with_name("zz-copy.json")
    copy.write_bytes(path.read_bytes())
    entries, (problem,) = load_records(tmp_path)
    assert [entry.path for entry in entries] == [path]
    assert problem.name.endswith("zz-copy.json") and path.name in problem.message


def test_the_results_folder_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such results folder; run `benchmark run` first"):
        load_records(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["missing", "garbage", "other trial", "other split"])
def test_unusable_ranks_cost_a_row_its_interval_not_its_place(tmp_path, damage):
    path = three(tmp_path, 2.0, method="a")[1]
    three(tmp_path, 1.0, method="b")
    ranks = path.with_name(path.stem + ".ranks.npz")
    if damage == "missing":
        ranks.unlink()
    elif damage == "garbage":
        ranks.write_bytes(b"PK\x03\x04 not really")
    elif damage == "other trial":
        make_ranks(0.5, 99).save(ranks)
    else:
        make_ranks(2.0, 1, images=30).save(ranks)
    board = build_board(tmp_path)
    (problem,) = board.problems
    assert str(ranks) in problem.message and not problem.unreadable
    (table,) = board.tables
    best, other = table.rows
    assert (best.label, best.interval, best.n) == ("a", None, 3)
    assert other.interval is not None and other.p_holm is None  # no pairing with a row that has no ranks
    assert any(note.startswith("a: no usable ranks") for note in table.notes)
    assert "could not be read" not in render_markdown(board)


def test_ranks_that_assign_captions_otherwise_are_never_paired(tmp_path):
    three(tmp_path, 2.0, method="a")
    ranks = make_ranks(2.0)
    swapped = {f: getattr(ranks, f) for f in ranks.__dataclass_fields__} | {"owner": ranks.owner[::-1].copy()}
    three(tmp_path, 3.0, method="c")
    put_record(tmp_path, Ranks(**swapped), method="b")
    board = build_board(tmp_path)
    rows = {row.label: row for table in board.tables for row in table.rows}
    assert rows["a"].interval and rows["c"].interval and rows["b"].contributions is None and rows["b"].p_holm is None
    (problem,) = board.problems
    assert "toyset/b/" in problem.name and "assigns captions to images otherwise" in problem.message
    assert not problem.unreadable, "the row keeps its place"


def test_failed_and_stopped_trials_are_listed_and_never_ranked(tmp_path):
    three(tmp_path, 2.0)
    put_failed(tmp_path, method="harma", message="loss is NaN\nat step 3")
    put_failed(tmp_path, method="prompt", status="stopped")
    board = build_board(tmp_path)
    assert [row.label for table in board.tables for row in table.rows] == ["lora"]
    assert board.problems == []
    markdown = render_markdown(board)
    section = markdown.split("## Failed and stopped trials")[1]
    assert "| harma" in section and "RuntimeError: loss is NaN at step 3" in section
    assert "| prompt" in section and "stopped before its end" in section
    assert "3 finished trials in 1 table; 2 failed or stopped" in markdown
    assert "harma" not in render_csv(board)
