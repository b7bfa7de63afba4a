"""Writing ViLT-style .arrow files: what is written can be read, here and by the code of ViLT, whole or not at all."""

import os
import random

import numpy as np
import pytest
from arrow_files import STEM, flat_split, read_as_vilt, same_data
from support import refused, shared_path

from petlbench.datasets.doctor import examine
from petlbench.datasets.load import load
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import SPLITS, Split
from petlbench.datasets.writers.vilt_arrow import write_vilt_arrow


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
