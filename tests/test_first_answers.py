"""First answers of every query: those of a full sort, kept with the ranks where they are asked for."""

import dataclasses

import numpy as np
import pytest
import torch

from petlbench.harness.first_answers import best
from petlbench.harness.metrics import Ranks
from petlbench.harness.ranks import rank_all, rank_scores

OWNER = np.repeat(np.arange(7), 3)
TEXTS = np.array([0, 1, 2, 3, 1, 4, 5, 6, 7, 8, 9, 1, 10, 11, 12, 13, 2, 14, 15, 16, 17])


@pytest.mark.parametrize("chunk", (1, 2, 3, 7))
@pytest.mark.parametrize("coarse", (False, True), ids=("distinct", "ties"))
def test_they_are_those_of_a_full_stable_sort(chunk, coarse):
    scores = torch.randn(7, 18, generator=torch.Generator().manual_seed(3))
    scores = (scores * 2).round() if coarse else scores
    ranks = rank_scores(scores, OWNER, TEXTS, columns="strings", chunk=chunk, top=5)
    whole = scores[:, TEXTS]
    order = {"dim": 1, "descending": True, "stable": True}
    np.testing.assert_array_equal(ranks.i2t_top, whole.sort(**order).indices[:, :5])
    np.testing.assert_array_equal(ranks.t2i_top, whole.T.sort(**order).indices[:, :5])


def test_a_collapsed_model_answers_in_the_order_of_the_split():
    ranks = rank_all(torch.ones(7, 4), torch.ones(18, 4), OWNER, TEXTS, top=10)
    assert ranks.i2t_top.shape == (7, 10) and ranks.t2i_top.shape == (21, 7), "there are seven pictures"
    assert (ranks.i2t_top == np.arange(10)).all() and (ranks.t2i_top == np.arange(7)).all()


def test_pruned_candidates_come_last():
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0]])
    assert best(scores, 3).tolist() == [[3, 1, 0]]


def test_a_ranks_file_holds_them_or_not(tmp_path):
    drawn = torch.Generator().manual_seed(0)
    images, texts = torch.randn(7, 4, generator=drawn), torch.randn(18, 4, generator=drawn)
    for top in (0, 4):
        ranks = rank_all(images, texts, OWNER, TEXTS, top=top)
        ranks.save(tmp_path / "x.npz")
        again = Ranks.load(tmp_path / "x.npz")
        for name, array in vars(ranks).items():
            found = getattr(again, name)
            assert (found is None) == (array is None) and (array is None or (found == array).all()), name
    assert again.i2t_top is not None
    with np.load(tmp_path / "x.npz") as stored:
        assert {"i2t_top", "t2i_top"} <= set(stored.files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda top: top[:, ::-1], "does not hold the right answer"),
        (lambda top: top[:-1], "expected int32"),
        (lambda top: np.zeros_like(top), "twice"),
        (lambda top: top + 100, "outside"),
    ],
)
def test_first_answers_that_contradict_the_ranks_are_refused(change, message):
    scores = torch.randn(7, 18, generator=torch.Generator().manual_seed(1))
    ranks = rank_scores(scores, OWNER, TEXTS, columns="strings", top=4)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ranks, t2i_top=np.ascontiguousarray(change(ranks.t2i_top)))
