"""Saved ranks: they come back as they were, and damaged or foreign files are named."""

import numpy as np
import pytest

from petlbench.harness.metrics import Ranks
from petlbench.harness.ranks import rank_scores


def test_saved_ranks_come_back(tmp_path):
    found = rank_scores(np.eye(3)[:, [0, 0, 1, 2]], [0, 1, 1, 2], [0, 0, 1, 2])
    found.save(tmp_path / "test.ranks")  # the name is kept as given
    loaded = Ranks.load(tmp_path / "test.ranks")
    for name in Ranks.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(found, name), err_msg=name)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"metric_version": np.int32(0)}, "metric version 0, expected 1"),
        ({"t2i_index": None}, "found no t2i_index"),
        ({"i2t_index": np.array([5, 0, 0], dtype=np.int32)}, "i2t_index lies outside its tied block at row 0"),
        ({"t2i_tied": np.zeros(4)}, "t2i_tied is float64"),
        ({"owner": np.array([0, 1, 1, 3], dtype=np.int32)}, "owner lies outside the 3 images at row 3"),
        ({"owner": np.array([None] * 4)}, "allow_pickle=False"),
    ],
)
def test_bad_ranks_file_is_named(tmp_path, change, complaint):
    path = tmp_path / "test.npz"
    rank_scores(np.eye(3)[:, [0, 1, 1, 2]], [0, 1, 1, 2], [0, 1, 1, 2]).save(path)
    with np.load(path) as stored:
        arrays = {**stored, **change}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=complaint) as caught:
        Ranks.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("flag", [1 << 0, 1 << 5])
def test_archives_of_a_kind_that_cannot_be_read_are_named(tmp_path, flag):
    """One flipped bit makes a member encrypted, or patched data, for which zipfile has exceptions of its own."""
    path = tmp_path / "test.npz"
    rank_scores(np.eye(3), [0, 1, 2], [0, 1, 2]).save(path)
    whole = bytearray(path.read_bytes())
    for begin, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = whole.find(begin)
        while place >= 0:
            whole[place + offset] |= flag
            place = whole.find(begin, place + 1)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="not a usable ranks file") as caught:
        Ranks.load(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_archives(tmp_path):
    path = tmp_path / "test.npz"
    with pytest.raises(FileNotFoundError):
        Ranks.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"not an \.npz archive"):
        Ranks.load(path)
