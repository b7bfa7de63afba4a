"""Folders without a card: which format they are in is found by looking, and told; nothing is guessed."""

import json

import pytest
from cli_calls import call
from data_files import item, karpathy_set, precomp_set, write_json, write_picture
from support import refused

from petlbench.datasets.detect import detect
from petlbench.datasets.layout import settle
from petlbench.datasets.load import load
from petlbench.datasets.picture_folder import find_pictures
from petlbench.datasets.registry import load_card


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PETLBENCH_DATA", raising=False)


def folder(tmp_path, name="My Set"):
    (tmp_path / name).mkdir()
    return tmp_path / name


def table(place, name="captions.csv", image="a.jpg"):
    (place / name).write_text(f"image,caption\n{image},x\n")
    return place


def pir(place, stem="rs"):
    (place / f"{stem}_train.json").write_text(json.dumps([{"image": "train/a.jpg", "caption": "x", "image_id": 0}]))
    (place / f"{stem}_test.json").write_text(json.dumps([{"image": "test/b.jpg", "caption": ["y"]}]))
    return place


def nwpu(place):
    (place / "dataset_nwpu.json").write_text(json.dumps({"a": [{"filename": "a.jpg", "split": "train", "raw": "x"}]}))
    return place


def karpathy(place):
    write_json(place, [item("a.jpg")])
    return place


@pytest.mark.parametrize(
    ("make", "format_name", "why"),
    [
        (karpathy, "karpathy", "set.json has the list `images`"),
        (lambda place: precomp_set(place), "precomp", "train_caps.txt"),
        (pir, "pir-json", "rs_test.json, rs_train.json"),
        (nwpu, "nwpu-json", "dataset_nwpu.json"),
        (table, "table", "pictures in `image`, captions in `caption`"),
        (lambda place: table(place, "captions.tsv"), "table", "captions.tsv"),
    ],
)
def test_formats_are_told_apart(tmp_path, make, format_name, why):
    place = make(folder(tmp_path))
    found = detect(place)
    assert found.format == format_name and why in found.line and "no pictures found" in found.line
    assert load(place)["train"].captions
    inner = make_inner(tmp_path, make)
    assert detect(inner).files.annotations.startswith("annotations"), "one folder down too"
    assert load(inner)["train"].sha256 == load(place)["train"].sha256


def make_inner(tmp_path, make):
    (tmp_path / "outer" / "annotations").mkdir(parents=True)
    make(tmp_path / "outer" / "annotations")
    return tmp_path / "outer"


def test_the_name_of_a_folder_becomes_the_name_of_the_set(tmp_path):
    card = load_card(karpathy(folder(tmp_path)))
    assert (card.name, card.title, card.format, card.root) == ("my-set", "My Set", "auto", str(tmp_path / "My Set"))
    assert load_card(karpathy(folder(tmp_path, "ucm"))).name == "ucm-folder", "no folder poses as a known set"


def test_several_candidates_are_listed_with_how_to_name_one(tmp_path):
    place = table(karpathy(folder(tmp_path)))
    ways = ["2 descriptions", "--set format=karpathy --set annotations=set.json", "--set format=table"]
    refused(lambda: load(place), *ways)
    assert len(load(place, format="table")["train"].captions) == 1
    assert len(load(place, format="karpathy")["train"].captions) == 2
    assert len(load(place, annotations="captions.csv")["train"].captions) == 1
    assert len(load(place, annotations="set.json", format="karpathy")["train"].captions) == 2
    refused(lambda: load(place, format="coco"), "'coco' is unknown", "karpathy")
    refused(lambda: load(place, format="precomp"), "no files of format precomp", "captions.csv, set.json")
    pir(pir(folder(tmp_path, "two")), "other")
    refused(lambda: load(tmp_path / "two"), "stem=rs", "stem=other")
    assert len(load(tmp_path / "two", stem="rs")) == 2


def test_nothing_known_says_what_is_there_and_what_was_expected(tmp_path):
    place = folder(tmp_path)
    refused(lambda: load(place), "no files of a known format", "there: nothing", "docs/data_formats.md")
    (place / "notes.csv").write_text("a,b\n1,2\n")
    (place / "model.json").write_text('{"layers": 3}')
    refused(lambda: load(place), "model.json, notes.csv", "no column with the names of the pictures", "a, b")
    (place / "set.csv").write_text("bild,satz\na.jpg,x\n")
    refused(lambda: load(place, image_column="bild"), "caption_columns")
    assert load(place, image_column="bild", caption_columns="satz")["train"].captions == ("x",)
    refused(lambda: load_card(tmp_path / "no" / "folder"), "no such folder")


def test_damaged_files_are_named_where_they_are_the_only_ones(tmp_path):
    (folder(tmp_path) / "set.parquet").write_bytes(b"PAR1 and no more")
    refused(lambda: load(tmp_path / "My Set"), "set.parquet", "cannot be read", "copy it again")


def test_the_folder_of_the_pictures_and_their_extension(tmp_path):
    place = folder(tmp_path)
    assert find_pictures(place, "a.jpg")[0] == "images", "the usual place, where there is none"
    write_picture(place / "thumbs" / "small.png")
    write_picture(place / "tiles" / "deep" / "a.tif")
    assert find_pictures(place, "a.tif")[:2] == ("tiles/deep", None)
    assert find_pictures(place, "a.jpg")[:2] == ("tiles/deep", "tif")
    assert find_pictures(place, "train/a.tif", by_split=True)[:2] == ("tiles/deep", None)
    assert "train/a.tif is not there" in find_pictures(place, "train/a.tif")[2], "other readers keep the name whole"
    write_picture(place / "images" / "a.tif")
    assert find_pictures(place, "a.tif")[:2] == ("images", None)
    where, extension, told = find_pictures(place, "z.jpg")
    assert (where, extension) == ("images", "tif") and "z.jpg is not there" in told


@pytest.mark.parametrize("make", [lambda place: table(place, image="images/a.jpg"), pir])
def test_names_from_the_root_of_the_set_are_found(tmp_path, make):
    place = make(folder(tmp_path))
    for name in ("a.jpg", "train/a.jpg", "test/b.jpg"):
        write_picture(place / "images" / name)
    pictures = [image for split in load(place).values() for image in split.images]
    assert pictures and all(image.path.is_file() for image in pictures)


def test_metadata_beside_other_annotations_decides_nothing(tmp_path):
    place = karpathy(folder(tmp_path))
    write_picture(place / "images" / "a.jpg")
    (place / "images" / "metadata.csv").write_text("file_name,caption\na.jpg,z\n")
    refused(lambda: load(place), "fit 2 descriptions", "--set format=huggingface", "--set format=karpathy")
    assert load(place, format="karpathy")["train"].captions == ("a cat", "a dog")
    (place / "set.json").unlink()
    assert load(place)["train"].captions == ("z",)
    assert detect(place, "table").files.annotations == "images/metadata.csv"


def test_a_lone_table_is_of_the_split_of_its_name(tmp_path):
    place = table(folder(tmp_path), "test.csv")
    assert list(load(place)) == ["test"]
    (place / "test.csv").write_text("image,caption,split\na.jpg,x,val\n")
    assert list(load(place)) == ["val"], "unless it tells splits itself"


def test_a_known_set_is_read_from_the_layout_that_is_there(tmp_path):
    precomp_set(tmp_path / "set")
    settled = settle(load_card("rsicd"), tmp_path / "set")
    assert settled.card.format == "precomp" and settled.card.name == "rsicd" and "read as precomp" in settled.told
    assert settled.card.expected["test"].images == 1093, "the counts of that layout"
    assert load("rsicd", tmp_path / "set")["test"].captions
    other = folder(tmp_path)
    karpathy(other)
    assert settle(load_card("rsicd"), other).card.files.annotations == "set.json", "another name is found"
    refused(
        lambda: load("rsicd", table(folder(tmp_path, "third"))),
        "dataset_rsicd.json does not exist",
        "pir-json, precomp",
    )


def test_prepare_doctor_and_export_say_what_they_found(tmp_path):
    karpathy_set(tmp_path / "set")
    line = "set: read as karpathy: set.json has the list `images` with `filename` and `sentences`; pictures in images/"
    made = call("data", "prepare", tmp_path / "set", "--resolution", "16")
    assert made.code == 0 and line in made.err and "train: 6 pictures at 16 px" in made.out
    seen = call("data", "doctor", tmp_path / "set", "--json")
    assert line in seen.err and seen.json["card"] == "set" and not seen.json["bad_pictures"]
    table(tmp_path / "set")
    assert "2 descriptions" in call("data", "prepare", tmp_path / "set").error
    assert call("data", "prepare", tmp_path / "set", "--resolution", "16", "--set", "format=karpathy").code == 0
    assert call("data", "doctor", tmp_path / "set", "--set", "format=karpathy", "--set", "fold=1/3").code == 0
