"""ViLT-style .arrow files: what is written can be read, here and by ViLT's own way, and every trap is named."""

import io
import os
import pickle
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import yaml
from cli_calls import call, small_set
from data_files import item, karpathy_set, write_json, write_picture
from PIL import Image
from support import shared_path

from petlbench.datasets.cache import prepare
from petlbench.datasets.doctor import examine, lenient
from petlbench.datasets.load import load
from petlbench.datasets.preprocess import prepare_picture
from petlbench.datasets.readers.vilt_arrow import ViltArrowOptions, read_vilt_arrow
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import SPLITS, DataError, FileImage, Split
from petlbench.datasets.writers.vilt_arrow import write_vilt_arrow
from petlbench.harness.experiment import load_experiment
from petlbench.harness.plan import make_plan

STEM = "ucm_caption_karpathy_new"
CARD = """\
name: mine
title: My set
version: 1
licence: CC0
citation: me
format: vilt-arrow
files: {annotations: .}
"""


def refused(call_, *told):
    with pytest.raises(DataError) as caught:
        call_()
    for part in told:
        assert part in str(caught.value), str(caught.value)


def picture(seed, kind="PNG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def row(number, captions=("a cat", "a dog"), split="train", **more):
    return {"image": picture(number), "caption": list(captions), "image_id": f"p_{number}.png", "split": split, **more}


def put(path, rows):
    """The steps of ViLT's writers: a data frame, a table, one file."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(pd.DataFrame(rows))
    with pa.OSFile(str(path), "wb") as sink, pa.RecordBatchFileWriter(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def put_set(folder, stem=STEM, **rows):
    """Three files of two pictures each, or the rows given by split."""
    for first, split in enumerate(SPLITS):
        listed = rows.get(split, [row(2 * first + k, split=split) for k in range(2)])
        put(folder / f"{stem}_{split}.arrow", listed)
    return folder


def read(folder, **options):
    return read_vilt_arrow(folder, ViltArrowOptions(**options))


def read_as_vilt(path):
    """The calls of ViLT's base_dataset.py: pictures, and caption lists without repeats."""
    table = pa.ipc.RecordBatchFileReader(pa.memory_map(str(path), "r")).read_all()
    table = pa.concat_tables([table], promote_options="default")
    captions = [list(set(texts)) for texts in table["caption"].to_pandas().tolist()]
    opened = [Image.open(io.BytesIO(table["image"][i].as_py())).convert("RGB") for i in range(len(table))]
    return table, captions, opened


def told_labels(split: Split):
    return None if split.labels is None else [split.classes[n] if n >= 0 else None for n in split.labels]


def same_data(left: Split, right: Split):
    assert left.sha256 == right.sha256, "names, captions and owners"
    assert told_labels(left) == told_labels(right)
    for one, other in zip(left.images, right.images, strict=True):
        assert np.array_equal(np.asarray(one.open()), np.asarray(other.open())), one.name


def flat_split(name="train", names=("a.png",), folder=None, **more):
    images = [write_picture(folder / n) for n in names]
    refs = tuple(FileImage(path, n) for path, n in zip(images, names, strict=True))
    defaults = {"captions": ("a cat",) * len(names), "owner": np.arange(len(names), dtype=np.int64)}
    return Split(name=name, images=refs, **{**defaults, **more})


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


def other_container(path, kind):
    table = pa.Table.from_pandas(pd.DataFrame([row(0), row(1)]))
    good = path.read_bytes()
    if kind == "stream":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "parquet":
        pa.parquet.write_table(table, path)
    else:
        contents = {
            "cut": good[: len(good) // 2],
            "empty": b"",
            "text": b'{"images": []}',
            "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "feather1": b"FEA1" + bytes(20) + b"FEA1",
            "garbage": b"ARROW1" + bytes(200) + b"ARROW1",
            "footer": good[:-200] + bytes(190) + good[-10:],
        }
        path.write_bytes(contents[kind])


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


# Against the Karpathy JSON


def json_of(folder, change=None):
    items = [
        item(f"p_{n}.png", "train" if n < 2 else "val" if n < 4 else "test", (f"cat {n}", f"dog {n}")) for n in range(6)
    ]
    if change:
        change(items)
    return write_json(folder, items, "dataset.json")


def rows_of_json(order=range(6)):
    """Rows whose captions are those of picture ``order[n]``."""
    splits = {"train": (0, 1), "val": (2, 3), "test": (4, 5)}
    return {
        name: [row(n, (f"cat {order[n]}", f"dog {order[n]}"), name) for n in numbers]
        for name, numbers in splits.items()
    }


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


# Writing


def test_scenes_go_round(tmp_path):
    scenes = load("scenes", train=66, val=0, test=6)
    done = []
    paths = write_vilt_arrow(scenes, tmp_path, load_card("scenes"), progress=lambda *seen: done.append(seen))
    assert [p.name for p in paths] == [f"scenes_caption_karpathy_{s}.arrow" for s in SPLITS] + [
        "scenes_caption_karpathy.yaml"
    ]
    assert sorted(tmp_path.iterdir()) == sorted(paths), "nothing else is left behind"
    assert done == [("train", 64, 66), ("train", 66, 66), ("test", 6, 6)]
    card = load_card(paths[-1])
    assert (card.name, card.format, card.expected["train"].images) == ("scenes-arrow", "vilt-arrow", 66)
    back = load(card, tmp_path)
    for name, split in scenes.items():
        assert back[name].sha256 == split.sha256 == card.expected[name].sha256
        same_data(back[name], split)
    assert examine(back, card, check_pixels=False).ok


def test_vilts_own_way_reads_what_is_written(tmp_path):
    scenes = load("scenes", train=66, val=0, test=0)
    path, *_ = write_vilt_arrow(scenes, tmp_path, load_card("scenes"), stem="x")
    table, captions, opened = read_as_vilt(path)
    train = scenes["train"]
    assert table.column_names == ["image", "caption", "image_id", "split", "path", "label"]
    assert [set(texts) for texts in captions] == [
        {train.captions[c] for c in np.flatnonzero(train.owner == n)} for n in range(66)
    ]
    assert all(isinstance(text, str) for texts in captions for text in texts)
    assert np.array_equal(np.asarray(opened[65]), np.asarray(train.images[65].open()))
    assert table["path"][65].as_py() == table["image_id"][65].as_py() == train.images[65].name
    assert set(table["split"].to_pylist()) == {"train"}


def test_picture_files_keep_their_bytes_and_captions_their_owners(tmp_path):
    images = tuple(flat_split(names=("b.jpg", "a.jpg"), folder=tmp_path).images)
    split = Split("train", images, ("one", "two", "three"), np.array([1, 0, 1]))  # captions not picture by picture
    paths = write_vilt_arrow({"train": split}, tmp_path / "out", load_card("ucm"), stem="x")
    train = load(paths[-1], tmp_path / "out")["train"]
    assert [image.content() for image in train.images] == [(tmp_path / n).read_bytes() for n in ("b.jpg", "a.jpg")]
    assert (train.captions, train.owner.tolist()) == (("two", "one", "three"), [0, 1, 1])
    assert train.labels is None and "label" not in read_as_vilt(paths[0])[0].column_names


def test_real_pictures_go_round(tmp_path):
    ucm = load("ucm", shared_path("data", "ucm_captions"))
    few = {}
    for name, split in ucm.items():
        picked = random.Random(0).sample(range(len(split.images)), 5)
        kept = [c for n in picked for c in np.flatnonzero(split.owner == n)]
        few[name] = Split(
            name=name,
            images=tuple(split.images[n] for n in picked),
            captions=tuple(split.captions[c] for c in kept),
            owner=np.repeat(np.arange(5), 5),
            labels=split.labels[picked],
            classes=split.classes,
        )
    paths = write_vilt_arrow(few, tmp_path, load_card("ucm"), stem=STEM)
    again = write_vilt_arrow(load(paths[-1], tmp_path), tmp_path / "again", load_card(paths[-1]), stem=STEM)
    for one, other in zip(paths[:-1], again, strict=False):
        assert one.read_bytes() == other.read_bytes(), "what was read is written as it was"
    for name, split in load(paths[-1], tmp_path).items():
        same_data(split, few[name])
        assert [image.content() for image in split.images] == [image.content() for image in few[name].images]


def test_a_failed_export_leaves_nothing_and_changes_nothing(tmp_path):
    good, out = flat_split(folder=tmp_path), tmp_path / "out"
    write_vilt_arrow({"train": good}, out, load_card("ucm"), stem="x")
    before = {path: path.read_bytes() for path in out.iterdir()}
    refused(
        lambda: write_vilt_arrow({"train": good}, out, load_card("ucm"), stem="x"), "x_train.arrow, x.yaml", "--force"
    )
    bad = flat_split("test", ("c.png", "d.png"), tmp_path)
    (tmp_path / "d.png").write_bytes(b"no picture")
    splits = {"train": flat_split(names=("other.png",), folder=tmp_path), "test": bad}
    refused(lambda: write_vilt_arrow(splits, out, load_card("ucm"), stem="x", force=True), "d.png", "cannot be decoded")
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    splits.pop("test")
    write_vilt_arrow(splits, out, load_card("ucm"), stem="x", force=True)
    assert load(out / "x.yaml", out)["train"].images[0].name == "other.png"


def test_what_these_files_cannot_hold_is_refused(tmp_path):
    def write(*splits, **more):
        write_vilt_arrow({s.name: s for s in splits}, tmp_path / "out", load_card("ucm"), **more)

    one = flat_split(folder=tmp_path)
    refused(lambda: write(one, flat_split("test", folder=tmp_path)), "a.png is in train and in test")
    refused(lambda: write(flat_split(names=("a.png", "a.png"), folder=tmp_path)), "share a name")
    silent = flat_split(names=("a.png", "b.png"), folder=tmp_path, captions=("x",), owner=np.array([0]))
    refused(lambda: write(silent), "pictures without a caption: 1, e.g. b.png")
    refused(lambda: write(one, stem="../x"), "'../x'", "beginning of a file name")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("")
    refused(lambda: write(one), "is a file, expected a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    split = flat_split(folder=tmp_path)
    refused(lambda: write_vilt_arrow({"train": split}, tmp_path / "out", load_card("ucm")), "out", "cannot be written")


# Cache, doctor, cards, command line


def test_the_picture_cache_works_from_several_processes(tmp_path):
    put_set(tmp_path, train=[row(n) for n in range(40, 80)])
    split = read(tmp_path)["train"]
    assert len(pickle.dumps(split.images[0])) < 1000, "a reference, not the picture"
    cache = tmp_path / "cache"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        made = [pool.submit(prepare, split, 16, cache) for _ in range(2)]
        arrays = [future.result().array for future in made]
    here = prepare(split, 16, cache)
    assert not here.fresh and all(np.array_equal(array, here.array) for array in arrays)
    assert np.array_equal(here.array[7], prepare_picture(Image.open(io.BytesIO(picture(47))), 16))
    (tmp_path / f"{STEM}_train.arrow").touch()
    assert prepare(read(tmp_path)["train"], 16, cache).folder == here.folder, "known by content"
    put_set(tmp_path, train=[row(n) for n in range(41, 81)])
    assert prepare(read(tmp_path)["train"], 16, cache).folder != here.folder


def test_the_doctor_tells_repeats_and_joined_splits(tmp_path):
    put_set(tmp_path, train=[row(0, ["x", "y", "x"]), row(1, ["y"])])
    card_file = tmp_path / "mine.yaml"
    options = "options: {captions: distinct, parts: {train: [train, val]}}\n"
    card_file.write_text(CARD + "expected: {train: {images: 4, captions: 7}}\n" + options)
    card = load_card(card_file)
    assert len(load(card, tmp_path)["train"].captions) == 7
    report = examine(load(card, tmp_path, **lenient(card)), card)
    found = {finding.code: finding for finding in report.findings}
    assert report.splits["train"].captions == 8 and report.splits["train"].repeated_captions == 1
    assert "1 caption in all" in found["D011"].message and "leaves the repeats out" in found["D011"].advice
    assert found["D007"].severity == "warning" and "parts" in found["D007"].advice
    assert "D003" not in found and report.ok, report.findings


def test_a_card_of_these_files(tmp_path, monkeypatch):
    card = tmp_path / "mine.yaml"
    card.write_text(CARD + "options: {stam: x}\n")
    refused(lambda: load_card(card), "mine.yaml:8: key `options.stam` is unknown; did you mean `stem`?")
    card.write_text(CARD.replace("{annotations: .}", "{annotations: ., images: pics}"))
    refused(lambda: load_card(card), "vilt-arrow needs no `files.images`")
    card.write_text(CARD.replace("vilt-arrow", "karpathy"))
    refused(lambda: load_card(card), "karpathy needs `files.images`")
    card.write_text(CARD)
    monkeypatch.delenv("PETLBENCH_DATA", raising=False)
    refused(lambda: load(card), "STEM_{train,val,test}.arrow", "options annotations, stem, pattern, parts")
    put_set(tmp_path, **rows_of_json())
    json_of(tmp_path)
    assert len(load(card, tmp_path, karpathy_json="dataset.json")) == 3
    refused(lambda: load(card, tmp_path, karpathy_json="no.json"), str(tmp_path / "no.json"))
    refused(lambda: load(card, tmp_path, parts={"val": ["test"]}), "key `parts`", "nothing else may read the test")


def test_export_through_the_command_line(tmp_path):
    card, root = small_set(tmp_path)
    out = tmp_path / "arrow"
    export = ("data", "export", card, "--root", root, "--out", out, "--format", "vilt-arrow", "--stem", STEM)
    called = call(*export)
    assert called.code == 0, called
    assert f"train: 8 pictures, 16 captions in {out / STEM}_train.arrow" in called.out
    written = out / f"{STEM}.yaml"
    assert called.out.endswith(f"Read them by: -d {written}\n")
    assert yaml.safe_load(written.read_text())["name"] == "toyset-arrow"
    assert call("data", "doctor", written).code == 0, "the card knows its folder"
    for split, source in load(card, root).items():
        same_data(load(written, out)[split], source)
    assert "there already" in call(*export).error
    assert call(*export, "--force").code == 0
    (root / "pictures" / "park_0.jpg").unlink()
    assert "park_0.jpg: picture not found" in call(*export, "--force").error
    assert len(list(out.iterdir())) == 4


def test_bad_files_through_the_command_line(tmp_path):
    card = tmp_path / "mine.yaml"
    card.write_text(CARD)
    put_set(tmp_path, train=[row(0, split="test"), row(1)])
    doctor = ("data", "doctor", card, "--root", tmp_path, "--json")
    assert "says split 'test'" in call(*doctor).error
    assert call(*doctor, "--set", "split_column=ignore").json["splits"]["train"]["images"] == 2
    assert "did you mean `split_column`?" in call(*doctor, "--set", "split_colum=ignore").error
    put_set(tmp_path)
    other_container(tmp_path / f"{STEM}_val.arrow", "stream")
    assert "an Arrow IPC stream" in call(*doctor).error
    (tmp_path / f"{STEM}_val.arrow").unlink()
    assert f"{STEM}_val.arrow: not found" in call(*doctor).error
    assert "no such card" in call("data", "export", "nosuch", "--out", tmp_path / "out").error
    assert call("data", "export", "scenes", "--out", tmp_path / "out", "--format", "coco").code == 2
    assert not (tmp_path / "out").exists()


def test_a_trial_is_planned_on_these_files(tmp_path):
    source, root = small_set(tmp_path)
    out = tmp_path / "arrow"
    assert call("data", "export", source, "--root", root, "--out", out, "--stem", STEM).code == 0
    card = out / f"{STEM}.yaml"
    places = {"root": str(out), "karpathy_json": str(root / "set.json")}
    of_set = {"datasets": [str(card)], "dataset": {str(card): places}, "results": str(tmp_path / "results")}
    (planned,) = make_plan(load_experiment(None, [], methods=["zero_shot"], **of_set)).planned
    options = planned.trial.spec.dataset.options
    assert (options["karpathy_json"], options["captions"]) == ("set.json", "all")
    assert str(tmp_path) not in planned.trial.spec.model_dump_json(), "what a trial is does not depend on folders"


def test_the_karpathy_set_and_its_export_are_one(tmp_path):
    karpathy_set(tmp_path)
    card = tmp_path / "k.yaml"
    text = CARD.replace("vilt-arrow", "karpathy").replace("{annotations: .}", "{annotations: set.json, images: images}")
    card.write_text(text)
    splits = load(card, tmp_path)
    paths = write_vilt_arrow(splits, tmp_path / "out", load_card(card))
    back = load(paths[-1], tmp_path / "out", karpathy_json=str(tmp_path / "set.json"))
    assert list(back) == ["train", "test"]
    for name, split in splits.items():
        same_data(back[name], split)
