"""Recall per group of queries from stored ranks, and confusion of classes."""

import csv
import io
import json
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli_calls import call
from factories import make_ranks, ranks_from
from small_trials import forget_answers, small_trial

from petlbench.harness.breakdown import make_breakdown
from petlbench.harness.metrics import Ranks, recalls
from petlbench.harness.ranks import rank_scores
from petlbench.harness.record_files import find_records
from petlbench.harness.retrial import Places
from petlbench.harness.trial import run_trial
from petlbench.leaderboard.breakdown import (
    break_down,
    by_class,
    by_duplicates,
    by_length,
    confusion,
    wilson,
)
from petlbench.leaderboard.load import METRICS
from petlbench.leaderboard.plots.confusion import draw
from petlbench.leaderboard.plots.style import save, styled

# Groups


def test_classes_hold_pictures_and_their_captions():
    found = by_class(np.array([0, 0, 1, 2]), np.array([2, -1, 0]), ["beach", "port", "river"])
    assert found.names == ("beach", "river", "(no class)")
    assert found.images.tolist() == [1, 2, 0] and found.captions.tolist() == [1, 1, 2, 0]


def test_lengths_are_quartiles_and_equal_lengths_stay_together():
    owner = np.repeat(np.arange(8), 2)
    captions = ["w " * n for n in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8)]
    found = by_length(owner, captions)
    assert found.captions.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert found.images.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert found.names[0] == "1: 1 to 2 words, pictures 1 to 2 words"
    alike = by_length(owner, ["one two"] * 16)
    assert set(alike.captions.tolist()) == set(alike.images.tolist()) == {0}


def test_duplicates_count_pictures_not_captions():
    owner = np.array([0, 0, 1, 1, 2, 2])
    texts = np.array([0, 0, 1, 2, 1, 1])  # string 0 twice, but under one picture; string 1 under two
    found = by_duplicates(owner, texts)
    assert found.names == ("1 picture", "2 pictures")
    assert found.captions.tolist() == [0, 0, 1, 0, 1, 1] and found.images.tolist() == [0, 0, 1]


# Recalls


def test_parts_are_the_recalls_of_their_queries():
    owner = np.array([0, 0, 1, 1, *range(2, 31)])
    ranks = ranks_from(owner, [0, 4, 20, *[0] * 28], [0, 7, 0, 30, 2, *[0] * 28])
    labels = np.array([0, 0, 1, *[2] * 28])
    parts = {part.name: part for part in break_down([ranks], by_class(owner, labels, ["a", "b", "c"]))}
    a = {name: cell.value for name, cell in parts["a"].cells.items()}
    expected = {"i2t_r1": 50, "i2t_r5": 100, "i2t_r10": 100, "t2i_r1": 50, "t2i_r5": 50, "t2i_r10": 75, "mR": 425 / 6}
    assert a == pytest.approx(expected)
    assert (parts["a"].images, parts["a"].captions, parts["a"].owners) == (2, 4, 2)
    assert parts["b"].cells["i2t_r10"].value == 0 and parts["b"].cells["t2i_r5"].value == 100


def test_all_queries_together_give_the_recorded_recalls_of_every_seed_on_average():
    seeds = [make_ranks(2.0, seed) for seed in range(3)]
    grouping = by_class(seeds[0].owner, np.arange(seeds[0].images) % 3, ["a", "b", "c"])
    whole = break_down(seeds, grouping)[-1]
    expected = {name: np.mean([recalls(one)[name] for one in seeds]) for name in recalls(seeds[0])}
    assert whole.name == "all" and {n: c.value for n, c in whole.cells.items()} == pytest.approx(expected)


def test_wilson_intervals_are_those_of_the_textbook():
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 10)[1] == pytest.approx(1.0) and wilson(1.0, 1)[0] == pytest.approx(0.2065, abs=1e-4)
    with pytest.raises(ValueError, match="at least one"):
        wilson(0.5, 0)


def test_intervals_count_pictures_in_both_directions():
    owner = np.repeat(np.arange(4), 5)
    part = break_down([ranks_from(owner, [0, 0, 9, 9], [0, 3] * 10)], by_class(owner, np.zeros(4, int), ["a"]))[0]
    assert (part.cells["t2i_r1"].low, part.cells["t2i_r1"].high) == pytest.approx(
        tuple(100 * x for x in wilson(0.5, 4))
    )


def test_rules_that_neither_hit_nor_miss_are_refused():
    ranks = make_ranks(1.0)
    with pytest.raises(ValueError, match="hit or miss"):
        break_down([ranks], by_class(ranks.owner, np.zeros(ranks.images, int), ["a"]), "expected")


def test_confusion_counts_the_class_of_the_first_answer():
    owner, labels = np.array([0, 1, 2]), np.array([0, 0, 1])
    scores = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    ranks = rank_scores(scores, owner, np.arange(3), top=1)
    assert confusion([ranks], labels, "i2t").tolist() == [[1, 1], [1, 0]]
    assert confusion([ranks], labels, "t2i").tolist() == [[1, 1], [1, 0]]
    assert confusion([ranks], np.array([0, -1, 1]), "i2t").tolist() == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match="no first answers"):
        confusion([make_ranks(1.0)], np.zeros(40, int), "t2i")


# The verb


@pytest.fixture(scope="module")
def trained(small_world, tmp_path_factory):
    """A finished trial on a random CLIP of two narrow blocks."""
    folder = tmp_path_factory.mktemp("trained")
    run_trial(small_trial(folder, "train.epochs=1", "train.lr=0.01", method="linear_probe"))
    return folder


@pytest.fixture
def record(trained, tmp_path):
    (path,) = find_records(shutil.copytree(trained, tmp_path / "results"))
    return path


def test_a_trial_keeps_its_first_answers(record):
    ranks = Ranks.load(record.with_name(record.stem + ".ranks.npz"))
    assert ranks.i2t_top.shape == (ranks.images, 10) and ranks.t2i_top.shape == (ranks.captions, 10)


@pytest.mark.parametrize("by", ("class", "length", "duplicates"))
def test_every_form_says_the_same(record, by):
    payload = call("breakdown", record, "--by", by, "--json").json
    (method,) = payload["methods"]
    whole = method["parts"][-1]
    recorded = json.loads(record.read_text())["metrics"]["test"]["recalls"]
    assert {name: cell["value"] for name, cell in whole["recalls"].items()} == pytest.approx(recorded)
    assert sum(part["images"] for part in method["parts"][:-1]) == whole["images"]
    assert sum(part["captions"] for part in method["parts"][:-1]) == whole["captions"]
    rows = list(csv.DictReader(io.StringIO(call("breakdown", record, "--by", by, "--csv").out)))
    (found,) = (row for row in rows if row["group"] == "all" and row["metric"] == "mR")
    assert float(found["value"]) == pytest.approx(recorded["mR"])
    for shown in (call("breakdown", record, "--by", by), call("breakdown", record, "--by", by, "--md")):
        assert shown.code == 0 and f"{recorded['mR']:.2f}" in shown.out


def test_confusions_come_from_stored_answers_or_from_the_model(record):
    stored = call("breakdown", record, "--confusion", "--json").json
    matrix = np.array(stored["methods"][0]["confusion"]["i2t"])
    assert matrix.sum() == stored["methods"][0]["parts"][-1]["images"] and len(stored["classes"]) == len(matrix)
    forget_answers(record)
    assert call("breakdown", record, "--confusion", "--json").json == stored
    assert "most confused" in call("breakdown", record, "--confusion").out
    assert call("breakdown", record, "--confusion", "--csv").out.startswith(
        "method,seeds,direction,class,answered,queries"
    )


def test_confusions_are_drawn_for_every_method_and_direction(record, tmp_path):
    called = call("breakdown", record, "--plot", tmp_path / "first", "--csv")
    assert called.out.startswith("method,seeds,group,images,captions,metric,"), "the recalls, as without the drawing"
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert sorted(drawn) == [
        f"confusion-linear-probe-{way}.{kind}" for way in ("i2t", "t2i") for kind in ("png", "svg")
    ]
    assert all(ET.fromstring(content).tag.endswith("svg") for name, content in drawn.items() if name.endswith(".svg"))
    call("breakdown", record, "--plot", tmp_path / "second")
    assert {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()} == drawn


def test_a_drawing_says_shares_of_each_class(record):
    found = make_breakdown([record], Places(), confused=True)
    (method,) = found.methods
    counts = np.zeros_like(method.confused["i2t"])
    counts[0, :2], counts[1, 1] = (1, 3), 2
    method = replace(method, confused={"i2t": counts})
    hostile = replace(found, classes=("$x$ <b>", *found.classes[1:]))
    with styled():
        figure = draw(hostile, method, "i2t")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["25", "75", "100"]
    assert [tick.get_text() for tick in axes.get_yticklabels()][:2] == ["$x$ <b> (4)", f"{found.classes[1]} (2)"]
    assert "50.0 % over all pictures" in " ".join(text.get_text() for text in figure.texts)
    svg = save(figure, "svg", "said").decode()
    assert "<b>" not in svg.split("</metadata>")[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["data"]["splits"]["test"].update(sha256="0" * 64), "is not the one of"),
        (lambda p: p["metrics"]["test"].update(recalls=dict.fromkeys(METRICS, 1.0)), "gives i2t_r1"),
        (lambda p: p["metrics"]["test"]["recalls"].update(mR=1.0), "the mean of the six recalls"),
        (lambda p: p["metrics"]["test"].update(tie_rule="luck"), "unknown tie rule 'luck'"),
        (lambda p: p["spec"].pop("backbone"), "`spec.backbone.name` is missing"),
        (lambda p: p["spec"]["train"].update(lr=123.0), "`spec` hashes to"),
        (lambda p: p.update(status="stopped"), "status `stopped`"),
    ],
)
def test_records_of_another_world_are_refused(record, change, message):
    payload = json.loads(record.read_text())
    change(payload)
    record.write_text(json.dumps(payload))
    assert message in call("breakdown", record).error


def test_a_second_record_of_one_seed_is_refused(record, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(record.parents[2], other)
    (again,) = find_records(other)
    called = call("breakdown", record, again)
    assert called.code == 2 and "keep one of the two" in called.error and str(again) in called.error


def test_the_record_of_a_transfer_is_told_from_damage(record):
    payload = json.loads(record.read_text())
    payload["transfer_version"] = payload.pop("schema_version")
    record.write_text(json.dumps(payload))
    assert "this is the record of a transfer; give that of the trial" in call("breakdown", record).error


def test_missing_ranks_are_told(record):
    record.with_name(record.stem + ".ranks.npz").unlink()
    assert "are not there" in call("breakdown", record).error
