"""Hugging Face data sets: saved folders, image folders, Parquet with pictures, the hub; and what is wrong with them."""

import csv
import io
import pickle

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from data_files import write_picture
from PIL import Image
from support import refused

from petlbench.datasets.load import load
from petlbench.datasets.options import HuggingFaceOptions
from petlbench.datasets.readers import huggingface
from petlbench.datasets.readers.huggingface import read_huggingface
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import DataError, FileImage


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def stored(seed: int, path: str | None = None) -> dict:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": path}


def made(columns: dict) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def saved(folder, **splits):
    datasets.DatasetDict({name: made(columns) for name, columns in splits.items()}).save_to_disk(str(folder))
    return folder


def columns(*numbers, captions=("a port", "a harbour"), **more):
    pictures = [stored(n, f"p_{n}.png") for n in numbers]
    return {"image": pictures, "caption": [list(captions) for _ in numbers], **more}


def names(split):
    return [image.name for image in split.images]


def test_a_saved_dictionary_of_splits(tmp_path):
    saved(tmp_path / "set", train=columns(1, 2, label=["port", "lake"]), validation=columns(3, label=["port"]))
    splits = read_huggingface(tmp_path / "set")
    assert list(splits) == ["train", "val"]
    assert names(splits["train"]) == ["p_1.png", "p_2.png"]
    assert splits["train"].captions == ("a port", "a harbour") * 2
    assert splits["train"].classes == ("lake", "port") and splits["val"].labels.tolist() == [1]
    image = splits["train"].images[1]
    assert image.open().size == (8, 8) and image.content() == stored(2)["bytes"]
    assert pickle.loads(pickle.dumps(image)).content() == image.content()
    assert image.fingerprint() != splits["train"].images[0].fingerprint()


def test_it_opens_without_a_card_and_nothing_is_written_beside_it(tmp_path):
    folder = saved(tmp_path / "set", train=columns(1), test=columns(2))
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    assert {name: len(split.images) for name, split in load(folder).items()} == {"train": 1, "test": 1}
    assert before == sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))


def test_class_numbers_are_told_by_name_and_rows_of_a_picture_are_joined(tmp_path):
    one = {
        "image": [stored(1, "a.png"), stored(1, "a.png"), stored(2, "b.png")],
        "text": ["x", "y", "z"],
        "label": [1, 1, 0],
    }
    data = made(one).cast_column("label", datasets.ClassLabel(names=["lake", "port"]))
    data.save_to_disk(str(tmp_path / "set"))
    split = read_huggingface(tmp_path / "set")["train"]
    assert names(split) == ["a.png", "b.png"] and split.owner.tolist() == [0, 0, 1]
    assert split.classes == ("lake", "port") and split.labels.tolist() == [1, 0]


def test_equal_file_names_of_different_pictures_do_not_join_rows(tmp_path):
    saved(tmp_path / "set", train={"image": [stored(1, "x.png"), stored(2, "x.png")], "caption": ["a", "b"]})
    assert names(read_huggingface(tmp_path / "set")["train"]) == ["train-000000", "train-000001"]


def test_a_name_column_goes_before_stored_names(tmp_path):
    saved(tmp_path / "set", train=columns(1, 2, code=["lake_1", "lake_2"]))
    options = HuggingFaceOptions(name_column="code", labels="prefix")
    split = read_huggingface(tmp_path / "set", options)["train"]
    assert names(split) == ["lake_1", "lake_2"] and split.classes == ("lake",)
    refused(lambda: read_huggingface(tmp_path / "set", HuggingFaceOptions(name_column="kode")), "`kode`", "code")


def test_names_that_stand_for_different_pictures_are_not_taken(tmp_path):
    saved(tmp_path / "set", train=columns(1, 2, name=["port", "port"]))
    assert names(read_huggingface(tmp_path / "set")["train"]) == ["p_1.png", "p_2.png"], "found, but of no use"
    named = HuggingFaceOptions(name_column="name")
    refused(lambda: read_huggingface(tmp_path / "set", named), "`name`", "'port'", "different pictures")


def test_a_name_that_is_missing_is_refused_and_white_space_is_no_part_of_one(tmp_path):
    named = HuggingFaceOptions(name_column="code")
    for number, missing in enumerate((None, " ")):
        folder = saved(tmp_path / f"set{number}", train=columns(1, 2, code=["lake_1", missing]))
        refused(lambda folder=folder: read_huggingface(folder, named), "train[1]", "`code` is empty")
    saved(tmp_path / "set", train=columns(1, 2, code=["lake_1 ", "lake_2"]))
    assert names(read_huggingface(tmp_path / "set", named)["train"]) == ["lake_1", "lake_2"]


def test_a_folder_of_pictures_with_metadata(tmp_path):
    for part, seed in (("train", 1), ("test", 2)):
        write_picture(tmp_path / "set" / part / f"p_{seed}.png", seed=seed)
        with (tmp_path / "set" / part / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["file_name", "caption"], [f"p_{seed}.png", "a port, seen from above"]])
    splits = load(tmp_path / "set")
    assert names(splits["train"]) == ["p_1.png"] and splits["test"].captions == ("a port, seen from above",)
    image = splits["train"].images[0]
    assert isinstance(image, FileImage) and image.path == tmp_path / "set" / "train" / "p_1.png"


def test_parquet_with_pictures_inside(tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    made(columns(1, 2)).to_parquet(str(tmp_path / "set" / "data" / "train-00000-of-00001.parquet"))
    splits = load(tmp_path / "set")
    assert names(splits["train"]) == ["p_1.png", "p_2.png"] and splits["train"].images[0].open().size == (8, 8)


@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
def test_parquet_that_lost_the_word_for_pictures(tmp_path, kind):
    """What pandas writes of a hub file: the bytes are there, the library's note that they are a picture is not."""
    (tmp_path / "set").mkdir()
    cells = [stored(n, f"p_{n}.png") for n in (1, 2)]
    if kind != "struct":
        cells = pa.array([cell["bytes"] for cell in cells], getattr(pa, kind)())
    pa.parquet.write_table(
        pa.table({"image": cells, "caption": ["a port", "a lake"]}), tmp_path / "set" / "train.parquet"
    )
    split = load(tmp_path / "set")["train"]
    assert names(split) == (["p_1.png", "p_2.png"] if kind == "struct" else ["train-000000", "train-000001"])
    expected = np.array(Image.open(io.BytesIO(stored(2)["bytes"])))
    assert split.captions == ("a port", "a lake") and np.array_equal(split.images[1].open(), expected)


def test_the_hub_is_named_in_a_card_or_as_hf(tmp_path, monkeypatch):
    asked = {}

    def load_dataset(place, **options):
        asked.update(options, place=place)
        return datasets.DatasetDict({"train": made(columns(1)), "dev": made(columns(2))})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load("hf:owner/rs-captions", revision="abc123")
    assert list(splits) == ["train", "val"]
    assert asked["place"] == "owner/rs-captions" and asked["revision"] == "abc123"
    assert asked["cache_dir"] == str(tmp_path / "cache" / "petlbench-huggingface")
    assert "trust_remote_code" not in asked
    card = load_card("hf:owner/rs-captions")
    assert card.name == "owner-rs-captions" and card.options == {"repo": "owner/rs-captions"}


def test_a_hub_that_cannot_be_reached(monkeypatch):
    def load_dataset(place, **options):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    refused(lambda: load("hf:owner/unreachable"), "owner/unreachable", "ConnectionError", "network", "hf auth login")
    refused(lambda: load_card("hf:../../etc"), "repo")


def test_wrong_data_sets_are_named(tmp_path):
    saved(tmp_path / "blank", train=columns(1, captions=("x", " ")))
    refused(lambda: read_huggingface(tmp_path / "blank"), "train[0]", "blank caption", "blank=drop")
    assert read_huggingface(tmp_path / "blank", HuggingFaceOptions(blank="drop"))["train"].captions == ("x",)
    saved(tmp_path / "odd", train=columns(1), leftover=columns(2))
    refused(lambda: read_huggingface(tmp_path / "odd"), "'leftover'", "splits={leftover: train}")
    assert list(read_huggingface(tmp_path / "odd", HuggingFaceOptions(splits={"leftover": "drop"}))) == ["train"]
    saved(tmp_path / "both", train=columns(1), test=columns(1))
    refused(lambda: read_huggingface(tmp_path / "both"), "'p_1.png'", "two splits")
    saved(tmp_path / "mute", train={"image": [stored(1)], "number": [3]})
    refused(lambda: read_huggingface(tmp_path / "mute"), "no column with captions", "image, number")
    datasets.Dataset.from_dict({"file": ["a.jpg"], "caption": ["x"]}).save_to_disk(str(tmp_path / "plain"))
    refused(lambda: read_huggingface(tmp_path / "plain"), "no column of pictures", "file (string)", "format=table")
    saved(tmp_path / "gap", train={"image": [stored(1), None], "caption": ["x", "y"]})
    refused(lambda: read_huggingface(tmp_path / "gap"), "train[1]", "no picture")
    made(columns(1)).select([]).save_to_disk(str(tmp_path / "empty"))
    refused(lambda: read_huggingface(tmp_path / "empty"), "cannot be loaded")
    (tmp_path / "nothing").mkdir()
    refused(lambda: read_huggingface(tmp_path / "nothing"), "cannot be loaded", "save_to_disk")
    (saved(tmp_path / "broken", train=columns(1)) / "train" / "state.json").write_text("{")
    refused(lambda: read_huggingface(tmp_path / "broken"), "cannot be loaded", "check the folder")


def test_pictures_outside_of_the_data_set_are_not_read(tmp_path):
    write_picture(tmp_path / "elsewhere" / "a.png")
    source = huggingface.Source(str(tmp_path / "set"))
    with pytest.raises(DataError, match="lies outside"):
        huggingface._allowed(tmp_path / "elsewhere" / "a.png", source)
    assert huggingface._allowed(tmp_path / "set" / "a.png", source) == tmp_path / "set" / "a.png"


def test_a_picture_that_is_none(tmp_path):
    saved(tmp_path / "set", train={"image": [{"bytes": b"no picture", "path": "a.png"}], "caption": ["x"]})
    refused(read_huggingface(tmp_path / "set")["train"].images[0].open, "train[0] (a.png)", "cannot be decoded")
