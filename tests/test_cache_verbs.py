"""`benchmark cache ls|clear`: tells what lies there, removes what is asked for, and nothing that is used or not ours."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_calls import call
from filelock import FileLock
from safetensors.numpy import save_file
from test_cache import split_of

from petlbench.datasets import cache_entries
from petlbench.datasets.cache import prepare
from petlbench.datasets.cache_entries import CacheEntry, parse_age, remove_entry
from petlbench.datasets.hold import hold, is_held
from petlbench.datasets.split import DataError

KEY = "0123456789abcdef" * 2


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("PETLBENCH_CACHE", str(folder))
    return folder


def fill(cache: Path, data: Path) -> Path:
    """One entry of every kind; the folder of the pictures."""
    made = prepare(split_of(data), 24, cache).folder
    for kind in ("features", "states"):
        (cache / kind).mkdir()
        told = {"backbone": "tiny-clip", "split": "train", "pictures": made.name}
        save_file({"image": np.zeros(1000, np.float32)}, cache / kind / f"{KEY}.safetensors", told)
        (cache / kind / f"{KEY}.safetensors.lock").touch()
    (cache / "probes").mkdir()
    (cache / "probes" / f"{KEY}.json").write_text('{"label": "lora on tiny-clip"}')
    (cache / "shipped" / KEY / "weights").mkdir(parents=True)
    (cache / "shipped" / KEY / "weights" / "a.bin").write_bytes(b"x" * 500)
    (cache / "petlbench-huggingface" / "parquet").mkdir(parents=True)
    (cache / "petlbench-huggingface" / "parquet" / "a.arrow").write_bytes(b"x" * 700)
    (cache / "images" / f".making-{KEY}-abc").mkdir()
    (cache / "features" / "x.tmp").touch()
    return made


def listed(*arguments):
    return call("cache", "ls", "--json", *arguments).json


def test_everything_is_listed_with_what_it_belongs_to(cache, tmp_path):
    made = fill(cache, tmp_path / "data")
    told = listed()
    assert told["schema_version"] == 1 and told["folder"] == str(cache)
    entries = {}
    for entry in told["entries"]:
        entries.setdefault(entry["kind"], []).append(entry)
    assert entries.keys() == cache_entries.KINDS.keys() and len(entries["remains"]) == 2
    (images,) = entries["images"]
    assert images["belongs_to"] == f"train: 5 pictures at 24 px of {tmp_path / 'data'}"
    assert images["path"] == str(made) and images["bytes"] == sum(path.stat().st_size for path in made.iterdir())
    assert entries["features"][0]["belongs_to"] == f"tiny-clip, train, images/{made.name[:8]}"
    assert entries["probes"][0]["belongs_to"] == "lora on tiny-clip"
    assert (entries["shipped"][0]["belongs_to"], entries["shipped"][0]["bytes"]) == ("weights", 500)
    assert abs(images["used"] - time.time()) < 60 and not any(entry["in_use"] for entry in told["entries"])
    assert {entry["kind"] for entry in listed("--kind", "states", "--kind", "index")["entries"]} == {"states", "index"}


def test_the_list_on_a_terminal(cache, tmp_path):
    fill(cache, tmp_path / "data")
    out = call("cache", "ls").out
    assert "train: 5 pictures at 24 px" in out and "just now" in out and "in 9 entries" in out


def test_no_cache_is_an_empty_list(cache):
    assert listed()["entries"] == [] and "0 B in 0 entries" in call("cache", "ls").out
    assert "nothing to remove" in call("cache", "clear", "--all", "--yes").out
    assert not cache.exists()


def test_clear_wants_to_be_told_what_and_to_be_sure(cache, tmp_path):
    fill(cache, tmp_path / "data")
    before = sorted(cache.rglob("*"))
    assert "say what to remove" in call("cache", "clear", "--yes").error
    assert "leave it out" in call("cache", "clear", "--all", "--kind", "images", "--yes").error
    assert "expected a number" in call("cache", "clear", "--older-than", "soon", "--yes").error
    assert "say --yes" in call("cache", "clear", "--all").error
    assert (
        "kind 'image' is unknown; known: images, features" in call("cache", "clear", "--kind", "image", "--yes").error
    )
    assert sorted(cache.rglob("*")) == before


def test_clear_by_kind(cache, tmp_path):
    made = fill(cache, tmp_path / "data")
    called = call("cache", "clear", "--kind", "images", "--kind", "shipped", "--yes")
    assert called.code == 0 and called.out.startswith("removed 2 entries")
    assert not made.exists() and not (cache / "shipped" / KEY).exists()
    assert {entry["kind"] for entry in listed()["entries"]} == cache_entries.KINDS.keys() - {"images", "shipped"}
    assert prepare(split_of(tmp_path / "data"), 24, cache).fresh


def test_clear_by_age_since_the_last_use(cache, tmp_path):
    old = prepare(split_of(tmp_path / "old"), 24, cache).folder
    new = prepare(split_of(tmp_path / "new", count=3), 24, cache).folder
    used = prepare(split_of(tmp_path / "used", count=2), 24, cache).folder
    month = time.time() - 31 * 86400
    for folder in (old, used):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (month, month))
    prepare(split_of(tmp_path / "used", count=2), 24, cache)  # found, and so used
    call("cache", "clear", "--kind", "images", "--older-than", "30d", "--yes")
    assert (old.exists(), new.exists(), used.exists()) == (False, True, True)


def test_ages():
    assert [parse_age(text) for text in ("90s", "2m", "1.5h", "30d", " 2W ")] == [90, 120, 5400, 2592000, 1209600]
    with pytest.raises(DataError, match=r"e\.g\. 30d"):
        parse_age("30")


def test_clear_all_leaves_what_is_not_ours(cache, tmp_path):
    fill(cache, tmp_path / "data")
    own = [cache / "notes.txt", cache / "images" / "mine.txt", cache / "features" / "mine.npy"]
    for path in own:
        path.write_text("mine")
    outside = tmp_path / "outside"
    (outside / KEY).mkdir(parents=True)
    (outside / KEY / "a").write_text("precious")
    (cache / "images" / ("f" * 32)).symlink_to(outside / KEY)
    (cache / "away").symlink_to(outside)
    call("cache", "clear", "--all", "--yes")
    assert listed()["entries"] == []
    assert all(path.read_text() == "mine" for path in own) and (outside / KEY / "a").read_text() == "precious"
    assert sorted((tmp_path / "data").iterdir()) and (cache / "images" / ("f" * 32)).is_symlink()


@pytest.mark.parametrize("kind", ["images", "features"])
def test_kinds_that_are_links_are_not_followed(cache, tmp_path, kind):
    outside = tmp_path / "outside"
    (outside / KEY).mkdir(parents=True)
    cache.mkdir()
    (cache / kind).symlink_to(outside)
    assert listed()["entries"] == []
    entry = CacheEntry(kind, cache / kind / KEY, 0, 0.0, "", in_use=False)
    with pytest.raises(DataError, match="does not lie in the cache folder"):
        remove_entry(entry, cache)
    with pytest.raises(DataError, match="does not lie in the cache folder"):
        remove_entry(CacheEntry(kind, cache, 0, 0.0, "", in_use=False), cache)
    assert (outside / KEY).is_dir()


USE = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from petlbench.datasets.cache import prepare
from test_cache import split_of
made = prepare(split_of(Path(sys.argv[1])), 24, sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
print(int(made.gather(range(5)).sum()), flush=True)
"""


def test_what_a_process_uses_stays_until_it_ends(cache, tmp_path):
    made = prepare(split_of(tmp_path / "data"), 24, cache)
    total, folder = int(made.array.sum()), made.folder
    del made
    code = USE.format(tests=str(Path(__file__).parent))
    arguments = [sys.executable, "-c", code, str(tmp_path / "data"), str(cache)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        assert [entry["in_use"] for entry in listed("--kind", "images")["entries"]] == [True]
        called = call("cache", "clear", "--kind", "images", "--yes")
        assert "removed 0 entries" in called.out and "1 is in use and stays" in called.out and folder.is_dir()
        out, _ = process.communicate("\n", timeout=60)
    assert int(out) == total
    assert "removed 1 entries" in call("cache", "clear", "--kind", "images", "--yes").out and not folder.exists()


def test_what_is_being_made_stays(cache, tmp_path):
    made = fill(cache, tmp_path / "data")
    with FileLock(cache / "locks" / f"{made.name}.lock"), FileLock(cache / "locks" / f"{KEY}.lock"):
        with FileLock(cache / "states" / f"{KEY}.safetensors.lock"):
            called = call("cache", "clear", "--kind", "images", "--kind", "states", "--kind", "remains", "--yes")
            assert "removed 1 entries" in called.out and "3 are in use and stay" in called.out  # the .tmp has no lock
        assert made.is_dir() and (cache / "images" / f".making-{KEY}-abc").is_dir()


def test_an_entry_that_is_cleared_while_it_is_looked_up_is_made_anew(cache, tmp_path, monkeypatch):
    from petlbench.datasets import cache as module

    split = split_of(tmp_path / "data")
    prepare(split, 24, cache)
    real = module._open

    def cleared_just_now(folder, *, fresh):
        monkeypatch.setattr(module, "_open", real)
        call("cache", "clear", "--kind", "images", "--yes")
        return real(folder, fresh=fresh)

    monkeypatch.setattr(module, "_open", cleared_just_now)
    assert prepare(split, 24, cache).fresh


def test_damaged_entries_are_listed_and_removed(cache, tmp_path):
    made = fill(cache, tmp_path / "data")
    (made / "manifest.json").write_text("{")
    (cache / "states" / f"{KEY}.safetensors").write_bytes(b"\x10")
    (cache / "features" / f"{KEY}.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    (cache / "probes" / f"{KEY}.json").write_text("[")
    told = {entry["kind"]: entry["belongs_to"] for entry in listed()["entries"]}
    assert all("damaged" in told[kind] for kind in ("images", "features", "states", "probes"))
    call("cache", "clear", "--all", "--yes")
    assert listed()["entries"] == []


def test_entries_that_go_while_they_are_listed_are_passed_over(cache, tmp_path, monkeypatch):
    fill(cache, tmp_path / "data")
    tell = cache_entries._probe

    def gone_just_now(path):
        told = tell(path)
        path.unlink()
        return told

    monkeypatch.setattr(cache_entries, "_probe", gone_just_now)
    assert "probes" not in {entry["kind"] for entry in listed()["entries"]}


@pytest.mark.parametrize("kind", ["images", "shipped", "huggingface"])
def test_what_a_killed_clear_left_is_listed_and_removed(cache, tmp_path, monkeypatch, kind):
    fill(cache, tmp_path / "data")
    rmtree = shutil.rmtree

    def killed(path, *arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_entry(cache_entries.cache_entries(cache, [kind])[0], cache)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    (left,) = (one for one in listed("--kind", "remains")["entries"] if "clearing" in one["path"])
    assert left["bytes"] > 0
    call("cache", "clear", "--kind", "remains", "--yes")
    assert not Path(left["path"]).exists() and listed("--kind", "remains")["entries"] == []


def test_the_hugging_face_cache_of_others_is_left_alone(cache):
    """A user may put both caches into one folder: PETLBENCH_CACHE=~/.cache."""
    weights = cache / "huggingface" / "hub" / "models--openai--clip" / "model.bin"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    assert listed()["entries"] == []
    call("cache", "clear", "--all", "--yes")
    assert weights.read_bytes() == b"weights"


def test_holds_are_shared_or_alone(tmp_path):
    path = tmp_path / "a"
    path.touch()
    one, two = hold(path), hold(path)
    assert one and two and is_held(path) and hold(path, alone=True) is None
    del one, two
    assert not is_held(path)
    alone = hold(path, alone=True)
    assert alone and hold(path) is None
    assert hold(tmp_path / "no") is None and not is_held(tmp_path / "no")


def test_the_manifest_tells_where_pictures_come_from(cache, tmp_path):
    made = prepare(split_of(tmp_path / "data"), 24, cache)
    assert json.loads((made.folder / "manifest.json").read_text())["source"] == str(tmp_path / "data")
