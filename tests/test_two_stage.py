"""Two-stage retrieval: candidates, order, what bounds it, and what it costs against scoring every pair."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_fakes import TinyFusion, bare_backbone, captions_of, pair_data

from petlbench.harness import metrics
from petlbench.harness.pair_scores import PairCost, ScoreError, score_all
from petlbench.harness.pair_store import ScoreStore
from petlbench.harness.ranks import rank_scores
from petlbench.harness.two_stage import behind, candidates, join_ranks, shortlist_recall, two_stage

CPU = torch.device("cpu")
IMAGES = 12
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bench():
    method, backbone = TinyFusion(), bare_backbone()
    return method, method.build(), backbone, pair_data(backbone, captions_of(IMAGES))


@pytest.fixture
def first(bench):
    """First-stage scores with many ties."""
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 6, (IMAGES, len(bench[3].tokens)), generator=draw).float()


def staged(bench, first, k, **options):
    return two_stage(*bench, "fp32", CPU, first, k, **options)


def exact_ranks(bench):
    split = bench[3].split
    return rank_scores(score_all(*bench, "fp32", CPU), split.owner, split.text_ids, columns="strings")


def same(one, other, way=""):
    return all(
        np.array_equal(getattr(one, item.name), getattr(other, item.name))
        for item in fields(one)
        if item.name.startswith(way)
    )


def by_hand(scores, first, k):
    """Orders of the gallery, (Q, G): candidates by score, then the rest by the first stage; lower index first."""
    orders = []
    for second, one in zip(scores.tolist(), first.tolist(), strict=True):
        listed = sorted(range(len(one)), key=lambda item: (-one[item], item))
        orders.append(sorted(listed[:k], key=lambda item: (-second[item], item)) + listed[k:])
    return orders


# --- the pieces ---


def test_of_equal_scores_the_lower_index_is_a_candidate():
    first = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert candidates(first, 2).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert bool(candidates(first, 9).all()), "a gallery smaller than k is taken whole"


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([1e-30, 1.0, 1e30]),
    st.integers(0, 10**6),
)
def test_candidates_come_first_and_the_rest_keeps_its_order(gallery, queries, k, size, seed):
    draw = torch.Generator().manual_seed(seed)
    scores, first = (torch.randint(-3, 4, (queries, gallery), generator=draw).float() * size for _ in range(2))
    chosen = candidates(first, k)
    joined = behind(scores.masked_fill(~chosen, torch.nan), first, chosen)
    order = joined.argsort(dim=1, descending=True, stable=True)
    assert order.tolist() == by_hand(scores, first, k)
    for row, mask in enumerate(chosen):
        lowest, rest = joined[row][mask].min(), joined[row][~mask]
        assert bool((rest < lowest).all())
        equal = first[row][~mask][:, None] == first[row][~mask][None]
        assert torch.equal(rest[:, None] == rest[None], equal), (
            "ties of the first stage stay ties, and no new ones arise"
        )


def test_shortlist_recall_counts_queries():
    of_image = torch.tensor([[1, 0, 0], [0, 1, 0]]).bool()
    of_text = torch.tensor([[1, 1, 0], [0, 0, 1]]).bool()
    owner, texts = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 2])
    assert shortlist_recall(of_image, of_text, owner, texts) == (50.0, 75.0)


# --- the whole ---


def test_ranks_are_those_of_the_order_by_hand(bench, first):
    k, split = 4, bench[3].split
    ranks, _ = staged(bench, first, k)
    scores = score_all(*bench, "fp32", CPU)
    texts = split.text_ids
    for image, order in enumerate(by_hand(scores, first, k)):
        place = {string: p for p, string in enumerate(order)}
        own = {int(t) for t in texts[split.owner == image]}
        best = min(own, key=place.__getitem__)
        ahead = sum(place[int(t)] < place[best] for t in texts)  # every caption slot counts
        assert ranks.i2t_greater[image] <= ahead <= ranks.i2t_greater[image] + ranks.i2t_tied[image]
        if not ranks.i2t_tied[image]:
            assert ranks.i2t_index[image] == ahead
    orders = by_hand(scores.T, first.T, k)
    expected = [orders[texts[c]].index(split.owner[c]) for c in range(len(texts))]
    assert ranks.t2i_index.tolist() == expected


@pytest.mark.parametrize("k", [10**6, None])
def test_a_shortlist_of_everything_is_exact(bench, first, k):
    k = k or max(first.shape)
    ranks, report = staged(bench, first, k)
    assert same(ranks, exact_ranks(bench))
    assert report.pairs == first.numel() and report.i2t_rk == report.t2i_rk == 100.0
    assert report.sample.exact == report.sample.two_stage and report.sample.loss == 0.0


def test_a_first_stage_that_agrees_changes_nothing(bench):
    scores = score_all(*bench, "fp32", CPU)
    for k in (1, 3, 10):
        assert same(staged(bench, scores, k, sample=0)[0], exact_ranks(bench))


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_no_recall_passes_the_first_stage(bench, first, k):
    ranks, report = staged(bench, first, k)
    split = bench[3].split
    found = metrics.recalls(ranks, ks=tuple(range(1, k + 1)))
    assert max(value for name, value in found.items() if name.startswith("i2t")) <= report.i2t_rk + 1e-9
    assert found[f"t2i_r{k}"] == pytest.approx(report.t2i_rk), "at k itself nothing but the shortlist decides"
    first_ranks = rank_scores(first, split.owner, split.text_ids, columns="strings")
    assert report.t2i_rk == pytest.approx(100 * float((first_ranks.t2i_index < k).mean()))


def test_only_candidates_are_scored_and_counted(bench, first):
    method, k, cost = bench[0], 2, PairCost()
    method.calls.update(scored=0)
    _, report = staged(bench, first, k, sample=0, cost=cost)
    union = candidates(first, k) | candidates(first.T, k).T
    assert report.pairs == method.calls["scored"] == cost.pairs == int(union.sum()) < first.numel()
    assert report.sample is None


def test_the_sample_is_exact_and_its_pairs_are_not_counted(bench, first):
    method, k, cost, told = bench[0], 2, PairCost(), []
    method.calls.update(scored=0)
    ranks, report = staged(bench, first, k, sample=5, seed=3, cost=cost, say=told.append)
    sample = report.sample
    assert (sample.images, sample.captions) == (5, 5) and list(sample.exact) == list(metrics.recalls(ranks))
    assert cost.pairs == report.pairs < method.calls["scored"] < first.numel()
    assert told[-1].pairs == report.pairs
    draw = np.random.default_rng(3)
    images = draw.choice(IMAGES, 5, replace=False)
    captions = draw.choice(len(bench[3].split.owner), 5, replace=False)
    exact = exact_ranks(bench)
    for key, ours in (("exact", exact), ("two_stage", ranks)):
        found = getattr(sample, key)
        assert found["i2t_r5"] == pytest.approx(100 * (ours.i2t_index[images] < 5).mean())
        assert found["t2i_r1"] == pytest.approx(100 * (ours.t2i_index[captions] < 1).mean())
    assert sample.exact != sample.two_stage, "this first stage is bad"
    again = staged(bench, first, k, sample=5, seed=3)[1]
    assert again == report and staged(bench, first, k, sample=5, seed=4)[1].sample != sample


def test_a_sample_larger_than_the_split_takes_all_of_it(bench, first):
    sample = staged(bench, first, 2, sample=10**6)[1].sample
    assert sample.exact == pytest.approx(metrics.recalls(exact_ranks(bench)))


def test_a_store_keeps_candidates_and_sample(bench, first, tmp_path):
    plain = staged(bench, first, 3)
    store = ScoreStore(tmp_path / "scores", "key", tuple(first.shape))
    stored = staged(bench, first, 3, store=store)
    assert same(stored[0], plain[0]) and stored[1] == plain[1]
    bench[0].calls["scored"] = 0
    again = staged(bench, first, 3, store=ScoreStore(store.path, "key", tuple(first.shape)))
    assert same(again[0], plain[0]) and bench[0].calls["scored"] == 0


def test_each_direction_comes_from_its_own_candidates(bench, first):
    exact, other = exact_ranks(bench), staged(bench, first, 1, sample=0)[0]
    joined = join_ranks(exact, other)
    assert same(joined, exact, "i2t") and same(joined, other, "t2i") and not same(exact, other, "t2i")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: f[:, :3], {}, r"split test: .*shape \(12, 3\), expected numbers of shape \(12, \d+\)"),
        (lambda f: f.masked_fill(f == 0, torch.nan), {}, r"first-stage scores hold \d+ NaN"),
        (lambda f: f, {"k": 0}, r"k=0 .*must be at least 1"),
        (lambda f: f, {"sample": -1}, r"sample=-1"),
    ],
)
def test_bad_input_is_refused(bench, first, change, options, message):
    with pytest.raises(ScoreError, match=message):
        staged(bench, change(first), **{"k": 2, **options})
