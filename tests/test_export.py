"""Writing a set in another format: the same splits come back, to the hash, and nothing of the user's is lost."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from cli_calls import call, small_set
from data_files import item, write_json, write_picture
from support import refused, shared_path

from petlbench.datasets.load import load
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import FileImage, Split
from petlbench.datasets.writers.annotations import KINDS, write_annotations


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))


def export(tmp_path, kind, **options):
    card, root = (tmp_path / "toyset.yaml", tmp_path / "files")
    if not root.exists():
        small_set(tmp_path)
    out = tmp_path / f"out-{kind}"
    return write_annotations(load(card, root), out, load_card(card), kind, **options), load(card, root)


def hashes(splits):
    return {name: split.sha256 for name, split in splits.items()}


@pytest.mark.parametrize("pictures", ["refer", "copy"])
@pytest.mark.parametrize("kind", KINDS)
def test_splits_and_classes_come_back(tmp_path, kind, pictures):
    written, splits = export(tmp_path, kind, pictures=pictures)
    assert all(path.is_file() for path in written)
    card = load_card(written[-1])
    assert (
        card.name == f"toyset-{kind}"
        and card.title == "Toy"
        and card.expected["train"].sha256 == splits["train"].sha256
    )
    back = load(written[-1])
    assert hashes(back) == hashes(splits)
    for name, split in splits.items():
        assert [split.classes[n] for n in split.labels] == [back[name].classes[n] for n in back[name].labels]
        assert [a.content() for a in split.images] == [b.content() for b in back[name].images]
        inside = [image.path.is_relative_to(tmp_path / f"out-{kind}") for image in back[name].images]
        assert all(inside) if pictures == "copy" else not any(inside)
    assert hashes(load(written[0].parent)) == hashes(splits), "and without the card, by looking"


def test_one_format_after_another_keeps_the_splits(tmp_path):
    written, splits = export(tmp_path, "karpathy")
    for number, kind in enumerate(("csv", "pir-json", "karpathy")):
        card = load_card(written[-1])
        written = write_annotations(load(card), tmp_path / str(number), card, kind, pictures="copy")
    assert hashes(load(written[-1])) == hashes(splits)


def test_what_the_files_look_like(tmp_path):
    (json_file, _), _ = export(tmp_path, "karpathy")
    first = json.loads(json_file.read_text())["images"][0]
    assert first["filename"] == "park_0.jpg" and first["split"] == "train" and first["class"] == "park"
    assert first["sentences"][1] == {
        "tokens": ["number", "0", "seen", "from", "afar"],
        "raw": "number 0 seen from afar",
        "imgid": 0,
        "sentid": 1,
    }
    (table, _), _ = export(tmp_path, "csv")
    with table.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:2] == [
        ["image", "caption", "split", "class"],
        ["park_0.jpg", "number 0 seen from above", "train", "park"],
    ]
    (train, _, test, _), _ = export(tmp_path, "pir-json")
    told = {"label_name": "park", "label": 0}
    caption = "number 0 seen from above"
    assert json.loads(train.read_text())[0] == {"caption": caption, "image": "train/park_0.jpg", "image_id": 0, **told}
    captions = ["number 10 seen from above", "number 10 seen from afar"]
    assert json.loads(test.read_text())[0] == {"image": "test/park_10.jpg", "caption": captions, **told}


def test_awkward_captions_and_names(tmp_path):
    captions = ['a "quoted", caption', "semi;colon\tand tab", "zwei\nZeilen", "=1+1", "ünï ☃", "<b>&amp;</b>"]
    write_picture(tmp_path / "sub" / "a b.jpg")
    write_json(tmp_path, [item("a b.jpg", captions=captions, filepath="sub"), item("c.jpg", captions=["", "x"])])
    write_picture(tmp_path / "c.jpg")
    splits = load(tmp_path, blank="keep")
    for kind in KINDS:
        written = write_annotations(splits, tmp_path / "out" / kind, load_card(tmp_path), kind)
        assert load(written[-1])["train"].captions == splits["train"].captions
        assert load(written[-1])["train"].sha256 == splits["train"].sha256
        assert yaml.safe_load(written[-1].read_text())["options"]["blank"] == "keep"


def test_drawn_pictures_become_files(tmp_path):
    splits = load("scenes", train=3, val=0, test=2)
    written = write_annotations(splits, tmp_path, load_card("scenes"), "csv")
    back = load(written[-1])
    assert back["train"].sha256 == splits["train"].sha256 and list(back) == ["train", "test"]
    assert back["test"].images[1].open().tobytes() == splits["test"].images[1].open().tobytes()
    refused(
        lambda: write_annotations(splits, tmp_path / "x", load_card("scenes"), "csv", pictures="refer"),
        "--pictures copy",
    )


def test_another_extension_is_kept(tmp_path):
    small_set(tmp_path)
    for path in (tmp_path / "files" / "pictures").iterdir():
        path.rename(path.with_suffix(".png"))
    splits = load(tmp_path / "toyset.yaml", tmp_path / "files", extension="png")
    for pictures in ("refer", "copy"):
        out = tmp_path / pictures
        written = write_annotations(splits, out, load_card(tmp_path / "toyset.yaml"), "csv", pictures=pictures)
        image = load(written[-1])["train"].images[0]
        assert (image.name, image.path.name) == ("park_0.jpg", "park_0.png") and image.open().size == (40, 32)


def test_nothing_is_overwritten_and_nothing_left_half_done(tmp_path):
    written, splits = export(tmp_path, "csv")
    before = written[0].read_bytes()
    refused(lambda: export(tmp_path, "csv"), "toyset.csv, toyset.yaml are there already", "--force")
    (tmp_path / "files" / "pictures" / "port_3.jpg").write_bytes(b"broken")
    refused(lambda: export(tmp_path, "csv", pictures="copy", force=True), "port_3.jpg", "cannot be decoded")
    assert written[0].read_bytes() == before and sorted(p.name for p in written[0].parent.iterdir()) == [
        "toyset.csv",
        "toyset.yaml",
    ]
    card = load_card(tmp_path / "toyset.yaml")
    refused(lambda: write_annotations(splits, tmp_path, card, "csv", "a/b"), "'a/b'", "beginning of a file name")
    refused(lambda: write_annotations(splits, written[0], card, "csv"), "is a file")
    mute = {"train": replace(splits["train"], captions=splits["train"].captions[2:], owner=splits["train"].owner[2:])}
    refused(lambda: write_annotations(mute, tmp_path / "mute", card, "csv"), "without a caption: 1, e.g. park_0.jpg")
    odd = {"train": replace(splits["train"], captions=(" padded", *splits["train"].captions[1:]))}
    refused(lambda: write_annotations(odd, tmp_path / "odd", card, "csv"), "would not give back", "white space")
    assert not list((tmp_path / "odd").iterdir())


@pytest.mark.parametrize("place", ["files", "files/new", "files/pictures/new"])
def test_the_data_folder_is_never_written_to(tmp_path, place):
    card, root = small_set(tmp_path)
    before = sorted(root.rglob("*"))
    told = call("data", "export", card, "--root", root, "--format", "csv", "--out", tmp_path / place, "--force").error
    assert "which is never written to" in told and sorted(root.rglob("*")) == before


def test_pictures_in_folders_of_splits_are_found_again(tmp_path):
    items = []
    for split in ("train", "val", "test"):
        write_picture(tmp_path / "set" / "images" / split / "a.jpg")
        items.append(item(f"{split}/a.jpg", split))
    write_json(tmp_path / "set", items)
    splits = load(tmp_path / "set")
    written = write_annotations(splits, tmp_path / "out", load_card(tmp_path / "set"), "pir-json", pictures="refer")
    back = load(written[-1])
    assert hashes(back) == hashes(splits)
    for name, split in splits.items():
        assert [image.path for image in back[name].images] == [image.path for image in split.images]


def test_the_verb_writes_and_says_how_to_read(tmp_path):
    card, root = small_set(tmp_path)
    out = tmp_path / "out"
    made = call("data", "export", card, "--root", root, "--format", "pir-json", "--out", out, "--stem", "rs")
    assert made.code == 0 and f"val: 2 pictures, 4 captions in {out}/rs_val.json" in made.out
    assert f"Read them by: -d {out}/rs.yaml" in made.out
    assert call("data", "doctor", out / "rs.yaml").code == 0
    assert (
        "there already"
        in call("data", "export", card, "--root", root, "--format", "pir-json", "--out", out, "--stem", "rs").error
    )


def test_rsicd_train_of_pir_and_harma_is_rebuilt(tmp_path):
    root = shared_path("data", "annotations", "precomp", "rsicd_precomp")
    listed = shared_path("data", "annotations", "rsicd_fixed_val_images.txt")
    out = ("--format", "pir-json", "--out", tmp_path, "--stem", "rsicd")
    made = call(
        "data", "export", "rsicd", "--root", root, "--set", f"val_list={listed}", "--set", "format=precomp", *out
    )
    assert made.code == 0, made
    train = json.loads((tmp_path / "rsicd_train.json").read_text())
    assert len(train) == 39310 and len({told["image_id"] for told in train}) == 7862
    theirs = load("rsicd", shared_path("data", "annotations", "json"), format="pir-json")
    ours = load("rsicd", tmp_path, format="pir-json")
    for part in ("val", "test"):
        assert told(ours[part]) == told(theirs[part])


def told(split):
    captions = {image.name: [] for image in split.images}
    for owner, text in zip(split.owner, split.captions, strict=True):
        captions[split.images[owner].name].append(text)
    return {name: sorted(texts) for name, texts in captions.items()}


@pytest.mark.parametrize("kind", ["pir-json", "vilt-arrow", "csv"])
def test_the_file_of_each_split_is_told_where_a_split_is_empty(tmp_path, kind):
    out = tmp_path / "out"
    sizes = ("--set", "train=2", "--set", "val=0", "--set", "test=1")
    called = call("data", "export", "scenes", *sizes, "--format", kind, "--out", out, "--stem", "x")
    ends = {"pir-json": "_{}.json", "vilt-arrow": "_{}.arrow", "csv": ".csv"}[kind]
    for name, told in (("train", "2 pictures, 10 captions"), ("test", "1 pictures, 5 captions")):
        assert f"{name}: {told} in {out / 'x'}{ends.format(name)}\n" in called.out, called
    assert "val" not in called.out


def test_pictures_of_one_extension_under_names_of_two_are_left_where_they_are(tmp_path):
    names = ("a.jpg", "b.tif")
    images = tuple(FileImage(write_picture((tmp_path / n).with_suffix(".jpg")), n) for n in names)
    split = Split("train", images, ("x", "y"), np.arange(2))
    card = write_annotations({"train": split}, tmp_path / "out", load_card("custom"), "csv", "x")[-1]
    assert [image.path for image in load(card)["train"].images] == [image.path for image in images]
