"""Webdataset tar files: pictures are read in place, and a wrong, cut-off or unsafe file is refused by name."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import refused

from petlbench.datasets.cache import prepare
from petlbench.datasets.load import load
from petlbench.datasets.options import WebDatasetOptions
from petlbench.datasets.preprocess import prepare_picture
from petlbench.datasets.readers.webdataset import read_webdataset


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_tar(path: Path, members) -> Path:
    """A tar file of (name, bytes or text) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(*numbers, captions="a port\na harbour\n", **more):
    found = []
    for n in numbers:
        found += [(f"p_{n:03d}.png", picture(n)), (f"p_{n:03d}.txt", captions)]
        found += [(f"p_{n:03d}.{kind}", text) for kind, text in more.items()]
    return found


def names(split):
    return [image.name for image in split.images]


def test_shards_belong_to_the_split_of_their_name(tmp_path):
    write_tar(tmp_path / "set-train-000001.tar", samples(3))
    write_tar(tmp_path / "set-train-000000.tar", samples(1, 2, cls="port"))
    write_tar(tmp_path / "validation.tar", samples(4))
    write_tar(tmp_path / "test" / "000000.tar", samples(5, captions="one caption"))
    splits = read_webdataset(tmp_path)
    assert list(splits) == ["train", "val", "test"]
    assert names(splits["train"]) == ["p_001.png", "p_002.png", "p_003.png"]
    assert splits["train"].captions == ("a port", "a harbour") * 3
    assert splits["train"].classes == ("port",) and splits["train"].labels.tolist() == [0, 0, -1]
    assert splits["test"].captions == ("one caption",)
    assert not any(path.is_dir() and path.name != "test" for path in tmp_path.iterdir()), "nothing is unpacked"


def test_the_longest_beginning_of_a_name_decides(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"shard-0{number}.tar", samples(number))
    parts = {"shard-0": "train", "shard-01": "test", "shard-02": "val"}
    splits = read_webdataset(tmp_path, WebDatasetOptions(parts=parts))
    assert {name: names(split) for name, split in splits.items()} == {
        "train": ["p_000.png"],
        "val": ["p_002.png"],
        "test": ["p_001.png"],
    }


def test_captions_class_name_and_split_from_json(tmp_path):
    told = [
        {"caption": ["x", "y"], "split": "train", "class": "river", "filename": "river_7.tif"},
        {"captions": "z", "split": "valid"},
        {"sentences": [{"raw": "v"}, {"raw": "w"}], "split": "extra"},
    ]
    members = [m for n, one in enumerate(told) for m in ((f"{n}.jpg", picture(n)), (f"{n}.json", json.dumps(one)))]
    path = write_tar(tmp_path / "shard.tar", members)
    refused(lambda: read_webdataset(path), "sample 2", "'extra'", "splits={extra: train}")
    splits = read_webdataset(path, WebDatasetOptions(splits={"extra": "test"}))
    assert names(splits["train"]) == ["river_7.tif"] and splits["train"].captions == ("x", "y")
    assert splits["train"].classes == ("river",)
    assert splits["val"].captions == ("z",) and splits["test"].captions == ("v", "w")


def test_numbered_keys_that_repeat_are_told_apart_by_their_tar_file(tmp_path):
    write_tar(tmp_path / "train.tar", samples(1))
    write_tar(tmp_path / "test.tar", samples(1))
    splits = read_webdataset(tmp_path)
    assert names(splits["train"]) == ["train/p_001.png"] and names(splits["test"]) == ["test/p_001.png"]


def test_pictures_decode_to_the_stored_pixels_and_travel_to_other_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))
    split = read_webdataset(write_tar(tmp_path / "train.tar", samples(*range(5))))["train"]
    expected = [prepare_picture(Image.open(io.BytesIO(picture(n))).convert("RGB"), 8) for n in range(5)]
    assert (prepare(split, 8).array == np.stack(expected)).all()
    assert pickle.loads(pickle.dumps(split.images[3])).open().tobytes() == split.images[3].open().tobytes()


def test_a_folder_of_tar_files_opens_without_a_card(tmp_path):
    write_tar(tmp_path / "train-0.tar", samples(1, 2))
    assert len(load(tmp_path)["train"].images) == 2
    assert len(load(tmp_path, parts={"train-0": "test"})["test"].images) == 2


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("a.txt", "x")], ["sample a", "0 pictures", "a.txt"]),
        ([("a.jpg", "1"), ("a.png", "2"), ("a.txt", "x")], ["sample a", "2 pictures"]),
        ([("a.jpg", "1")], ["sample a", "no captions", "caption_keys"]),
        ([("a.jpg", "1"), ("a.txt", "x\n\ny")], ["sample a", "caption 1 is blank", "blank=drop"]),
        ([("a.jpg", "1"), ("a.json", "{")], ["sample a", "not valid JSON"]),
        ([("a.jpg", "1"), ("a.json", '["x"]')], ["sample a", "a list", "expected an object"]),
        ([("a.jpg", "1"), ("a.json", '{"caption": 3}')], ["sample a", "no captions"]),
        ([("a.jpg", "1"), ("a.txt", b"\xff")], ["sample a", "not UTF-8"]),
        ([("a.jpg", "1"), ("a.jpg", "2")], ["sample a", "two members end in .jpg"]),
        ([("../a.jpg", "1"), ("../a.txt", "x")], ["'../a.jpg'", "leads out"]),
        ([("/etc/a.jpg", "1"), ("/etc/a.txt", "x")], ["leads out"]),
        ([], ["no samples"]),
    ],
)
def test_wrong_samples_are_named(tmp_path, members, told):
    path = write_tar(tmp_path / "train.tar", members)
    refused(lambda: read_webdataset(path), str(path), *told)


def test_links_are_refused(tmp_path):
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    refused(lambda: read_webdataset(path), "'a.jpg'", "link", "--dereference")


@pytest.mark.parametrize("keep", [100, 700, 1536, 2048, 5000])
def test_cut_off_files_are_found(tmp_path, keep):
    path = write_tar(tmp_path / "train.tar", samples(1, 2, 3))
    data = path.read_bytes()
    assert len(data) > keep
    path.write_bytes(data[:keep])
    refused(lambda: read_webdataset(path), str(path), "cut off", "copy it again")


def test_a_tar_file_may_end_in_a_folder(tmp_path):
    path = write_tar(tmp_path / "train.tar", samples(1))
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("empty")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert names(read_webdataset(tmp_path)["train"]) == ["p_001.png"]


def test_packed_and_foreign_files(tmp_path):
    path = tmp_path / "train.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    refused(lambda: read_webdataset(tmp_path), str(path), "gzip", "unpack it")
    path.rename(tmp_path / "train.tar")
    refused(lambda: read_webdataset(tmp_path), "gzip")
    (tmp_path / "train.tar").write_bytes(b"")
    refused(lambda: read_webdataset(tmp_path), "is empty")
    (tmp_path / "train.tar").write_bytes(b"no tar file at all" * 100)
    refused(lambda: read_webdataset(tmp_path), "cannot be read")
    (tmp_path / "train.tar").unlink()
    refused(lambda: read_webdataset(tmp_path), "no .tar files")


def test_a_tar_file_of_no_split_beside_one_that_has(tmp_path):
    write_tar(tmp_path / "train.tar", samples(1))
    write_tar(tmp_path / "rest.tar", samples(2))
    refused(lambda: read_webdataset(tmp_path), "rest.tar", "option parts")
    splits = read_webdataset(tmp_path, WebDatasetOptions(parts={"rest": "test"}))
    assert names(splits["test"]) == ["p_002.png"]


def test_a_tar_file_that_changes_while_in_use(tmp_path):
    path = write_tar(tmp_path / "train.tar", samples(1, 2))
    image = read_webdataset(path)["train"].images[1]
    before = image.fingerprint()
    path.write_bytes(path.read_bytes()[:1200])
    assert image.fingerprint() != before
    refused(image.open, str(path), "replaced or cut off")
    path.unlink()
    refused(image.fingerprint, str(path), "cannot be read")
