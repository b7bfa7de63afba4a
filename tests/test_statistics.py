"""Spread, bootstrap over images, sign-flip test and Holm's correction."""

import itertools
import math

import numpy as np
import pytest
from factories import make_ranks, ranks_from
from hypothesis import given, settings
from hypothesis import strategies as st

from petlbench.harness.metrics import per_image, recalls
from petlbench.leaderboard import statistics


def test_deviation_by_hand():
    mean, sd = statistics.mean_sd([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert sd == pytest.approx(math.sqrt((16 + 1 + 25) / 9 / 2))  # divisor n - 1, not n


def test_a_single_value_has_no_deviation_and_no_value_is_an_error():
    assert statistics.mean_sd([5.0]) == (5.0, None)
    with pytest.raises(ValueError, match="no values"):
        statistics.mean_sd([])


def test_holm_worked_by_hand():
    # Sorted: .005*4 = .02, .01*3 = .03, .03*2 = .06, .04*1 = .04, which may not fall below .06.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_takes_nothing():
    assert statistics.holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    assert statistics.holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_only_raises(p_values):
    adjusted = statistics.holm(p_values)
    assert (adjusted >= np.array(p_values)).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p_values, kind="stable")]) >= 0).all()
    assert adjusted.max() <= min(1.0, max(p_values) * len(p_values)) + 1e-12


@pytest.mark.parametrize(("images", "resamples"), [(1, 3), (7, 50), (5_000, 900)])
def test_every_bootstrap_sample_has_as_many_images_as_the_split(images, resamples):
    counts = statistics.resample_counts(images, resamples)
    assert counts.shape == (resamples, images)
    assert (counts.sum(1) == images).all()
    if images > 1:
        assert len(np.unique(counts, axis=0)) > 1
        assert counts.mean(0) == pytest.approx(np.ones(images), abs=0.3 if resamples > 500 else 1.0)


def test_resampling_every_image_once_gives_the_recalls_back():
    ranks = make_ranks(2.0)
    found = statistics.bootstrap_mr(per_image(ranks)[None], np.ones((1, ranks.images)))
    assert found[0, 0] == pytest.approx(recalls(ranks)["mR"])


def test_resampling_two_images_by_hand():
    # Columns: image-to-text hit, text-to-image hits, captions. Image 0 hits everything, image 1 nothing.
    contributions = np.array([[[1.0, 1.0, 1.0], [0.0, 0.0, 3.0]]])
    found = statistics.bootstrap_mr(contributions, np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))[:, 0]
    assert found == pytest.approx([100.0, 100 * (1 / 2 + 1 / 4) / 2, 0.0])


def test_interval_covers_the_truth_though_captions_of_an_image_move_together():
    """Where one image's captions hit or miss as one, an interval over captions would be far too narrow."""
    rng = np.random.default_rng(5)
    rows, images, captions = 300, 120, 5
    hit = (rng.random((rows, images)) < 0.4).astype(float)
    contributions = np.stack([hit, captions * hit, np.full_like(hit, captions)], axis=-1)
    low, high = statistics.percentile_interval(
        statistics.bootstrap_mr(contributions, statistics.resample_counts(images, 800))
    )
    covered = ((low <= 40) & (high >= 40)).mean()
    assert 0.90 <= covered <= 0.985
    share = hit.mean(1)
    naive = 196 * np.sqrt(share * (1 - share) / (images * (1 + captions)))
    assert (np.abs(100 * share - 40) <= naive).mean() < 0.75


def test_bootstrap_is_deterministic_and_moves_with_the_seed():
    contributions = per_image(make_ranks(1.5))[None]
    first, again, other = (
        statistics.bootstrap_mr(contributions, statistics.resample_counts(40, 100, seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@settings(max_examples=40)
@given(st.data())
def test_image_scores_add_up_to_mr(data):
    images = data.draw(st.integers(1, 8))
    extra = data.draw(st.lists(st.integers(0, images - 1), max_size=12))
    owner = sorted([*range(images), *extra])  # every image owns at least one caption, some own more
    i2t = data.draw(st.lists(st.integers(0, len(owner) - 1), min_size=images, max_size=images))
    t2i = data.draw(st.lists(st.integers(0, images - 1), min_size=len(owner), max_size=len(owner)))
    ranks = ranks_from(owner, i2t, t2i)
    scores = statistics.image_scores(per_image(ranks))
    assert scores.shape == (images,)
    assert scores.sum() == pytest.approx(recalls(ranks)["mR"])


@pytest.mark.parametrize("differences", [[1.0, 2.0, 3.0], [1.0, -1.0, 1.0, 0.0], [5.0, 0.1, -0.2, 3.0, 0.3]])
def test_sign_flip_agrees_with_enumeration(differences):
    signs = np.array(list(itertools.product([-1, 1], repeat=len(differences))))
    exact = (np.abs(signs @ differences) >= abs(sum(differences)) - 1e-9).mean()
    assert statistics.sign_flip(np.array([differences]), flips=20_000)[0] == pytest.approx(exact, abs=0.015)


def test_sign_flip_extremes():
    same, far = statistics.sign_flip(np.array([np.zeros(60), np.ones(60)]), flips=999)
    assert same == 1.0
    assert far == pytest.approx(1 / 1000)  # never 0
    assert statistics.sign_flip(np.empty((0, 5))).size == 0


def test_sign_flip_rejects_a_true_null_at_its_level_and_finds_a_shift():
    noise = np.random.default_rng(3).normal(size=(600, 50))
    assert 0.025 <= (statistics.sign_flip(noise, flips=1_999) < 0.05).mean() <= 0.08
    assert (statistics.sign_flip(noise + 0.6, flips=1_999) < 0.05).mean() > 0.9


def test_rounding_noise_does_not_break_ties_of_sums():
    """0.1 + 0.2 is not 0.3 in floating point; equal sums must count as reached whatever the order of summation."""
    p = statistics.sign_flip(np.array([[0.1, 0.2, -0.3]]), flips=5_000)[0]
    assert p == 1.0  # the observed sum is 0, which every flip reaches
