"""Cleaning captions: the authors' rule, splits with cleaned captions, and what training and evaluation get of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petlbench.datasets.captions import clean, cleaned
from petlbench.datasets.readers.scenes import read_scenes
from petlbench.datasets.split import DataError, Split
from petlbench.harness.data import SplitData
from petlbench.methods.backbones.random_models import random_clip
from petlbench.methods.recipe import Recipe


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Many planes, parked: next to a TERMINAL.", "many planes parked next to a terminal"),
        ('It\'s "green"! (or #1?) ~*;', "its green or 1"),
        ("a T-shaped/L-shaped road", "a t shaped l shaped road"),
        ("a <person> on a  beach\n", "a person on a beach"),
        ("  spaces \t and\nlines  ", "spaces and lines"),
        ("café & crème = 3 + 4", "café & crème = 3 + 4"),
        (" ".join(f"w{i}" for i in range(40)), " ".join(f"w{i}" for i in range(30))),
        ("...", ""),
    ],
)
def test_the_rule(raw, expected):
    assert clean(raw) == expected


@given(st.text(max_size=200))
def test_cleaning_twice_changes_nothing_more(text):
    once = clean(text)
    if "person" not in once:  # "<<person>>" loses one pair of brackets at a time
        assert clean(once) == once
    assert len(once.split()) <= 30 and not set(",.'!?\"()*#:;~-/") & set(once)


def split(*captions):
    owner = np.arange(len(captions), dtype=np.int64)
    return Split("train", tuple(Picture(i) for i in owner), captions, owner)


class Picture:
    def __init__(self, index):
        self.name = f"picture_{index}.jpg"


def test_captions_that_become_equal_are_one_string():
    raw = split("A plane.", "a plane", "Two planes")
    assert len(raw.distinct) == 3
    found = cleaned(raw)
    assert found.distinct == ("a plane", "two planes") and found.text_ids.tolist() == [0, 0, 1]
    assert found.images == raw.images and found.owner is raw.owner and found.sha256 != raw.sha256


def test_a_caption_of_which_nothing_is_left_is_named():
    with pytest.raises(DataError, match=r"nothing of 1 caption: '\.\.\.' of picture_1\.jpg.*train\.captions=raw"):
        cleaned(split("a plane", "..."))


def test_the_recipe_decides_what_is_tokenised(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path))
    scenes = read_scenes({"train": 30, "val": 30, "test": 30})["train"]
    loud = Split("train", scenes.images, tuple(c.upper() + " !" for c in scenes.captions), scenes.owner)
    backbone = random_clip()
    assert Recipe().captions == "raw"
    raw, tidy = (SplitData.open(loud, backbone, kind) for kind in ("raw", "cleaned"))
    assert raw.split is loud and raw.tokens.ids.equal(backbone.tokenize(loud.distinct).ids)
    assert tidy.split.captions == tuple(clean(c) for c in scenes.captions)
    assert tidy.tokens.ids.equal(backbone.tokenize(tidy.split.distinct).ids)
