"""What is sent to nodes and sent back: whole or not at all, links followed, nothing outside of its folder, no good record lost."""

import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from factories import make_payload, put_record
from hypothesis import given, settings
from hypothesis import strategies as st

from petlbench.harness.cluster import Cluster
from petlbench.harness.parcels import ParcelError, pack, unpack, write_files
from petlbench.harness.record_files import read_record


@settings(max_examples=30)
@given(
    st.dictionaries(st.sampled_from(("a", "b/c", "b/d", "e/f/g")), st.binary(max_size=3000), max_size=4),
    st.integers(7, 5000),
)
def test_what_is_packed_is_unpacked(files, piece):
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "set", Path(scratch) / "cache"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        pieces: list[bytes] = []
        parcel = pack(folder, lambda part: pieces.append(part) or part, piece)
        assert max(map(len, pieces)) <= piece and sum(map(len, pieces)) == parcel.size
        there = unpack(parcel, bytes, cache)
        assert there.name == "set"
        assert {p.relative_to(there).as_posix(): p.read_bytes() for p in there.rglob("*") if p.is_file()} == files


def test_a_parcel_is_unpacked_once_and_its_key_is_its_content(tmp_path):
    one, two = tmp_path / "one" / "weights.bin", tmp_path / "two" / "weights.bin"
    for path in (one, two):
        path.parent.mkdir()
        path.write_bytes(b"x" * 1000)
    os.utime(two, (1, 1))
    assert pack(one, bytes).key == pack(two, bytes).key
    fetched = []
    parcel = pack(one, bytes)
    for _ in range(2):
        there = unpack(parcel, lambda piece: fetched.append(piece) or piece, tmp_path / "cache")
    assert there.read_bytes() == b"x" * 1000
    assert len(fetched) == len(parcel.pieces)


def test_a_damaged_parcel_leaves_nothing_behind(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"x" * 1000)
    parcel = pack(path, bytes)
    with pytest.raises(ParcelError, match=r"weights\.bin arrived damaged"):
        unpack(parcel, lambda piece: piece.replace(b"xxx", b"xyx", 1), tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache" / "shipped").iterdir() if p.suffix != ".lock"] == []
    assert unpack(parcel, bytes, tmp_path / "cache").read_bytes() == b"x" * 1000


def test_a_node_cannot_write_outside_of_the_results(tmp_path):
    with pytest.raises(ParcelError, match="lies outside of"):
        write_files([("../elsewhere.json", b"{}")], tmp_path / "results")
    assert not (tmp_path / "elsewhere.json").exists()


def test_linked_folders_are_packed_once_and_loops_end(tmp_path):
    real, data = tmp_path / "disk" / "pictures", tmp_path / "set"
    (real / "deep").mkdir(parents=True)
    (real / "deep" / "a.png").write_bytes(b"a")
    (real / "again").symlink_to(real)
    data.mkdir()
    (data / "set.json").write_text("{}")
    (data / "images").symlink_to(real)
    there = unpack(pack(data, bytes), bytes, tmp_path / "cache")
    assert (there / "images" / "deep" / "a.png").read_bytes() == b"a"
    found = sorted(path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file())
    assert found == ["images/deep/a.png", "set.json"]


@pytest.mark.parametrize("other", [False, True])
def test_a_failure_on_a_node_that_sees_no_results_leaves_the_good_record(tmp_path, monkeypatch, other):
    path = put_record(tmp_path, seed=1)
    good = read_record(path)
    payload = make_payload(seed=1) | {"status": "failed", "metrics": {}, "cost": None}
    payload["error"] = {"type": "RuntimeError", "message": "no luck", "traceback": ""}
    if other:  # a trial of other settings whose name happens to be the same: its failure is told as any
        edited = json.loads(path.read_text()) | {"spec_id": "f" * 64}
        path.write_text(json.dumps(edited))
    sent = [(path.relative_to(tmp_path).as_posix(), json.dumps(payload).encode())]
    cluster = Cluster.__new__(Cluster)
    cluster.results = tmp_path
    cluster._desk = SimpleNamespace(take=SimpleNamespace(remote=lambda spec_id: sent))
    monkeypatch.setattr("ray.get", lambda value: value)
    cluster.collect(good.spec_id)
    assert read_record(path).status == ("failed" if other else "ok")
