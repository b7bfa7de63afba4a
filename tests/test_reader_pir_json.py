"""The JSON files of PIR and HarMA, and of NWPU-Captions."""

import json

import numpy as np
import pytest
from support import refused, shared_path

from petlbench.datasets.load import load
from petlbench.datasets.options import NwpuJsonOptions, PirJsonOptions
from petlbench.datasets.readers.karpathy import read_karpathy
from petlbench.datasets.readers.nwpu_json import read_nwpu_json
from petlbench.datasets.readers.pir_json import read_pir_json


def train_items(name="bridge_1", captions=("x", "y"), number=7):
    told = {"image": f"train/{name}.tif", "image_id": number, "label_name": name.split("_")[0], "label": 3}
    return [{"caption": text, **told} for text in captions]


def write(folder, train=None, test=None, stem="rs_"):
    train = train_items() if train is None else train
    test = [{"image": "test/port_2.tif", "caption": ["z", "z"]}] if test is None else test
    for part, items in (("train", train), ("test", test)):
        (folder / f"{stem}{part}.json").write_text(json.dumps(items), encoding="utf-8")
    return folder


def test_both_forms_and_names_without_the_folder_of_the_split(tmp_path):
    splits = read_pir_json(write(tmp_path), tmp_path / "images")
    assert list(splits) == ["train", "test"]
    train, test = splits["train"], splits["test"]
    assert [image.name for image in (*train.images, *test.images)] == ["bridge_1.tif", "port_2.tif"]
    assert train.captions == ("x", "y") and train.owner.tolist() == [0, 0] and test.captions == ("z", "z")
    assert train.classes == ("bridge", "port") and test.labels.tolist() == [1]
    assert train.images[0].path == tmp_path / "images" / "bridge_1.tif"
    (tmp_path / "images" / "train").mkdir(parents=True)
    again = read_pir_json(tmp_path, tmp_path / "images")
    assert again["train"].images[0].path == tmp_path / "images" / "train" / "bridge_1.tif"
    assert again["train"].sha256 == train.sha256, "where pictures lie does not make another split"


def test_names_keep_their_folder_where_they_would_repeat_without(tmp_path):
    write(tmp_path, test=[{"image": "test/bridge_1.tif", "caption": ["z"]}])
    splits = read_pir_json(tmp_path, tmp_path)
    assert [splits[part].images[0].name for part in splits] == ["train/bridge_1.tif", "test/bridge_1.tif"]


def test_classes_from_the_fields(tmp_path):
    splits = read_pir_json(write(tmp_path), tmp_path, PirJsonOptions(labels="field"))
    assert splits["train"].classes == ("bridge",) and splits["test"].labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({}, ["found an object at the top level"]),
        ([], ["found empty at the top level"]),
        (["x"], ["[0]", "a text"]),
        ([{"caption": "x"}], ["[0]", "`image` is missing"]),
        ([{"image": "train/a.tif"}], ["[0] (train/a.tif)", "`caption` holds missing"]),
        ([{"image": "train/a.tif", "caption": 3}], ["`caption` holds a number"]),
        ([{"image": "train/a.tif", "caption": ["x", " "]}], ["caption 1 is blank", "blank=drop"]),
        ([{"image": "../a.tif", "caption": "x"}], ["'../a.tif'", "leads out"]),
        ([{"image": "train/a.tif", "caption": ["x"]}] * 2, ["[1] (train/a.tif)", "also in [0]", "join their captions"]),
        ([*train_items(), *train_items("lake_1")], ["[2] (train/lake_1.tif)", "image_id 7", "'train/bridge_1.tif'"]),
        ([*train_items(), *train_items(number=8)], ["[2]", "image_id is 8, but 7"]),
        ([{"image": "train", "caption": "x"}], ["the name of a split"]),
    ],
)
def test_wrong_items_are_named(tmp_path, train, told):
    refused(lambda: read_pir_json(write(tmp_path, train=train), tmp_path), *told)


def test_damaged_and_foreign_files(tmp_path):
    write(tmp_path)
    write(tmp_path, stem="other_")
    refused(lambda: read_pir_json(tmp_path, tmp_path), "several sets: other, rs", "stem=other")
    assert len(read_pir_json(tmp_path, tmp_path, PirJsonOptions(stem="rs"))) == 2
    refused(lambda: read_pir_json(tmp_path, tmp_path, PirJsonOptions(stem="rsicd")), "rsicd_{train,val,test}.json")
    path = tmp_path / "rs_test.json"
    path.write_text(path.read_text()[:-9])
    refused(lambda: read_pir_json(tmp_path, tmp_path, PirJsonOptions(stem="rs")), f"{path}:1:", "cut off")
    path.write_bytes(b'[{"image": "\xe9"}]')
    refused(lambda: read_pir_json(tmp_path, tmp_path, PirJsonOptions(stem="rs")), str(path), "not UTF-8")
    refused(lambda: read_pir_json(path, tmp_path), "expected the folder")
    (tmp_path / "empty").mkdir()
    refused(lambda: read_pir_json(tmp_path / "empty", tmp_path), "no files STEM_{train,val,test}.json")


@pytest.mark.parametrize(("name", "counts"), [("rsitmd", (3435, 856, 452)), ("rsicd", (1966, 1093))])
def test_real_files_are_what_the_card_says(name, counts):
    from petlbench.datasets.layout import settle
    from petlbench.datasets.registry import load_card

    root = shared_path("data", "annotations", "json")
    card = settle(load_card(name), root, format_name="pir-json").card
    splits = load(card, root)
    assert tuple(len(split.images) for split in splits.values()) == counts
    for part, split in splits.items():
        expected = card.expected[part]
        assert (len(split.images), len(split.captions), split.sha256) == (
            expected.images,
            expected.captions,
            expected.sha256,
        )
        assert len(split.classes) == (33 if name == "rsitmd" else 30)


def test_test_pictures_of_rsicd_are_the_same_in_both_layouts():
    pir = load("rsicd", shared_path("data", "annotations", "json"), format="pir-json")["test"]
    json_ = read_karpathy(shared_path("data", "rsicd", "dataset_rsicd.json"), shared_path("data"))["test"]

    def told(split):
        by_name = {image.name: [] for image in split.images}
        for owner, text in zip(split.owner, split.captions, strict=True):
            by_name[split.images[owner].name].append(text)
        return {name: sorted(texts) for name, texts in by_name.items()}

    assert told(pir) == told(json_) and pir.sha256 != json_.sha256, "the order differs, so the tables stay apart"


# NWPU-Captions


def nwpu(folder, items):
    path = folder / "dataset_nwpu.json"
    path.write_text(json.dumps(items))
    return path


def nwpu_item(name="airplane_001.jpg", split="train", **more):
    return {"filename": name, "split": split, "imgid": 0, "raw": "x ", "raw_2": "z", "raw_1": "y", "sentids": 0, **more}


def test_nwpu_captions_in_their_order_with_the_class_of_their_key(tmp_path):
    path = nwpu(tmp_path, {"airplane": [nwpu_item()], "bridge": [nwpu_item("bridge_001.jpg", "test")]})
    splits = read_nwpu_json(path, tmp_path / "pics")
    assert splits["train"].captions == ("x", "y", "z")
    assert splits["train"].classes == ("airplane", "bridge") and splits["test"].labels.tolist() == [1]
    assert splits["train"].images[0].path == tmp_path / "pics" / "airplane_001.jpg"
    (tmp_path / "pics" / "airplane").mkdir(parents=True)
    again = read_nwpu_json(path, tmp_path / "pics", NwpuJsonOptions(labels="none"))
    assert again["train"].images[0].path == tmp_path / "pics" / "airplane" / "airplane_001.jpg"
    assert again["train"].sha256 == splits["train"].sha256 and again["train"].labels is None


def test_nwpu_pictures_of_one_name_in_two_classes(tmp_path):
    path = nwpu(tmp_path, {"a": [nwpu_item("1.jpg")], "b": [nwpu_item("1.jpg")]})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    images = read_nwpu_json(path, tmp_path)["train"].images
    assert [(i.name, i.path) for i in images] == [(f"{c}/1.jpg", tmp_path / c / "1.jpg") for c in "ab"]


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([], ["found empty at the top level"]),
        ({"a": {}}, ["a: found an object"]),
        ({"a": [3]}, ["a[0]", "a number"]),
        ({"a": [{"split": "train"}]}, ["a[0]", "`filename` is missing"]),
        ({"a": [nwpu_item(split="trian")]}, ["a[0] (airplane_001.jpg)", "'trian'"]),
        ({"a": [{"filename": "1.jpg", "split": "val"}]}, ["no caption", "`raw`"]),
        ({"a": [nwpu_item(raw_1=" ")]}, ["`raw_1` is blank", "blank=drop"]),
        ({"a": [nwpu_item(raw_1=3)]}, ["`raw_1` is a number"]),
        ({"a": [nwpu_item(), nwpu_item()]}, ["two pictures are named 'a/airplane_001.jpg'"]),
    ],
)
def test_wrong_nwpu_items_are_named(tmp_path, items, told):
    path = nwpu(tmp_path, items)
    refused(lambda: read_nwpu_json(path, tmp_path), str(path), *told)


def test_labels_are_int64(tmp_path):
    split = read_pir_json(write(tmp_path), tmp_path)["train"]
    assert split.labels.dtype == np.int64 and split.owner.dtype == np.int64
