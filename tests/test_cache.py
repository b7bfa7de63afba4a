"""The picture cache: CLIP's own pixels, made once, never half."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_calls import call
from data_files import write_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from petlbench.datasets import cache
from petlbench.datasets.cache import cache_folder, prepare
from petlbench.datasets.preprocess import prepare_picture
from petlbench.datasets.split import DataError, FileImage, Split


def split_of(folder: Path, count: int = 5, size: tuple[int, int] = (40, 32)) -> Split:
    names = [f"p_{index}.png" for index in range(count)]
    images = tuple(FileImage(write_picture(folder / name, seed, size), name) for seed, name in enumerate(names))
    return Split("train", images, (), np.zeros(0, np.int64))


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "images").iterdir())


@given(width=st.integers(1, 90), height=st.integers(1, 90), resolution=st.sampled_from([16, 32, 33]))
@settings(max_examples=60, deadline=None)
def test_pixels_equal_those_of_open_clip(width, height, resolution):
    import open_clip
    import torch

    pixels = np.random.default_rng(width * 91 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    transform = open_clip.image_transform(resolution, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (transform(picture) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(prepare_picture(picture, resolution), expected)


def test_prepare_gives_the_pictures_in_order_and_read_only(tmp_path):
    split = split_of(tmp_path / "data", count=70)  # more than two chunks
    made = prepare(split, 24, tmp_path / "cache", workers=3)
    assert made.fresh and len(made) == 70
    assert made.array.shape == (70, 24, 24, 3) and made.array.dtype == np.uint8
    for image, row in zip(split.images, made.array, strict=True):
        assert np.array_equal(row, prepare_picture(image.open(), 24))
    with pytest.raises(ValueError, match="read-only"):
        made.array[0] = 0
    assert made.manifest["shape"] == [70, 24, 24, 3]


def test_gather_gives_a_channels_first_tensor(tmp_path):
    import torch

    made = prepare(split_of(tmp_path / "data"), 24, tmp_path / "cache")
    batch = made.gather(np.array([3, 0, 3]))
    assert batch.shape == (3, 3, 24, 24) and batch.dtype == torch.uint8
    assert np.array_equal(batch[0].permute(1, 2, 0).numpy(), made.array[3])
    assert torch.equal(batch[0], batch[2])
    batch.zero_()  # a copy: the cache is not touched
    assert made.array[3].any()
    with pytest.raises(IndexError):
        made.gather([5])


def test_a_second_call_finds_the_first_and_reads_no_content(tmp_path, monkeypatch):
    split = split_of(tmp_path / "data")
    first = prepare(split, 24, tmp_path / "cache")

    def never(*_):
        raise AssertionError("work done twice")

    monkeypatch.setattr(FileImage, "content", never)
    monkeypatch.setattr(FileImage, "open", never)
    again = prepare(split, 24, tmp_path / "cache")
    assert not again.fresh and again.folder == first.folder


def test_contents_decide_not_times_or_places(tmp_path):
    split = split_of(tmp_path / "data")
    first = prepare(split, 24, tmp_path / "cache")
    os.utime(split.images[0].path, (1, 1))
    moved = split_of(tmp_path / "moved")
    assert prepare(split, 24, tmp_path / "cache").folder == first.folder
    assert prepare(moved, 24, tmp_path / "cache").folder == first.folder
    assert not prepare(moved, 24, tmp_path / "cache").fresh


def test_what_changes_the_pixels_changes_the_key(tmp_path, monkeypatch):
    split = split_of(tmp_path / "data")
    folders = {prepare(split, 24, tmp_path / "cache").folder, prepare(split, 25, tmp_path / "cache").folder}
    folders.add(prepare(replace(split, images=split.images[::-1]), 24, tmp_path / "cache").folder)
    folders.add(prepare(replace(split, images=split.images[:-1]), 24, tmp_path / "cache").folder)
    write_picture(split.images[2].path, seed=99)
    changed = prepare(split, 24, tmp_path / "cache")
    assert np.array_equal(changed.array[2], prepare_picture(split.images[2].open(), 24))
    folders.add(changed.folder)
    monkeypatch.setattr(cache, "VERSION", "another")
    folders.add(prepare(split, 24, tmp_path / "cache").folder)
    assert len(folders) == 6


def test_progress_reaches_the_end_and_an_error_in_it_leaves_nothing(tmp_path):
    split, seen = split_of(tmp_path / "data", count=40), []

    def stop(done, total):
        raise RuntimeError("user pressed stop")

    with pytest.raises(RuntimeError, match="pressed stop"):
        prepare(split, 24, tmp_path / "cache", progress=stop)
    assert entries(tmp_path / "cache") == []
    prepare(split, 24, tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (40, 40) and sorted(seen) == seen


def test_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("PETLBENCH_CACHE", raising=False)
    assert cache_folder().name == "petlbench"
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "env"))
    assert cache_folder() == tmp_path / "env"
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    before = sorted((tmp_path / "data").rglob("*"))
    split = split_of(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert prepare(split, 24).folder.parent.parent == tmp_path / "env"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


# Bad pictures


def test_missing_pictures_are_counted(tmp_path):
    split = split_of(tmp_path / "data")
    for index in (1, 3):
        split.images[index].path.unlink()
    with pytest.raises(DataError, match=r"p_1\.png: picture not found(?s:.*)2 of 5 pictures are missing"):
        prepare(split, 24, tmp_path / "cache")


def test_a_truncated_jpeg_is_an_error_and_leaves_nothing(tmp_path):
    split = split_of(tmp_path / "data")
    path = write_picture(tmp_path / "data" / "cut.jpg", size=(300, 300))
    path.write_bytes(path.read_bytes()[:2000])
    broken = replace(split, images=(*split.images, FileImage(path, "cut.jpg")))
    with pytest.raises(DataError, match=r"cut\.jpg: the picture cannot be decoded.*data doctor"):
        prepare(broken, 24, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_an_empty_split_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot prepare 0 pictures"):
        prepare(split_of(tmp_path, count=0), 24, tmp_path / "cache")


def test_a_relative_folder_is_that_of_the_command_for_all_its_workers(tmp_path, monkeypatch):
    """Ray gives every trial a working folder of its own, where a relative path would be another one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PETLBENCH_CACHE", "mine")
    assert call("cache", "ls").code == 0
    monkeypatch.chdir("/")
    assert cache_folder() == tmp_path / "mine"


# Bad disks


def test_a_cache_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        DataError, match=r"file/cache: the picture cache cannot be written \(Not a directory\).*PETLBENCH_"
    ):
        prepare(split_of(tmp_path / "data"), 24, tmp_path / "file" / "cache")


def test_too_little_room_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5000})())
    split = split_of(tmp_path / "data")
    monkeypatch.setattr(FileImage, "open", lambda image: pytest.fail("the work was begun"))
    with pytest.raises(DataError, match=r"split train needs 0 MiB, 0 MiB are free.*PETLBENCH_CACHE"):
        prepare(split, 24, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


PREPARE = """
import resource, signal, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from petlbench.datasets.cache import prepare
from petlbench.datasets.split import FileImage
from test_cache import split_of
data, cache, how = sys.argv[1:]
split = split_of(Path(data), count=70) if how == "limited" else None
if split is None:
    import numpy as np
    from petlbench.datasets.split import Split
    images = tuple(FileImage(path, path.name) for path in sorted(Path(data).iterdir()))
    split = Split("train", images, (), np.zeros(0, np.int64))
if how == "limited":  # stands in for a full disk: writing beyond the limit fails with an OSError
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
if how == "slow":
    real = FileImage.open
    def slow(self):
        time.sleep(0.02)
        return real(self)
    FileImage.open = slow
def tell(done, total):
    print("progress", done, flush=True)
    if how == "held":
        sys.stdin.read()  # until the other process has done its part
made = prepare(split, 24, cache, workers=1, progress=tell)
print("fresh" if made.fresh else "found", made.folder.name, flush=True)
"""


def start(data: Path, folder: Path, how: str) -> subprocess.Popen:
    code = PREPARE.format(tests=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(folder), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_write_that_fails_midway_is_told_and_leaves_nothing(tmp_path):
    _, err = start(tmp_path / "data", tmp_path / "cache", "limited").communicate(timeout=120)
    assert "DataError" in err and "the picture cache cannot be written (File too large)" in err, err
    assert entries(tmp_path / "cache") == []


def test_two_processes_at_once_do_the_work_once(tmp_path):
    split_of(tmp_path / "data", count=70)
    both = [start(tmp_path / "data", tmp_path / "cache", "slow") for _ in range(2)]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    last = [out.split("\n")[-2].split() for out, _ in told]
    assert sorted(word for word, _ in last) == ["found", "fresh"]
    assert entries(tmp_path / "cache") == [last[0][1]] == [last[1][1]]


@pytest.mark.parametrize("next_is_same", [True, False])
def test_a_killed_preparation_leaves_nothing_that_counts(tmp_path, next_is_same):
    split_of(tmp_path / "data", count=70)
    process = start(tmp_path / "data", tmp_path / "cache", "held")
    assert process.stdout is not None
    assert process.stdout.readline() == "progress 32\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (left,) = entries(tmp_path / "cache")
    assert left.startswith(".making-")
    split = split_of(tmp_path / "data", count=70)
    if not next_is_same:
        split = replace(split, images=split.images[:3])
    made = prepare(split, 24, tmp_path / "cache")
    assert made.fresh
    for image, row in zip(split.images, made.array, strict=True):
        assert np.array_equal(row, prepare_picture(image.open(), 24))
    assert entries(tmp_path / "cache") == [made.folder.name]


def test_work_of_a_living_process_is_not_cleared(tmp_path):
    split_of(tmp_path / "data", count=70)
    process = start(tmp_path / "data", tmp_path / "cache", "held")
    assert process.stdout is not None and process.stdout.readline() == "progress 32\n"
    prepare(split_of(tmp_path / "other", count=2), 24, tmp_path / "cache")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "fresh" in out, err


# Damaged entries


def damage_size(folder: Path) -> None:
    with (folder / "images.npy").open("r+b") as file:
        file.truncate(1000)


def damage_shape(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shape"][0] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def damage_array(folder: Path) -> None:
    (folder / "images.npy").unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damage_size, "1000 bytes, but its manifest says"),
        (damage_shape, r"uint8\(5, 24, 24, 3\), but its manifest says uint8\(6, 24, 24, 3\)"),
        (damage_manifest, "entry of the picture cache is damaged"),
        (damage_array, "entry of the picture cache is damaged"),
    ],
)
def test_a_damaged_entry_is_told_with_the_way_out(tmp_path, damage, told):
    split = split_of(tmp_path / "data")
    folder = prepare(split, 24, tmp_path / "cache").folder
    damage(folder)
    with pytest.raises(DataError, match=f"{told}.*Delete the folder {folder}"):
        prepare(split, 24, tmp_path / "cache")


def test_an_entry_without_manifest_is_made_anew(tmp_path):
    split = split_of(tmp_path / "data")
    folder = prepare(split, 24, tmp_path / "cache").folder
    (folder / "manifest.json").unlink()
    assert prepare(split, 24, tmp_path / "cache").fresh
