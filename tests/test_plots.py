"""Plots of a board: what is drawn, what is said, escaping, determinism, files."""

import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from cli_calls import call
from factories import make_ranks, put_record, three
from hypothesis import given, settings
from hypothesis import strategies as st

from petlbench.leaderboard.plots import critical_difference, learning_curves, parameters, peak_memory, training_time
from petlbench.leaderboard.plots.families import FAMILIES, OTHER, family
from petlbench.leaderboard.plots.front import pareto_front
from petlbench.leaderboard.plots.place import Box, Label, freest, place_labels
from petlbench.leaderboard.plots.style import MAX_ROWS, best_rows, describe, drawable, names, styled, tint
from petlbench.leaderboard.plots.write import PLOTS, table_slugs, write_plots
from petlbench.leaderboard.table import build_board

HOSTILE = "$\\frac{1}$ --><script>alert(1)</script> & 50 % _x_ \u202e\u4e2d"


def untrained(payload):
    payload["selection"] = {"rule": "none", "epoch": None, "val_mR": None}
    payload["params"]["trained"] = 0
    payload["cost"]["train_s"] = 0.0
    payload["curve"] = []


def curve_of(*values):
    lines = [
        {"epoch": number, "loss": 1.0, "lr": 1e-3, "val_mR": value, "seconds": 1.0}
        for number, value in enumerate(values, start=1)
    ]
    return lambda payload: payload.update(curve=lines)


def words(figure):
    """Everything a figure says in text."""
    axes = figure.axes
    found = [text.get_text() for text in figure.texts]
    found += [
        text.get_text() for part in axes for text in [*part.texts, part.xaxis.label, part.yaxis.label, part.title]
    ]
    return found + [tick.get_text() for part in axes for tick in (*part.get_xticklabels(), *part.get_yticklabels())]


def drawn(module, table):
    with styled():
        return module.draw(table)


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    for seed in range(3):
        put_record(root, make_ranks(3.0, seed), seed=seed, change=curve_of(10.0 + seed, 30.0, 20.0))
        put_record(
            root,
            make_ranks(2.0, 9 + seed),
            seed=seed,
            method="linear_probe",
            title=HOSTILE,
            change=lambda payload: payload["params"].update(trained=900),
        )
    put_record(root, make_ranks(0.5), method="zero_shot", title="Zero-shot", change=untrained)
    return build_board(root)


# Front and labels -----------------------------------------------------------------------------------------------------


def test_front_by_hand():
    assert pareto_front([3, 1, 2, 2, 5], [50, 10, 40, 30, 50]) == [1, 2, 0]  # 5 is dearer than 3 and no better
    assert pareto_front([], []) == []


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_nothing_beats_the_front_and_the_front_beats_the_rest(points):
    prices, scores = [p for p, _ in points], [s for _, s in points]
    front = pareto_front(prices, scores)
    assert [prices[i] for i in front] == sorted(prices[i] for i in front)
    for i in range(len(points)):
        beaten = any(prices[j] <= prices[i] and scores[j] >= scores[i] and points[j] != points[i] for j in front)
        assert beaten or points[i] in [points[j] for j in front]


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_labels_of_37_points_overlap_neither_each_other_nor_the_points(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform((30, 30), (430, 330), size=(37, 2))
    labels = [Label(x, y, 40.0 if i < 6 else 9.0, 8.0) for i, (x, y) in enumerate(points)]
    markers = [Box(x - 3, y - 3, x + 3, y + 3) for x, y in points]
    inside = Box(0, 0, 460, 360)
    places = place_labels(labels, markers, [], inside)
    boxes = [
        Box(x - e.width / 2, y - e.height / 2, x + e.width / 2, y + e.height / 2)
        for e, (x, y) in zip(labels, places, strict=True)
    ]
    crowded = sum(
        min(a.right, b.right) > max(a.left, b.left) + 1e-6 and min(a.top, b.top) > max(a.bottom, b.bottom) + 1e-6
        for a, b in [*itertools.combinations(boxes, 2), *itertools.product(boxes, markers)]
    )
    assert crowded == 0
    assert all(b.left >= 0 and b.bottom >= 0 and b.right <= 460 and b.top <= 360 for b in boxes)


def test_the_freest_spot_is_the_first_that_covers_nothing():
    spots = [Box(0, 0, 2, 2), Box(5, 0, 7, 2), Box(9, 0, 11, 2)]
    assert freest(spots, [Box(1, 1, 3, 3)], []) == 1
    assert freest(spots, [], [Box(0, 0, 8, 8)]) == 2


def test_groups_of_a_column_do_not_touch():
    assert critical_difference.pack([(0, 1), (1, 2), (2, 3), (4, 5)]) == [0, 1, 2, 0]
    assert critical_difference.pack([(0, 5), (2, 3), (5, 6), (7, 8)]) == [0, 1, 1, 0]


# Rows -----------------------------------------------------------------------------------------------------------------


def test_families_are_those_that_the_methods_declare():
    from petlbench.methods import registry

    found = registry.discover()
    listed = {name: family(name, "petlbench") for name in found if family(name, "petlbench") != OTHER}
    assert len(listed) >= 37
    assert listed == {name: registry.load(found[name]).family for name in listed}


def test_a_method_from_elsewhere_is_of_no_known_family():
    assert family("lora", "petlbench") == "reparameterisation"
    assert family("lora", "mine.py") == OTHER


def test_families_differ_in_marker_and_in_colour():
    assert len({family.marker for family in FAMILIES.values()}) == len(FAMILIES)
    assert len({family.colour for family in FAMILIES.values()}) == len(FAMILIES)
    assert tint("#000000", 0.25) == (0.75, 0.75, 0.75) and tint("#ff8000", 1) == (1, 128 / 255, 0)


def test_names_are_titles_and_stay_distinct(tmp_path):
    three(tmp_path, 2.0, options={"rank": 4}, title="LoRA")
    three(tmp_path, 2.0, 5, options={"rank": 8}, title="LoRA")
    three(tmp_path, 2.0, 9, method="prompt", title="Prompt " * 20)
    found = names(build_board(tmp_path).tables[0].rows)
    assert {"LoRA (rank=4)", "LoRA (rank=8)"} < set(found.values())
    assert max(map(len, found.values())) <= 34
    three(tmp_path, 2.0, 13, method="other", title="LoRA")  # two methods of one title are known by their names
    assert "other" in names(build_board(tmp_path).tables[0].rows).values()


def test_more_rows_than_a_page_holds_are_cut_with_a_note(board):
    rows = board.tables[0].rows * 30
    kept, notes = best_rows(rows)
    assert len(kept) == MAX_ROWS and notes == [
        f"The best {MAX_ROWS} rows are shown; {len(rows) - MAX_ROWS} more are not."
    ]
    assert best_rows(rows[:3])[1] == []


def test_the_heading_says_what_was_measured(board):
    assert describe(board.tables[0]) == (
        "TOYSET, 40 test images  ·  backbone vit-x  ·  224 px  ·  selection: best epoch on validation  ·  3 seeds"
    )


def test_what_the_font_lacks_is_a_box():
    assert drawable("a\u4e2db\n") == "a\u25a1b"


# Pictures -------------------------------------------------------------------------------------------------------------


def test_what_trains_nothing_stands_on_an_axis_of_its_own(board):
    figure = drawn(parameters, board.tables[0])
    zero = next(part for part in figure.axes if [tick.get_text() for tick in part.get_xticklabels()] == ["0"])
    main = next(part for part in figure.axes if part.get_xscale() == "log")
    assert [line.get_xdata()[0] for line in zero.lines if line.get_marker() == FAMILIES["baseline"].marker] == [0]
    assert main.get_xlim()[0] < 900 < 163_840 < main.get_xlim()[1]
    said = words(figure)
    assert "3 Zero-shot" in said and "1 Lora" in said  # both on the front, hence named


def test_rows_that_were_only_packed_are_left_out_of_costs_and_named(tmp_path):
    three(tmp_path, 3.0)
    three(tmp_path, 2.0, 5, method="prompt", change=lambda payload: payload["cost"].update(gpu_share=0.25))
    table = build_board(tmp_path).tables[0]
    for module in (training_time, peak_memory):
        figure = drawn(module, table)
        assert any("packed" in text and "Prompt" in text for text in words(figure))
        assert "2" not in [text.get_text() for part in figure.axes for text in part.texts]  # no point of its rank
    assert "Prompt" in words(drawn(parameters, table))


def test_rows_of_a_busy_machine_show_memory_and_no_seconds(tmp_path):
    three(tmp_path, 3.0)
    busy = {"train_s": 12.0, "train_cpu_s": 2.0, "threads": 1}
    three(tmp_path, 2.0, 5, method="prompt", change=lambda payload: payload["cost"].update(busy))
    table = build_board(tmp_path).tables[0]
    assert "Left out (only run on a busy machine): Prompt." in words(drawn(training_time, table))
    assert not any("Left out" in text for text in words(drawn(peak_memory, table)))


def test_rows_on_stored_features_are_ringed_and_explained(tmp_path):
    three(tmp_path, 3.0)
    three(tmp_path, 2.0, 5, method="linear_probe", change=lambda payload: payload["cost"].update(cached_features=True))
    figure = drawn(training_time, build_board(tmp_path).tables[0])
    assert any("Ringed rows train on stored features" in text for text in words(figure))
    rings = [line for part in figure.axes for line in part.lines if line.get_markerfacecolor() == "none"]
    assert len(rings) == 1


def test_learning_curves_keep_seeds_and_gaps_apart(tmp_path):
    put_record(tmp_path, make_ranks(2.0, 0), seed=0, change=curve_of(10.0, None, 30.0))
    put_record(tmp_path, make_ranks(2.0, 1), seed=1, change=curve_of(20.0, 40.0, None))
    table = build_board(tmp_path).tables[0]
    epochs, values = learning_curves.curve(table.rows[0])
    assert epochs == [1, 2, 3]
    assert np.array_equal(values, [[10.0, np.nan, 30.0], [20.0, 40.0, np.nan]], equal_nan=True)
    main = drawn(learning_curves, table).axes[0].lines[0]
    assert main.get_ydata().tolist() == [15.0, 40.0, 30.0]


def test_a_plot_with_nothing_to_show_is_left_out(tmp_path):
    put_record(tmp_path / "in")
    board = build_board(tmp_path / "in")
    found = {path.stem for path in write_plots(board, tmp_path / "out", kinds=["svg"])}
    assert found == {"parameters", "training_time", "peak_memory", "recall_bars"}
    assert drawn(PLOTS["seed_spread"], board.tables[0]) is None


def test_a_plot_that_has_nothing_to_show_any_more_goes(tmp_path):
    three(tmp_path / "in", 2.0)
    board = build_board(tmp_path / "in")
    (before,) = write_plots(board, tmp_path / "out", plots=["seed_spread"], kinds=["svg"])
    (tmp_path / "one").mkdir()
    put_record(tmp_path / "one")
    assert write_plots(build_board(tmp_path / "one"), tmp_path / "out", plots=["seed_spread"], kinds=["svg"]) == []
    assert not before.exists()


def test_a_board_of_nothing_but_an_untrained_row_draws(tmp_path):
    put_record(tmp_path, make_ranks(0.5), method="zero_shot", title="Zero-shot", change=untrained)
    table = build_board(tmp_path).tables[0]
    assert {name for name in PLOTS if drawn(PLOTS[name], table)} == {"peak_memory", "recall_bars"}


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(board, tmp_path_factory):
    return write_plots(board, tmp_path_factory.mktemp("out"))


def test_every_plot_is_written_as_svg_and_png(written):
    assert {path.parent.name for path in written} == {"toyset-vit-x-224-px-best-val"}
    assert [path.name for path in written] == [f"{name}.{kind}" for name in PLOTS for kind in ("svg", "png")]
    for path in written:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


def test_equal_records_give_equal_pictures_whatever_the_users_settings(board, written, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "none", "axes.grid": True, "savefig.dpi": 50}):
        again = write_plots(board, tmp_path, plots=["parameters", "win_matrix"])
    first = {path.name: path.read_bytes() for path in written}
    for path in again:
        assert path.read_bytes() == first[path.name]
        assert b"<dc:date>" not in path.read_bytes()


def test_nothing_from_a_record_is_markup_or_a_formula(written):
    for path in written:
        if path.suffix == ".svg":
            root = ET.fromstring(path.read_bytes())
            names = {element.tag.rpartition("}")[2] for element in root.iter()}
            assert not names & {"script", "foreignObject", "image", "a", "text"}
            assert not [name for element in root.iter() for name in element.attrib if name.lower().startswith("on")]
            links = [
                value for element in root.iter() for name, value in element.attrib.items() if name.endswith("href")
            ]
            assert all(link.startswith("#") for link in links)
            assert b"<script" not in path.read_bytes()


def test_a_dollar_sign_is_drawn_as_it_is(board):
    assert any("$\\frac{1}$" in text for text in words(drawn(parameters, board.tables[0])))


def test_tables_of_equal_titles_get_folders_of_their_own(tmp_path):
    put_record(tmp_path)
    put_record(tmp_path, method="m", change=lambda payload: payload["data"]["splits"]["test"].update(sha256="c" * 64))
    slugs = table_slugs(build_board(tmp_path))
    assert len(set(slugs)) == 2
    assert all(re.fullmatch(r"toyset-vit-x-224-px-best-val-[0-9a-f]{8}", slug) for slug in slugs)


@pytest.mark.parametrize("wanted", [{"plots": ["pie"]}, {"kinds": ["pdf"]}])
def test_an_unknown_plot_or_kind_is_refused_before_anything_is_written(board, tmp_path, wanted):
    with pytest.raises(ValueError, match=r"unknown .* choose from (parameters|svg)"):
        write_plots(board, tmp_path, **wanted)
    assert not list(tmp_path.iterdir())


def test_an_error_while_drawing_leaves_the_old_files(board, tmp_path, monkeypatch):
    write_plots(board, tmp_path, plots=["recall_bars"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(before) >= 2

    def fail(table):
        raise RuntimeError("no ink")

    monkeypatch.setitem(PLOTS, "win_matrix", PLOTS["win_matrix"]._replace(draw=fail))
    with pytest.raises(RuntimeError, match="no ink"):
        write_plots(board, tmp_path, plots=["recall_bars", "win_matrix"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_verb_draws_on_request(tmp_path):
    three(tmp_path / "in", 2.0)
    arguments = ["leaderboard", "--results", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    done = call(*arguments, "--plots", "--format", "html,pairs")
    assert done.code == 0, done.err
    folder = tmp_path / "out" / "plots" / "toyset-vit-x-224-px-best-val"
    assert (folder / "parameters.svg").is_file() and (folder / "seed_spread.png").is_file()
    assert "Mean recall against trained parameters" in (tmp_path / "out" / "board.html").read_text()
    assert (tmp_path / "out" / "board_pairs.csv").is_file()
    assert call(*arguments, "--plots", "--json").code == 2
