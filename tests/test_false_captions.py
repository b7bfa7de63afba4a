"""False captions: uniform, never the picture's own unless asked for, the same for the same seed and epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petlbench.datasets.split import DataError, Split
from petlbench.harness.false_captions import FalseCaptions, own_strings


class _Picture:
    def __init__(self, number: int):
        self.name = f"{number}.png"


def split_of(owners: list[int], strings: list[str]) -> Split:
    pictures = tuple(_Picture(i) for i in range(max(owners) + 1))
    return Split("train", pictures, tuple(strings), np.array(owners, dtype=np.int64))


@st.composite
def splits(draw) -> Split:
    images = draw(st.integers(2, 8))
    owners = list(range(images)) + draw(st.lists(st.integers(0, images - 1), max_size=20))
    # "only here" makes sure that no picture owns every string
    strings = [f"only {i}" for i in range(images)]
    strings += draw(st.lists(st.sampled_from("abcdef"), min_size=len(owners) - images, max_size=len(owners) - images))
    return split_of(owners, strings)


@given(splits(), st.integers(1, 6), st.integers(0, 3))
def test_no_false_caption_is_a_string_of_the_picture_itself(split, count, seed):
    images = np.arange(len(split.images))
    drawn = FalseCaptions(split, count, own_allowed=False, seed=seed, epoch=1).draw(images)
    assert drawn.shape == (len(images), count)
    for image, row in zip(images, drawn, strict=True):
        own = {split.captions[i] for i in np.flatnonzero(split.owner == image)}
        assert not own & {split.distinct[i] for i in row}


@given(splits(), st.integers(0, 3), st.integers(1, 3))
def test_draws_depend_on_seed_and_epoch_alone(split, seed, epoch):
    images = np.arange(len(split.images))
    one, other = (FalseCaptions(split, 4, False, seed, epoch) for _ in range(2))
    for _ in range(3):
        assert np.array_equal(one.draw(images), other.draw(images))


def test_epochs_draw_differently_and_released_sampling_takes_own_captions_too():
    split = split_of([i // 2 for i in range(40)], [f"{i}" for i in range(40)])
    images = np.arange(20)
    first, second = (FalseCaptions(split, 15, True, 0, epoch).draw(images) for epoch in (1, 2))
    assert not np.array_equal(first, second)
    # 15 draws from 40 slots of which 2 are own: more than half of the pictures meet one of theirs
    assert (split.owner[first] == images[:, None]).any(1).mean() > 0.25
    assert not (split.owner[FalseCaptions(split, 15, False, 0, 1).draw(images)] == images[:, None]).any()


def test_frequent_strings_are_drawn_as_often_as_they_occur():
    split = split_of([0] + [1] * 9 + [2] * 10, ["own"] + ["often"] * 9 + [f"rare {i}" for i in range(10)])
    drawn = FalseCaptions(split, 20_000, False, 0, 1).draw(np.array([0]))
    share = (drawn == split.distinct.index("often")).mean()
    assert share == pytest.approx(9 / 19, abs=0.02)


def test_a_picture_that_owns_every_string_is_an_error_that_says_what_to_do():
    split = split_of([0, 0, 1], ["a", "b", "a"])
    with pytest.raises(DataError, match=r"picture 0\.png: owns all 2 distinct captions.*own_as_false=true"):
        FalseCaptions(split, 3, False, 0, 1)
    assert FalseCaptions(split, 3, True, 0, 1).draw(np.array([0])).shape == (1, 3)


def test_own_strings_are_listed_once_and_filled_up():
    split = split_of([0, 0, 0, 1], ["a", "b", "a", "c"])
    assert own_strings(split).tolist() == [[0, 1], [2, -1]]
