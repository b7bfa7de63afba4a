"""The doctor: finds what is planted, goes on past bad pictures, and agrees with figures known for the real sets."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from cli_calls import call
from data_files import item, karpathy_set, write_json, write_picture
from doctor_sets import CARD, read
from rich.console import Console
from support import shared_path

from petlbench.datasets.card import Card
from petlbench.datasets.doctor import CODES, examine, lenient, render
from petlbench.datasets.load import load
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import Split


def told(report, code):
    found = [finding for finding in report.findings if finding.code == code]
    assert len(found) <= 1, found
    return found[0] if found else None


def test_a_healthy_set_has_no_errors_or_warnings(tmp_path):
    seen = []
    report = examine(read(karpathy_set(tmp_path)), CARD, progress=lambda done, total: seen.append((done, total)))
    assert report.ok and seen[-1] == (9, 9)
    assert {finding.code for finding in report.findings} == {"D031"}
    train = report.splits["train"]
    assert (train.images, train.captions, train.captions_per_image) == (6, 30, {5: 6})
    assert (train.classes, train.images_without_class, train.captions_in_train) == (2, 0, None)
    assert report.splits["test"].captions_in_train == 0
    assert report.splits["test"].ceiling == {"t2i_r1": 100, "t2i_r5": 100, "t2i_r10": 100}


def test_bad_pictures_are_all_listed_and_stop_nothing(tmp_path):
    path = karpathy_set(tmp_path)
    pictures = tmp_path / "images"
    (pictures / "park_0.jpg").unlink()
    (pictures / "port_7.jpg").unlink()
    cut = write_picture(pictures / "port_1.jpg", size=(300, 300))
    cut.write_bytes(cut.read_bytes()[:3000])
    (pictures / "park_2.jpg").write_text("not a picture")
    (pictures / "port_3.jpg").write_bytes(b"")
    report = examine(read(path), CARD)
    bad = {(picture.split, picture.name): picture.missing for picture in report.bad_pictures}
    assert bad == {
        ("train", "park_0.jpg"): True,
        ("test", "port_7.jpg"): True,
        ("train", "port_1.jpg"): False,
        ("train", "park_2.jpg"): False,
        ("train", "port_3.jpg"): False,
    }
    assert not report.ok
    decoding = told(report, "D002")
    assert decoding.severity == "error" and decoding.place == "train" and "2 of 6 pictures" in decoding.message
    assert "1 of 6 pictures are cut off: port_1.jpg" in told(report, "D008").message
    assert [f.place for f in report.findings if f.code == "D001"] == ["train", "test"]


def test_a_wrong_picture_folder_is_recognised(tmp_path):
    path = karpathy_set(tmp_path)
    (tmp_path / "images").rename(tmp_path / "pics")
    report = examine(read(path), CARD)
    assert len(report.bad_pictures) == 9
    assert all("image_dir" in finding.advice for finding in report.findings if finding.code == "D001")
    assert examine(read(path), CARD, check_pixels=False).bad_pictures == []


def test_planted_text_faults_are_found(tmp_path):
    items = [
        item("a.jpg", captions=["same", "same", "same"]),
        item("b.jpg", captions=["same", "two words", "a b c"]),
        item("c.jpg", captions=["", "x"]),
        item("d.jpg", captions=["caf\u00e9", "y", "word " * 61]),
        item("e.jpg", "test", captions=["same", "new"]),
        item("f.jpg", "test", captions=["new", "own"]),
    ]
    report = examine(read(write_json(tmp_path, items)), CARD, check_pixels=False)
    train, test = report.splits["train"], report.splits["test"]
    assert train.captions_per_image == {2: 1, 3: 3}
    assert (train.blank_captions, train.non_ascii_captions) == (1, 1)
    assert (train.words_max, train.words_mean) == (61, pytest.approx((4 + 2 + 3 + 0 + 1 + 2 + 61) / 11))
    assert (train.images_one_caption_repeated, train.images_with_repeats) == (1, 1)
    assert train.captions_of_several_images == 4
    assert (test.captions_of_several_images, test.captions_in_train, test.distinct_captions) == (2, 1, 3)
    assert "c.jpg" in told(report, "D005").message and told(report, "D005").severity == "error"
    assert [finding.place for finding in report.findings if finding.code == "D010"] == ["train", "test"]
    for code in ("D011", "D013", "D014", "D015", "D030", "D032"):
        assert told(report, code), code
    assert test.ceiling["t2i_r1"] == 75  # of the two pictures that say "new" one comes first
    assert test.class_oracle is None


def test_blank_captions_are_a_warning_where_the_card_drops_them(tmp_path):
    path = write_json(tmp_path, [item("a.jpg", captions=["", "x"]), item("b.jpg", captions=[""])])
    expected = {"train": {"images": 1, "captions": 1}}
    card = Card.model_validate(CARD.model_dump() | {"options": {"blank": "drop"}, "expected": expected})
    report = examine(read(path), card, check_pixels=False)
    assert told(report, "D005").severity == "warning"
    assert told(report, "D003") is None and report.ok


def test_a_row_without_a_caption_is_named_with_its_line(tmp_path):
    write_picture(tmp_path / "set" / "images" / "a.jpg")
    rows = [{"image": "a.jpg", "caption": "a port"}, {"image": "a.jpg"}]
    (tmp_path / "set" / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = call("data", "doctor", tmp_path / "set", "--json")
    (blank,) = (one for one in made.json["findings"] if one["code"] == "D005")
    assert [item["entry"] for item in blank["items"]] == ["line 2"] and made.code == 1


def test_pictures_without_captions(tmp_path):
    split = read(karpathy_set(tmp_path))["train"]
    lonely = Split("train", split.images, split.captions[:20], split.owner[:20])
    finding = told(examine({"train": lonely}, CARD, check_pixels=False), "D006")
    assert finding.severity == "error" and "2 pictures without a caption: park_4.jpg, port_5.jpg" in finding.message


def test_the_same_picture_twice(tmp_path):
    path = karpathy_set(tmp_path)
    pictures = tmp_path / "images"
    (pictures / "port_7.jpg").write_bytes((pictures / "port_1.jpg").read_bytes())  # test = train
    write_picture(pictures / "park_4.jpg", seed=2)  # the same pixels as park_2, encoded anew
    report = examine(read(path), CARD)
    assert sorted(report.same_pictures) == [
        ["train/park_2.jpg", "train/park_4.jpg"],
        ["train/port_1.jpg", "test/port_7.jpg"],
    ]
    assert "train/port_1.jpg = test/port_7.jpg" in told(report, "D020").message
    assert told(report, "D020").place == "train, test"
    assert told(report, "D021").place == "train"


def test_the_same_name_in_two_splits(tmp_path):
    splits = read(karpathy_set(tmp_path))
    splits["val"] = Split("val", splits["train"].images[:2], ("a", "b"), np.array([0, 1]))
    finding = told(examine(splits, CARD, check_pixels=False), "D007")
    assert finding.place == "train, val" and "2 picture names in both splits: park_0.jpg, port_1.jpg" in finding.message


def test_counts_and_text_are_compared_with_the_card(tmp_path):
    splits = read(karpathy_set(tmp_path))
    expected = {
        "train": {"images": 6, "captions": 31},
        "val": {"images": 2, "captions": 10},
        "test": {"images": 3, "captions": 15, "sha256": "0" * 64},
    }
    card = Card.model_validate(CARD.model_dump() | {"expected": expected})
    report = examine(splits, card, check_pixels=False)
    counts = {finding.place: finding.message for finding in report.findings if finding.code == "D003"}
    assert counts.keys() == {"train", "val"}
    assert "found 6 pictures with 30 captions" in counts["train"] and "expects 6 with 31" in counts["train"]
    assert told(report, "D004").place == "test"
    expected["train"]["captions"] = 30
    expected["test"]["sha256"] = splits["test"].sha256
    del expected["val"]
    card = Card.model_validate(CARD.model_dump() | {"expected": expected})
    assert examine(splits, card, check_pixels=False).ok


def test_the_report_as_json_and_on_a_terminal(tmp_path):
    path = karpathy_set(tmp_path)
    (tmp_path / "images" / "park_0.jpg").unlink()
    report = examine(read(path), CARD)
    assert json.loads(report.to_json()) == report.model_dump(mode="json")
    console = Console(record=True, width=200, file=io.StringIO())
    render(report, console)
    text = console.export_text()
    assert "My set (mine)" in text and "train/park_0.jpg" in text and "error D001 train" in text
    assert "mine: 1 error, 0 warnings, 1 note." in text


def test_codes_are_documented_and_sorted_worst_first(tmp_path):
    items = [item("a.jpg", captions=["x", ""]), item("b.jpg", "test", captions=["x"])]
    report = examine(read(write_json(tmp_path, items)), CARD)
    ranks = [("error", "warning", "note").index(finding.severity) for finding in report.findings]
    assert ranks == sorted(ranks) and len(set(ranks)) == 3
    assert {finding.code for finding in report.findings} <= CODES.keys()
    assert all(finding.advice and finding.message for finding in report.findings)


# Figures of the dossiers on the published text files (train and validation together)

FIGURES = {
    # distinct, one caption only, fewer than five distinct, distinct test, shared in test, in train, blank, non-ASCII
    "rsicd": (15_097, 4_851, 9_167, 3_331, 11.7, 11.6, 0, 2, 11.5, 35),
    "rsitmd": (19_757, 40, 873, 2_119, 0.3, 2.4, 20, 0, 10.4, 35),
    "ucm": (1_829, 0, 408, 377, 82.7, 61.1, 0, 0, 11.5, 23),
}
REFERENCES = {
    "rsicd": ((93.12, 99.19, 99.78), (2.84, 13.52, 25.46), (2.84, 14.18, 28.36), 14.53),
    "rsitmd": ((99.87, 100, 100), (7.08, 29.89, 51.37), (7.08, 33.63, 65.49), 32.42),
    "ucm": ((38.29, 84.76, 100), (10.00, 42.34, 68.94), (10.00, 50.00, 100.00), 46.88),
}


@pytest.mark.parametrize("name", ["rsicd", "rsitmd", "ucm"])
def test_figures_of_the_real_text_files(name):
    card = load_card(f"{name}-precomp")
    root = shared_path("data", "annotations", "precomp", f"{name}_precomp")
    report = examine(load(card, root, blank="keep", val_share=0), card, check_pixels=False)
    train, test = report.splits["train"], report.splits["test"]
    words = (train.words_mean * train.captions + test.words_mean * test.captions) / (train.captions + test.captions)
    found = (
        train.distinct_captions,
        train.images_one_caption_repeated,
        train.images_with_repeats,
        test.distinct_captions,
        round(100 * test.captions_of_several_images / test.captions, 1),
        round(100 * test.captions_in_train / test.captions, 1),
        train.blank_captions,
        train.non_ascii_captions,
        round(words, 1),
        max(train.words_max, test.words_max),
    )
    assert found == FIGURES[name]
    ceiling, i2t, t2i, mean = REFERENCES[name]
    ks = (1, 5, 10)
    assert tuple(round(test.ceiling[f"t2i_r{k}"], 2) for k in ks) == ceiling
    assert tuple(round(test.class_oracle[f"i2t_r{k}"], 2) for k in ks) == i2t
    assert tuple(round(test.class_oracle[f"t2i_r{k}"], 2) for k in ks) == t2i
    assert round(test.class_oracle["mR"], 2) == mean


@pytest.mark.parametrize("name", ["rsicd", "rsitmd", "ucm"])
def test_real_text_files_pass_as_their_cards_cut_them(name):
    card = load_card(f"{name}-precomp")
    root = shared_path("data", "annotations", "precomp", f"{name}_precomp")
    report = examine(load(card, root, **lenient(card)), card, check_pixels=False)
    assert report.ok, report.findings
    assert not {"D003", "D004"} & {finding.code for finding in report.findings}


def test_real_pictures_of_ucm():
    card = load_card("ucm")
    report = examine(load(card, shared_path("data", "ucm_captions"), blank="keep"), card)
    assert report.ok and report.bad_pictures == []
    assert report.same_pictures == [["train/102.jpg", "train/103.jpg"]]
    assert Counter(finding.severity for finding in report.findings)["error"] == 0


def test_the_generated_set_is_healthy():
    card = load_card("scenes")
    splits = load(card, **lenient(card))
    report = examine(splits, card, check_pixels=False)
    assert report.ok and report.splits["test"].classes == 30
