"""Readers: what they read, and what they say of files that are wrong."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from data_files import item, precomp_set, write_json
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import refused, shared_path

from petlbench.datasets.load import load
from petlbench.datasets.options import KarpathyOptions, PrecompOptions
from petlbench.datasets.readers.alignment import locate
from petlbench.datasets.readers.common import label_of
from petlbench.datasets.readers.karpathy import read_karpathy
from petlbench.datasets.readers.precomp import read_lines, read_precomp
from petlbench.datasets.split import FileImage

# Karpathy JSON


def test_karpathy_reads_splits_captions_owners_and_classes(tmp_path):
    items = [
        item("b.jpg", "test", [" one ", "two"], **{"class": "river"}),
        item("a.jpg", "train", ["x", "y", "z"], **{"class": "beach"}),
        item("c.jpg", "restval", ["w"], label="river"),
        item("d.jpg", "train", ["v"]),
    ]
    splits = read_karpathy(write_json(tmp_path, items), tmp_path / "pics")
    assert list(splits) == ["train", "test"]
    train = splits["train"]
    assert [image.name for image in train.images] == ["a.jpg", "c.jpg", "d.jpg"]
    assert train.images[0].path == tmp_path / "pics" / "a.jpg"
    assert train.captions == ("x", "y", "z", "w", "v")
    assert train.owner.tolist() == [0, 0, 0, 1, 2]
    assert train.classes == splits["test"].classes == ("beach", "river")
    assert train.labels.tolist() == [0, 1, -1]
    assert splits["test"].captions == ("one", "two")


def test_karpathy_uses_sub_folders_and_another_extension(tmp_path):
    path = write_json(tmp_path, [item("7.tif", filepath="tiles"), item("7.tif", filepath="more")])
    images = read_karpathy(path, tmp_path, KarpathyOptions(extension=".png"))["train"].images
    assert [image.name for image in images] == ["tiles/7.tif", "more/7.tif"]
    assert images[0].path == tmp_path / "tiles" / "7.png"


def test_karpathy_further_splits_go_where_the_option_says(tmp_path):
    path = write_json(tmp_path, [item("a.jpg", "valid"), item("b.jpg", "extra"), item("c.jpg")])
    splits = read_karpathy(path, tmp_path, KarpathyOptions(splits={"valid": "val", "extra": "drop"}))
    assert {name: len(split.images) for name, split in splits.items()} == {"train": 1, "val": 1}


def test_karpathy_without_classes_has_no_labels(tmp_path):
    split = read_karpathy(write_json(tmp_path, [item("a.jpg")]), tmp_path)["train"]
    assert split.labels is None and split.classes == ()


def without(key: str) -> dict:
    broken = item("lake_1.jpg")
    del broken[key]
    return broken


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (without("split"), ["set.json: images[1] (lake_1.jpg)", "`split` is missing", "train, val, test"]),
        (without("filename"), ["images[1]", "`filename` is missing"]),
        (without("sentences"), ["lake_1.jpg", "`sentences` is missing"]),
        (item("lake_1.jpg", captions=[]), ["lake_1.jpg", "`sentences` is empty"]),
        (item("lake_1.jpg", "trian"), ["lake_1.jpg", "'trian'", "did you mean `train`?", "splits={trian: train}"]),
        (item("lake_1.jpg", captions=["ok", "  "]), ["lake_1.jpg", "sentences[1] is blank", "blank=drop"]),
        ({**item("lake_1.jpg"), "sentences": [{"tokens": ["a"]}]}, ["lake_1.jpg", "sentences[0]", "`raw`"]),
        (item("a.jpg"), ["images[1] and images[0]", "'a.jpg'", "unique"]),
        (item("../../etc/secret.jpg"), ["images[1]", "leads out of the picture folder"]),
        ("a.jpg", ["images[1]", "found a text", "expected an object"]),
    ],
)
def test_karpathy_names_the_faulty_item(tmp_path, broken, told):
    path = write_json(tmp_path, [item("a.jpg"), broken])
    refused(lambda: read_karpathy(path, tmp_path), str(path), *told)


def test_karpathy_blank_captions_can_be_dropped_or_kept(tmp_path):
    items = [item("a.jpg", captions=["", "x"]), item("b.jpg", captions=[" "]), item("c.jpg", captions=["y", "z"])]
    path = write_json(tmp_path, items)
    dropped = read_karpathy(path, tmp_path, KarpathyOptions(blank="drop"))["train"]
    assert [image.name for image in dropped.images] == ["a.jpg", "c.jpg"]
    assert dropped.captions == ("x", "y", "z") and dropped.owner.tolist() == [0, 1, 1]
    kept = read_karpathy(path, tmp_path, KarpathyOptions(blank="keep"))["train"]
    assert len(kept.images) == 3 and kept.captions == ("", "x", "", "y", "z")


def test_karpathy_json_errors_give_line_and_column(tmp_path):
    path = tmp_path / "set.json"
    path.write_text('{"images": [\n  {"filename": "a.jpg",}\n]}')
    refused(lambda: read_karpathy(path, tmp_path), f"{path}:2:", "not valid JSON")
    path.write_bytes(b'{"images": "\xff"}')
    refused(lambda: read_karpathy(path, tmp_path), "not UTF-8")
    path.write_text('{"annotations": []}')
    refused(lambda: read_karpathy(path, tmp_path), "'annotations'", "the list `images`")
    path.write_text('{"images": []}')
    refused(lambda: read_karpathy(path, tmp_path), "is empty")
    refused(lambda: read_karpathy(tmp_path / "no.json", tmp_path), "no.json", "cannot be read")


def test_half_a_character_is_refused_by_name(tmp_path):
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"images": [item("a.jpg", captions=["x", "cap \ud83d"])]}))
    refused(lambda: read_karpathy(path, tmp_path), "'a.jpg'", r"'cap \ud83d'", "half a character", "UTF-8")


@pytest.mark.parametrize("values", [np.uint16, np.int32, np.float32])
def test_pictures_of_more_than_8_bits_are_refused(tmp_path, values):
    Image.fromarray(np.full((4, 4), 900, values)).save(tmp_path / "a.tif")
    refused(FileImage(tmp_path / "a.tif", "a.tif").open, "a.tif", "more than 8 bits", "scale it")


# Text files


def edit(path: Path, change) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{line}\n" for line in change(lines)), encoding="utf-8")


@pytest.mark.parametrize("form", [1, 5])
def test_precomp_accepts_names_once_or_five_times(tmp_path, form):
    splits = read_precomp(precomp_set(tmp_path, test_form=form), tmp_path)
    assert {name: len(split.images) for name, split in splits.items()} == {"train": 8, "val": 2, "test": 3}
    test = splits["test"]
    assert [image.name for image in test.images] == ["testx_0.jpg", "testx_1.jpg", "testx_2.jpg"]
    assert test.owner.tolist() == np.repeat(range(3), 5).tolist()
    assert test.captions[5] == "ships from above"


def test_precomp_cut_is_one_seeded_shuffle_in_file_order(tmp_path):
    splits = read_precomp(precomp_set(tmp_path), tmp_path)
    names = [f"trainx_{index}.jpg" for index in range(10)]
    random.seed(2)
    random.shuffle(names)
    assert [image.name for image in splits["train"].images] == names[:8]
    assert [image.name for image in splits["val"].images] == names[8:]
    whole = read_precomp(tmp_path, tmp_path, PrecompOptions(val_share=0))
    assert list(whole) == ["train", "test"] and len(whole["train"].images) == 10


def test_precomp_cut_by_a_list_of_names(tmp_path):
    precomp_set(tmp_path)
    chosen = tmp_path / "val.txt"
    chosen.write_text("trainx_7.jpg\ntrainx_2.jpg\n")
    splits = read_precomp(tmp_path, tmp_path, PrecompOptions(val_images=str(chosen)))
    assert [image.name for image in splits["val"].images] == ["trainx_7.jpg", "trainx_2.jpg"]
    assert len(splits["train"].images) == 8
    chosen.write_text("trainx_7.jpg\ntestx_2.jpg\n")
    refused(lambda: read_precomp(tmp_path, tmp_path, PrecompOptions(val_images=str(chosen))), f"{chosen}:2", "testx_2")


def own_validation(folder: Path, ending: str, train: list[int], val: list[int]) -> Path:
    """Files of a cut beside (or in place of) the whole: five lines a name for validation, as AMFMN's code writes them."""
    captions = read_lines(folder / "train_caps.txt")
    for part, chosen, form in (("train", train, 1), ("val", val, 5)):
        names = [f"trainx_{index}.jpg" for index in chosen for _ in range(form)]
        lines = [line for index in chosen for line in captions[5 * index : 5 * index + 5]]
        (folder / f"{part}_filename{ending}.txt").write_text("".join(f"{name}\n" for name in names))
        (folder / f"{part}_caps{ending}.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.mark.parametrize(("ending", "whole"), [("", True), ("_verify", True), ("_verify", False)])
def test_precomp_files_may_say_what_validates(tmp_path, ending, whole):
    folder = precomp_set(tmp_path)
    own_validation(folder, ending, [0, 1, 2, 4, 5, 6, 8, 9], [7, 3])
    if not whole:
        (folder / "train_caps.txt").unlink()
        (folder / "train_filename.txt").unlink()

    def read(**options):
        splits = load(folder, **options)
        return {name: [image.name for image in split.images] for name, split in splits.items()}

    found = read()
    assert found["val"] == ["trainx_7.jpg", "trainx_3.jpg"] and len(found["train"]) == 8 and len(found["test"]) == 3
    assert load(folder)["val"].captions[5] == "houses from above"
    for options in ({"val_files": False}, {"val_share": 0.5}, {"val_seed": 3}, {"fold": "1/3"}):
        cut = read(**options)
        everyone = {name for names in cut.values() for name in names}
        assert len(everyone) == 13 and cut["val"] != found["val"], "a rule of one's own cuts all of train and val"
    assert len(read(val_share=0)["train"]) == 10


def test_precomp_validation_files_that_do_not_fit(tmp_path):
    folder = own_validation(precomp_set(tmp_path), "", list(range(10)), [3])
    refused(lambda: read_precomp(folder, folder), "train_filename.txt and in val_filename.txt", "'trainx_3.jpg'")
    (folder / "val_caps.txt").unlink()
    refused(lambda: read_precomp(folder, folder), "val_filename.txt is there, but val_caps.txt is not")


def test_precomp_records_of_before_keep_their_options():
    assert (
        "val_files" not in PrecompOptions().model_dump()
        and not PrecompOptions(val_files=False).model_dump()["val_files"]
    )


@given(st.integers(1, 30), st.integers(0, 3), st.sampled_from([0.0, 0.2, 0.5]))
@settings(max_examples=25, deadline=None)
def test_precomp_every_caption_keeps_its_picture(tmp_path_factory, train, seed, share):
    folder = precomp_set(tmp_path_factory.mktemp("set"), train=train)
    splits = read_precomp(folder, folder, PrecompOptions(val_share=share, val_seed=seed))
    told = dict(zip(read_lines(folder / "train_filename.txt"), range(train), strict=True))
    captions = read_lines(folder / "train_caps.txt")
    seen = []
    for split in (splits.get("train"), splits.get("val")):
        for index, image in enumerate(split.images if split else ()):
            own = [split.captions[j] for j in np.flatnonzero(split.owner == index)]
            start = 5 * told[image.name]
            assert own == captions[start : start + 5]
            seen.append(image.name)
    assert sorted(seen) == sorted(told)


def test_precomp_missing_name_line_in_five_line_form(tmp_path):
    edit(precomp_set(tmp_path) / "test_filename.txt", lambda lines: lines[:7] + lines[8:])
    told = ["test_filename.txt:6", "15 lines", "has 14", "'testx_1.jpg'", "4 consecutive lines (lines 6 to 9)"]
    refused(lambda: read_precomp(tmp_path, tmp_path), *told)


def test_precomp_missing_caption_line_is_located(tmp_path):
    edit(precomp_set(tmp_path) / "train_caps.txt", lambda lines: lines[:22] + lines[23:])
    message = refused(lambda: read_precomp(tmp_path, tmp_path), "49 lines", "has 10", "1 caption line missing")
    assert "train_caps.txt:21" in message and "trainx_4.jpg" in message


def test_precomp_missing_name_in_one_line_form(tmp_path):
    edit(precomp_set(tmp_path) / "train_filename.txt", lambda lines: lines[1:])
    refused(lambda: read_precomp(tmp_path, tmp_path), "5 caption lines too many", "a name is missing")


def test_precomp_captions_cut_off_in_five_line_form(tmp_path):
    edit(precomp_set(tmp_path) / "test_caps.txt", lambda lines: lines[:-1])
    refused(lambda: read_precomp(tmp_path, tmp_path), "test_caps.txt", "14 lines", "1 caption line missing", "testx_2")


@pytest.mark.parametrize("gone", [3, 250, 251, 499])
@pytest.mark.parametrize("extra", [False, True])
def test_locate_finds_the_place(gone, extra):
    words = random.Random(0).sample([f"w{n}" for n in range(2000)], 500)
    captions = [f"{words[4 * i]} {words[4 * i + 1]} {words[4 * i + 2]} {j}" for i in range(100) for j in range(5)]
    changed = captions[:gone] + (["odd line", *captions[gone:]] if extra else captions[gone + 1 :])
    assert abs(locate(changed, 100, 5) - gone // 5) <= 1


def test_precomp_names_must_stand_together(tmp_path):
    def swap(lines):
        lines[4], lines[5] = lines[5], lines[4]
        return lines

    edit(precomp_set(tmp_path) / "test_filename.txt", swap)
    refused(lambda: read_precomp(tmp_path, tmp_path), "test_filename.txt:1", "'testx_0.jpg'", "4 consecutive")


def test_precomp_repeated_name(tmp_path):
    edit(precomp_set(tmp_path) / "train_filename.txt", lambda lines: [*lines[:-1], lines[2]])
    refused(lambda: read_precomp(tmp_path, tmp_path), "train_filename.txt:10", "'trainx_2.jpg'", "line 3")


def test_precomp_blank_lines(tmp_path):
    edit(precomp_set(tmp_path) / "train_caps.txt", lambda lines: [*lines[:11], "  ", *lines[12:]])
    refused(
        lambda: read_precomp(tmp_path, tmp_path), "train_caps.txt:12", "blank caption", "trainx_2.jpg", "blank=drop"
    )
    splits = read_precomp(tmp_path, tmp_path, PrecompOptions(blank="drop"))
    assert sum(len(splits[name].captions) for name in ("train", "val")) == 49
    edit(tmp_path / "test_filename.txt", lambda lines: [*lines[:3], "", *lines[4:]])
    refused(lambda: read_precomp(tmp_path, tmp_path, PrecompOptions(blank="drop")), "test_filename.txt:4", "blank line")


def test_precomp_dropping_does_not_move_the_cut(tmp_path):
    before = read_precomp(precomp_set(tmp_path), tmp_path)
    edit(tmp_path / "train_caps.txt", lambda lines: [""] * 5 + lines[5:])
    after = read_precomp(tmp_path, tmp_path, PrecompOptions(blank="drop"))
    for name in ("train", "val"):
        kept = [image.name for image in before[name].images if image.name != "trainx_0.jpg"]
        assert [image.name for image in after[name].images] == kept


def test_precomp_missing_and_broken_files(tmp_path):
    (precomp_set(tmp_path) / "test_caps.txt").unlink()
    refused(lambda: read_precomp(tmp_path, tmp_path), str(tmp_path), "test_caps.txt not found", "train_filename.txt")
    (tmp_path / "test_caps.txt").write_bytes(b"fine\nbad \xff\n")
    refused(lambda: read_precomp(tmp_path, tmp_path), "test_caps.txt:2", "not UTF-8")
    (tmp_path / "test_caps.txt").write_bytes(b"")
    refused(lambda: read_precomp(tmp_path, tmp_path), "test_caps.txt", "empty")


def test_precomp_picture_in_both_parts(tmp_path):
    edit(precomp_set(tmp_path, test_form=1) / "test_filename.txt", lambda lines: ["trainx_3.jpg", *lines[1:]])
    refused(lambda: read_precomp(tmp_path, tmp_path), "'trainx_3.jpg'", "one split")


def test_lines_end_at_newlines_only(tmp_path):
    path = tmp_path / "caps.txt"
    path.write_bytes("\ufeffone\x85two\r\n\u2028three \n".encode())
    assert read_lines(path) == ["one\x85two", "three"]


# Labels


@pytest.mark.parametrize(
    ("name", "rule", "label"),
    [
        ("airport_1.jpg", "prefix", "airport"),
        ("baseballfield_452.tif", "prefix", "baseballfield"),
        ("golf_course-07.png", "prefix", "golf_course"),
        ("agricultural01.tif", "prefix", "agricultural"),
        ("00377.jpg", "prefix", None),
        ("nonumber.jpg", "prefix", None),
        ("1.tif", "ucm_number", "agricultural"),
        ("100.tif", "ucm_number", "agricultural"),
        ("101.tif", "ucm_number", "airplane"),
        ("2100.jpg", "ucm_number", "tenniscourt"),
        ("2101.jpg", "ucm_number", None),
        ("airport_1.jpg", "ucm_number", None),
        ("airport_1.jpg", "none", None),
    ],
)
def test_labels_from_names(name, rule, label):
    assert label_of(name, rule) == label


# The real files


@pytest.mark.parametrize(
    ("name", "first", "counts"),
    [
        ("rsicd", ["farmland_213.jpg", "commercial_74.jpg", "square_306.jpg"], (7862, 1966, 1093)),
        ("rsitmd", ["port_3104.tif", "pond_3002.tif", "forest_1831.tif"], (3432, 859, 452)),
        ("ucm", ["270.tif", "890.tif", "777.tif"], (1512, 378, 210)),
    ],
)
def test_real_text_files_are_cut_as_pe_rsitr_cuts_them(name, first, counts):
    folder = shared_path("data", "annotations", "precomp", f"{name}_precomp")
    splits = read_precomp(folder, folder, PrecompOptions(blank="keep"))
    assert [image.name for image in splits["val"].images[:3]] == first
    assert tuple(len(splits[part].images) for part in ("train", "val", "test")) == counts


def test_real_fixed_validation_list():
    folder = shared_path("data", "annotations", "precomp", "rsicd_precomp")
    listed = shared_path("data", "annotations", "rsicd_fixed_val_images.txt")
    splits = read_precomp(folder, folder, PrecompOptions(val_images=str(listed)))
    assert (len(splits["train"].images), len(splits["val"].images)) == (7862, 1966)


def test_both_layouts_of_rsicd_agree_on_test():
    text = read_precomp(shared_path("data", "annotations", "precomp", "rsicd_precomp"), Path("pics"))
    json = read_karpathy(shared_path("data", "rsicd", "dataset_rsicd.json"), Path("pics"))
    assert text["test"].sha256 == json["test"].sha256
    assert sorted(json["train"].captions + json["val"].captions) == sorted(
        text["train"].captions + text["val"].captions
    )
