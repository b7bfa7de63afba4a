"""ViLT-style .arrow files: what ViLT's writers make can be read, and every trap is named."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from arrow_files import (
    CARD,
    STEM,
    json_of,
    other_container,
    picture,
    put,
    put_set,
    read,
    row,
    rows_of_json,
    told_labels,
)
from data_files import item
from PIL import Image
from support import refused

from petlbench.datasets.doctor import examine
from petlbench.datasets.readers.vilt_arrow import ViltArrowOptions
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import SPLITS

# Reading


def test_reads_what_vilts_writers_make(tmp_path):
    rows = [row(0, [" a cat ", "a cat", "a dog"]), row(1, ["one"])]
    splits = read(put_set(tmp_path, train=rows))
    train = splits["train"]
    assert list(splits) == list(SPLITS)
    assert [image.name for image in train.images] == ["p_0.png", "p_1.png"]
    assert train.captions == ("a cat", "a cat", "a dog", "one")
    assert train.owner.tolist() == [0, 0, 0, 1]
    assert train.labels is None and train.classes == ()
    assert train.images[1].content() == picture(1)
    expected = np.asarray(Image.open(io.BytesIO(picture(1))))
    assert np.array_equal(np.asarray(train.images[1].open()), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{STEM}_{s}.arrow" for s in SPLITS)


def test_distinct_captions_keep_their_order(tmp_path):
    folder = put_set(tmp_path, train=[row(0, ["b", "a", "b", " a"]), row(1, ["b", "c"])])
    train = read(folder, captions="distinct")["train"]
    assert (train.captions, train.owner.tolist()) == (("b", "a", "b", "c"), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("option", "expected"),
    [("column", ["beach", None]), ("prefix", ["p", "p"]), ("none", None), ("ucm_number", None)],
)
def test_labels_come_from_where_the_option_says(tmp_path, option, expected):
    folder = put_set(tmp_path, train=[row(0, label="beach"), row(1, label=None)])
    assert told_labels(read(folder, labels=option)["train"]) == expected


def test_integer_and_categorical_columns_are_names_too(tmp_path):
    frame = pd.DataFrame([row(0), row(1)]).astype({"split": "category"})
    frame["image_id"] = [17, 4]
    train = read(put_set(tmp_path, train=pa.Table.from_pandas(frame)))["train"]
    assert [image.name for image in train.images] == ["17", "4"]
    assert train.images[0].content() == picture(0)


def test_file_names_by_stem_and_pattern(tmp_path):
    put_set(tmp_path)
    refused(lambda: read(tmp_path, stem="Sydney"), "Sydney_train.arrow", "not found", STEM)
    put_set(tmp_path, stem="ucm_caption_karpathy_label")
    told = ["several stems", "ucm_caption_karpathy_label, ucm_caption_karpathy_new", "stem=ucm"]
    refused(lambda: read(tmp_path), *told)
    assert len(read(tmp_path, stem=STEM)) == 3
    for split in SPLITS:
        (tmp_path / f"{STEM}_{split}.arrow").rename(tmp_path / f"{split}.of.rs.arrow")
    assert len(read(tmp_path, pattern="{split}.of.rs.arrow")) == 3
    refused(lambda: read(tmp_path, pattern="x_{split}.arrow", stem="x"), "x_train.arrow")
    refused(lambda: read(tmp_path / "train.of.rs.arrow"), "expected the folder")
    (tmp_path / "empty").mkdir()
    refused(lambda: read(tmp_path / "empty"), "no file is named like {stem}_{split}.arrow", "none")
    with pytest.raises(ValueError, match="once"):
        ViltArrowOptions(pattern="{stem}.arrow")


def test_parts_join_and_leave_out_only_when_asked(tmp_path):
    folder = put_set(tmp_path)
    put(folder / f"{STEM}_restval.arrow", [row(9, split="restval")])
    refused(
        lambda: read(folder),
        "restval.arrow",
        "no split reads this file (pictures: 1)",
        "parts={train: [train, restval]}",
    )
    assert len(read(folder, parts={"unused": ["restval"]})["train"].images) == 2
    joined = read(folder, parts={"train": ["train", "val", "restval"]})
    assert [image.name for image in joined["train"].images] == [f"p_{n}.png" for n in (0, 1, 2, 3, 9)]
    assert joined["train"].owner.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [image.name for image in joined["val"].images] == ["p_2.png", "p_3.png"]
    refused(lambda: read(folder, parts={"val": ["restval"]}), "_val.arrow", "no split reads this file")
    (folder / f"{STEM}_val.arrow").unlink()
    refused(lambda: read(folder, parts={"unused": ["restval"]}), f"{STEM}_val.arrow: not found", "parts={val: []}")
    assert list(read(folder, parts={"val": [], "unused": ["restval"]})) == ["train", "test"]
    for shared in ({"train": ["train", "test"]}, {"val": ["test"]}):
        with pytest.raises(ValueError, match="nothing else may read the test pictures"):
            ViltArrowOptions(parts=shared)


def test_empty_parts_are_empty_splits(tmp_path):
    empty = pa.Table.from_pandas(pd.DataFrame([], columns=["image", "caption", "image_id", "split"]))
    folder = put_set(tmp_path, val=empty)
    put(folder / f"{STEM}_restval.arrow", empty)  # ViLT's writers leave one behind for sets that have none
    splits = read(folder)
    assert {name: len(split.images) for name, split in splits.items()} == {"train": 2, "val": 0, "test": 2}


# Traps


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ([row(0), row(0)], ["row 1", "row 0", "'p_0.png'", "occur once"]),
        ([row(0), row(4)], [f"{STEM}_test.arrow: row 0", "train.arrow: row 1", "'p_4.png'"]),
        ([row(0), row(1, split="val")], ["row 1 (p_1.png)", "'val'", "'train'", "1 of 2 rows", "split_column=ignore"]),
        ([row(0), {**row(1), "caption": []}], ["row 1 (p_1.png)", "at least one text"]),
        ([row(0), {**row(1), "caption": None}], ["row 1 (p_1.png)", "None"]),
        ([row(0), row(1, ["x", " "])], ["row 1 (p_1.png)", "caption 1 is blank", "blank=drop"]),
        ([row(0), {**row(1), "image": None}], ["no picture in 1 of 2 rows"]),
        ([row(0), {**row(1), "image_id": None}], ["row 1 has no image_id"]),
        ([{**row(0), "image": "/a/0.png"}], ["column image holds", "string", "expected binary"]),
        ([{**row(0), "caption": "a cat"}], ["column caption holds", "string", "list of texts"]),
        ([{"image": b"", "caption": ["x"], "path": "x"}], ["column image_id is missing", "found image, caption, path"]),
        ([{**row(0), "image_id": ["x"]}], ["column image_id holds list"]),
    ],
)
def test_rows_that_contradict_something(tmp_path, broken, told):
    refused(lambda: read(put_set(tmp_path, train=broken)), f"{STEM}_", *told)


def test_ways_out_of_complaints_work(tmp_path):
    folder = put_set(tmp_path, train=[row(0, ["x", " "]), row(1, [" "], split="val")])
    splits = read(folder, split_column="ignore", blank="drop")
    assert splits["train"].captions == ("x",) and len(splits["train"].images) == 1
    assert read(folder, split_column="ignore", blank="keep")["train"].captions == ("x", "", "")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("stream", ["an Arrow IPC stream", "docs/data_formats.md"]),
        ("parquet", ["a Parquet file", "docs/data_formats.md"]),
        ("feather1", ["a Feather file of version 1"]),
        ("lfs", ["Git LFS pointer", "git lfs pull"]),
        ("cut", ["cut off"]),
        ("empty", ["the file is empty"]),
        ("text", ["begins with b'{\"images'", "expected an Arrow IPC file"]),
        ("garbage", ["cannot be read"]),
        ("footer", ["cannot be read"]),
    ],
)
def test_files_of_another_kind(tmp_path, kind, told):
    path = put_set(tmp_path) / f"{STEM}_train.arrow"
    other_container(path, kind)
    refused(lambda: read(tmp_path), str(path), *told)


def test_damaged_offsets_are_an_error_not_a_crash(tmp_path):
    path = put_set(tmp_path) / f"{STEM}_train.arrow"
    lengths = np.array([0, len(picture(0)), len(picture(0)) + len(picture(1))], dtype="<i4").tobytes()
    data = path.read_bytes()
    assert data.count(lengths) == 1
    path.write_bytes(data.replace(lengths, lengths[:4] + np.array([2**30], dtype="<i4").tobytes() + lengths[8:]))
    refused(lambda: read(tmp_path), str(path), "cannot be read")


def test_a_feather_file_of_version_2_is_an_arrow_file(tmp_path):
    folder = put_set(tmp_path)
    table = pa.Table.from_pandas(pd.DataFrame([row(0), row(1)]))
    pa.feather.write_feather(table, folder / f"{STEM}_train.arrow", compression="lz4")
    assert read(folder)["train"].images[1].content() == picture(1)


def test_pictures_that_do_not_decode_are_found(tmp_path):
    cut = {**row(1), "image": picture(1)[:200]}
    splits = read(put_set(tmp_path, train=[row(0), cut, {**row(7), "image": b""}]))
    refused(splits["train"].images[1].open, "row 1 (p_1.png)", "200 bytes", "data doctor")
    own_card = tmp_path / "mine.yaml"
    own_card.write_text(CARD)
    report = examine(splits, load_card(own_card))
    assert [(bad.name, bad.missing) for bad in report.bad_pictures] == [("p_1.png", False), ("p_7.png", False)]


def test_a_file_replaced_while_in_use_is_noticed(tmp_path):
    folder = put_set(tmp_path)
    first = read(folder)["train"].images[0]
    before = first.fingerprint()
    put(folder / "new.arrow", [row(8), row(0)]).replace(folder / f"{STEM}_train.arrow")
    assert first.fingerprint() != before
    refused(first.content, "row 0 (p_0.png)", "replaced while in use")
    (folder / f"{STEM}_train.arrow").unlink()
    refused(first.fingerprint, "_train.arrow", "cannot be read")


def test_files_that_fit_their_json(tmp_path):
    folder = put_set(tmp_path, **rows_of_json())
    assert len(read(folder, karpathy_json=str(json_of(folder)))) == 3
    folders = json_of(folder, lambda items: items[0].update(filepath="tiles"))
    assert len(read(folder, karpathy_json=str(folders))) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda items: items.insert(1, item("gone.png", "train")),
            ["of the JSON that no file has", "1 (gone.png)"],
        ),
        (lambda items: items.pop(3), ["that the JSON does not have: 1 (p_3.png)"]),
        (lambda items: items[3].update(split="test"), ["in another split", "p_3.png (test in the JSON, val here)"]),
        (
            lambda items: items[2]["sentences"].append({"raw": "third"}),
            ["with other captions than in the JSON: 1 (p_2.png (JSON: 3 captions, here: 2))"],
        ),
    ],
)
def test_files_that_do_not_fit_their_json(tmp_path, change, told):
    folder = put_set(tmp_path, **rows_of_json())
    path = json_of(folder, change)
    refused(lambda: read(folder, karpathy_json=str(path)), f"do not fit {path}", *told)


def test_names_and_captions_out_of_step(tmp_path):
    """A name list that kept a missing file: from there on every picture has its neighbour's captions."""
    folder = put_set(tmp_path, **rows_of_json(order=[0, 2, 3, 4, 5, 0]))
    told = [
        "with other captions than in the JSON: 5 (p_1.png",
        "captions of another picture: 5; names and captions are out",
    ]
    refused(lambda: read(folder, karpathy_json=str(json_of(folder))), *told)


def test_repeats_left_out_by_the_writer_agree_under_distinct(tmp_path):
    folder = put_set(tmp_path, **rows_of_json())
    path = str(json_of(folder, lambda items: items[0]["sentences"].append({"raw": "cat 0"})))
    refused(lambda: read(folder, karpathy_json=path), "p_0.png (JSON: 3 captions, here: 2)")
    assert len(read(folder, karpathy_json=path, captions="distinct")) == 3
