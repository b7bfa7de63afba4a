"""The losses: numbers by hand, closed forms, and which pairs count."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from petlbench.methods.base import Batch
from petlbench.methods.losses import (
    adaptive_triplet,
    hinge,
    infonce,
    multi_positive_infonce,
    same_pair,
    siglip,
    terms,
)
from petlbench.methods.recipe import LossConfig

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.5, 1.0, -1.0], [0.0, 0.0, 3.0]])
CONTRASTIVE = ("infonce", "multi_positive")
NAMES = get_args(LossConfig.model_fields["name"].annotation)


pytestmark = pytest.mark.usefixtures("one_thread")


def pairs(image_ids, text_ids) -> Batch:
    return Batch(None, None, torch.tensor(image_ids), torch.tensor(text_ids))


def total(image, text, scale, batch, config, second=None):
    """The sum of a loss's terms; the second view is another function of the same embeddings where it is needed."""
    if config.needs_second_view and second is None:
        second = image + 0.1 * image.roll(1, -1), text + 0.1 * text.roll(1, -1)
    return torch.stack(list(terms(image, text, scale, batch, config, second).values())).sum()


def embeddings(rows: int, width: int = 8, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, width, generator=generator, dtype=torch.float64),
        torch.randn(rows, width, generator=generator, dtype=torch.float64),
    )


def by_hand(logits, kept=None):
    """Symmetric InfoNCE with plain Python floats; ``kept[i][j]`` says whether a pair is in the denominators."""
    n = len(logits)
    total = 0.0
    for i in range(n):
        row = [math.exp(logits[i][j]) for j in range(n) if kept is None or kept[i][j]]
        column = [math.exp(logits[j][i]) for j in range(n) if kept is None or kept[j][i]]
        total += math.log(sum(row)) + math.log(sum(column)) - 2 * logits[i][i]
    return total / (2 * n)


ids = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 3), min_size=n, max_size=n), st.lists(st.integers(0, 4), min_size=n, max_size=n)
    )
)


# --- numbers ---


def test_two_pairs_by_hand():
    # rows and columns of [[1, 0], [0, 1]]: every term is log(e + 1) - 1
    assert float(infonce(torch.eye(2))) == pytest.approx(math.log(math.e + 1) - 1, abs=1e-6)


def test_chance_level_is_log_n():
    for n in (1, 2, 5, 128):
        assert float(infonce(torch.zeros(n, n))) == pytest.approx(math.log(n), abs=1e-5)


def test_three_pairs_by_hand():
    assert float(infonce(LOGITS)) == pytest.approx(by_hand(LOGITS.tolist()), abs=1e-6)
    assert float(infonce(LOGITS)) == pytest.approx(0.34303, abs=2e-5)  # worked out with a calculator


def test_closed_form_of_torch():
    logits = torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    closed = -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()) / 2
    assert torch.allclose(infonce(logits), closed, atol=1e-12)


def test_multi_positive_by_hand():
    # rows 0 and 1 are positives of each other; row 2 stands alone
    positive = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])

    def one_way(s):
        rows = s.log_softmax(1)
        return -((rows[0, 0] + rows[0, 1]) / 2 + (rows[1, 0] + rows[1, 1]) / 2 + rows[2, 2]) / 3

    expected = (one_way(LOGITS) + one_way(LOGITS.T)) / 2
    assert torch.allclose(multi_positive_infonce(LOGITS, positive), expected, atol=1e-6)


def test_the_whole_loss_normalises_and_scales():
    image, text = embeddings(6)
    expected = infonce(10.0 * (F.normalize(image) @ F.normalize(text).T))
    got = total(image * 7, text * 0.01, torch.tensor(10.0), pairs(range(6), range(6)), LossConfig())
    assert torch.allclose(got.double(), expected, atol=1e-5)


# --- which pairs count ---


def test_same_pair_by_hand():
    # pictures 0 0 1 2, strings 0 1 1 3: rows 0, 1 share the picture, rows 1, 2 the string; this is not transitive
    found = same_pair(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 3]))
    assert found.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


@given(ids)
@settings(max_examples=60, deadline=None)
def test_masking_removes_exactly_the_false_negatives(both):
    image_ids, text_ids = both
    n = len(image_ids)
    logits = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    kept = [
        [i == j or (image_ids[i] != image_ids[j] and text_ids[i] != text_ids[j]) for j in range(n)] for i in range(n)
    ]
    got = infonce(logits, same_pair(torch.tensor(image_ids), torch.tensor(text_ids)))
    assert float(got) == pytest.approx(by_hand(logits.tolist(), kept), abs=1e-9)


@given(ids)
@settings(max_examples=60, deadline=None)
def test_masking_leaves_several_positives_and_takes_equal_strings_of_other_pictures(both):
    image_ids, text_ids = (torch.tensor(one) for one in both)
    n = len(image_ids)
    logits = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).requires_grad_()
    positive, same = image_ids[:, None] == image_ids, same_pair(image_ids, text_ids)
    left = positive | ~same

    def one_way(scores):
        total = 0.0
        for i in range(n):
            denominator = math.log(sum(math.exp(scores[i][j]) for j in range(n) if left[i, j]))
            own = [denominator - scores[i][j] for j in range(n) if positive[i, j]]
            total += sum(own) / len(own)
        return total / n

    found = multi_positive_infonce(logits, positive, same)
    values = logits.tolist()
    expected = (one_way(values) + one_way([list(column) for column in zip(*values, strict=True)])) / 2
    assert float(found.detach()) == pytest.approx(expected, abs=1e-6)  # weights are fp32
    found.backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad[~left] == 0).all()


@pytest.mark.parametrize(
    "name", ["infonce", "multi_positive", "harma", "siglip", "hinge", "hinge_hardest", "adaptive_triplet"]
)
def test_every_loss_heeds_the_mask(name):
    image, text = embeddings(4)
    batch, scale = pairs([0, 1, 2, 3], [0, 0, 1, 2]), torch.tensor(5.0, dtype=torch.float64)
    plain = LossConfig(name=name, positives="image", margin=2.0)
    found = [terms(image, text, scale, batch, plain.model_copy(update={"mask_duplicates": m})) for m in (False, True)]
    assert found[0].keys() == found[1].keys()
    assert all(abs(float(found[0][term] - found[1][term])) > 1e-9 for term in found[0])


@given(ids)
@settings(max_examples=30, deadline=None)
def test_a_masked_pair_gets_no_gradient_and_every_other_does(both):
    image_ids, text_ids = both
    n = len(image_ids)
    logits = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).requires_grad_()
    same = same_pair(torch.tensor(image_ids), torch.tensor(text_ids))
    infonce(logits, same).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    masked = same & ~torch.eye(n, dtype=torch.bool)
    assert (logits.grad[masked] == 0).all()
    assert (logits.grad[~same] > 0).all()


@given(ids, st.sampled_from(NAMES), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_pairs_does_not_matter(both, name, mask, random):
    image_ids, text_ids = both
    n = len(image_ids)
    image, text = embeddings(n, seed=n)
    order = list(range(n))
    random.shuffle(order)
    config = LossConfig(name=name, mask_duplicates=mask)
    scale = torch.tensor(20.0)
    one = total(image, text, scale, pairs(image_ids, text_ids), config)
    other = total(
        image[order], text[order], scale, pairs([image_ids[i] for i in order], [text_ids[i] for i in order]), config
    )
    assert float(one) == pytest.approx(float(other), rel=1e-4, abs=1e-5)


@given(st.integers(1, 8))
@settings(max_examples=8, deadline=None)
def test_without_duplicates_all_three_are_one(n):
    image, text = embeddings(n, seed=n)
    batch, scale = pairs(range(n), range(10, 10 + n)), torch.tensor(14.3)
    values = [
        float(total(image, text, scale, batch, LossConfig(name=name, mask_duplicates=mask)))
        for name in CONTRASTIVE
        for mask in (False, True)
    ]
    assert values == pytest.approx([values[0]] * 4, rel=1e-5)


def test_multi_positive_differs_where_embeddings_of_duplicates_differ():
    image, text = embeddings(4)  # as with augmentation, equal pictures embed differently
    batch, scale = pairs([0, 0, 1, 2], [0, 1, 2, 3]), torch.tensor(14.3)
    one, other = (total(image, text, scale, batch, LossConfig(name=name)) for name in CONTRASTIVE)
    assert abs(float(one) - float(other)) > 0.1


def test_masking_is_off_unless_asked():
    image, text = embeddings(4)
    batch, scale = pairs([0, 0, 1, 2], [0, 1, 2, 3]), torch.tensor(14.3)
    plain = total(image, text, scale, batch, LossConfig())
    masked = total(image, text, scale, batch, LossConfig(mask_duplicates=True))
    assert float(plain) > float(masked)  # fewer negatives


def test_identical_pairs_are_lossless_only_when_masked():
    # two rows with the same picture and string: InfoNCE cannot get below log 2 there, the masked form can
    logits = torch.full((2, 2), 50.0)
    same = same_pair(torch.tensor([0, 0]), torch.tensor([0, 0]))
    assert float(infonce(logits)) == pytest.approx(math.log(2))
    assert float(infonce(logits, same)) == 0
    assert float(multi_positive_infonce(logits, same)) == pytest.approx(math.log(2))


# --- numerics ---


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_both_sides_and_the_temperature(name):
    image, text = (e.float().requires_grad_() for e in embeddings(5))
    log_scale = torch.tensor(2.66, requires_grad=True)
    batch = pairs([0, 0, 1, 2, 3], [0, 1, 1, 2, 3])
    total(image, text, log_scale.exp(), batch, LossConfig(name=name, mask_duplicates=True)).backward()
    tempered = name in (*CONTRASTIVE, "siglip", "harma")
    for tensor in (image, text, log_scale) if tempered else (image, text):
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all() and tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_embeddings_are_compared_in_fp32(dtype, name):
    image, text = (e.to(dtype) for e in embeddings(6))
    batch, scale, config = pairs(range(6), range(6)), torch.tensor(100.0), LossConfig(name=name)
    got = total(image, text, scale, batch, config)
    assert got.dtype == torch.float32
    assert torch.equal(got, total(image.float(), text.float(), scale, batch, config))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_round_the_logits(name):
    image, text = (e.float() for e in embeddings(6))
    batch, scale, config = pairs(range(6), range(6)), torch.tensor(100.0), LossConfig(name=name)
    expected = total(image, text, scale, batch, config)
    with torch.autocast("cpu", torch.bfloat16):
        got = total(image, text, scale, batch, config)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_stay_finite(name):
    image = torch.eye(4)
    batch, config = pairs([0, 0, 1, 2], [0, 1, 2, 3]), LossConfig(name=name, mask_duplicates=True)
    assert torch.isfinite(total(image, -image, torch.tensor(1e4), batch, config))
    assert torch.isfinite(total(torch.zeros(4, 4), image, torch.tensor(1e4), batch, config))


# --- ranking losses: values that the official code of HarMA gave, and forms checked against slow loops ---

HARMA_SCORES = torch.tensor([[0.5, 0.4, 0.1], [0.3, 0.6, 0.55], [0.2, 0.45, 0.5]])


def test_adaptive_triplet_golden_values():
    assert float(adaptive_triplet(HARMA_SCORES, 0.2, 2.0)) == pytest.approx(0.0095387362, abs=1e-8)


@pytest.mark.parametrize(("rows", "value"), [(8, 0.36802), (128, 106.830), (214, 299.552), (428, 1201.019)])
def test_adaptive_triplet_of_indistinguishable_scores(rows, value):
    assert float(adaptive_triplet(torch.full((rows, rows), 0.3), 0.2, 2.0)) == pytest.approx(value, rel=2e-5)


@pytest.mark.parametrize(("images", "value"), [((0, 1, 2), 0.3960817), ((0, 1, 1), 0.6341771)])
def test_soft_target_contrastive_golden_values(images, value):
    ids = torch.tensor(images)
    got = multi_positive_infonce(HARMA_SCORES / 0.07, ids[:, None] == ids[None, :])
    assert float(got) == pytest.approx(value, abs=1e-6)


def test_harma_is_contrastive_plus_triplet_with_positives_of_the_same_picture_only():
    image, text = embeddings(4)
    batch, config = pairs([0, 0, 1, 2], [0, 1, 1, 2]), LossConfig(name="harma", positives="image")
    found = terms(image, text, torch.tensor(14.3), batch, config)
    assert set(found) == {"multi_positive", "adaptive_triplet"}
    similarity = (F.normalize(image) @ F.normalize(text).T).float()
    ids = batch.image_ids
    expected = multi_positive_infonce(14.3 * similarity, ids[:, None] == ids[None, :])
    assert float(found["multi_positive"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(found["adaptive_triplet"]) == pytest.approx(float(adaptive_triplet(similarity, 0.2, 2.0)), rel=1e-5)


def slow_hinge(scores, margin, hardest, ignore):
    n, found = len(scores), 0.0
    for i in range(n):
        row = [max(0.0, margin + scores[i][j] - scores[i][i]) for j in range(n) if j != i and not ignore[i][j]]
        column = [max(0.0, margin + scores[j][i] - scores[i][i]) for j in range(n) if j != i and not ignore[j][i]]
        found += (max(row, default=0.0) + max(column, default=0.0)) if hardest else sum(row) + sum(column)
    return found


@given(ids, st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_hinge_equals_a_slow_loop(both, hardest, mask):
    image_ids, text_ids = both
    n = len(image_ids)
    scores = torch.rand(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    same = same_pair(torch.tensor(image_ids), torch.tensor(text_ids)) if mask else torch.zeros(n, n, dtype=torch.bool)
    got = hinge(scores, 0.2, hardest=hardest, ignore=same if mask else None)
    assert float(got) == pytest.approx(slow_hinge(scores.tolist(), 0.2, hardest, same.tolist()), abs=1e-9)


def test_a_duplicated_row_pair_costs_the_margin_each_way():
    # four pairs at right angles, but the second picture and caption are the first ones again
    unit = torch.eye(4)[[0, 0, 1, 2]]
    batch = pairs([0, 0, 1, 2], [0, 0, 1, 2])
    assert float(hinge(unit @ unit.T, 0.2, hardest=True)) == pytest.approx(0.8)
    one = torch.tensor(1.0)
    found = terms(unit, unit, one, batch, LossConfig(name="hmmc"), (unit, unit))
    assert {name: round(float(value), 6) for name, value in found.items()} == {
        "hinge": 0.8,
        "hinge_image": 0.8,
        "hinge_text": 0.8,
    }
    masked = terms(unit, unit, one, batch, LossConfig(name="hmmc", mask_duplicates=True), (unit, unit))
    assert sum(map(float, masked.values())) == 0


def test_hmmc_compares_each_view_with_its_own_modality():
    image, text = embeddings(5)
    second = embeddings(5, seed=1)
    found = terms(image, text, torch.tensor(1.0), pairs(range(5), range(5)), LossConfig(name="hmmc"), second)
    unit = F.normalize
    for name, one, other in (("hinge_image", image, second[0]), ("hinge_text", text, second[1])):
        expected = hinge(unit(one) @ unit(other).T, 0.2, hardest=True)
        assert float(found[name]) == pytest.approx(float(expected), rel=1e-5)
    assert not LossConfig(name="hmmc", intra_weight=0).needs_second_view


def test_the_mean_is_the_sum_over_the_batch_size():
    image, text = embeddings(6)
    batch, one = pairs(range(6), range(6)), torch.tensor(1.0)
    for name in ("hinge", "hinge_hardest", "hmmc", "adaptive_triplet"):
        summed, mean = (total(image, text, one, batch, LossConfig(name=name, reduction=r)) for r in ("sum", "mean"))
        assert float(summed) == pytest.approx(6 * float(mean), rel=1e-5)


def test_siglip_by_hand():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    expected = sum(math.log1p(math.exp(-z)) for z in (2.0, 1.0, -0.5, 3.0)) / 2
    assert float(siglip(logits)) == pytest.approx(expected, rel=1e-6)
    only_diagonal = sum(math.log1p(math.exp(-z)) for z in (2.0, 3.0)) / 2
    assert float(siglip(logits, torch.ones(2, 2, dtype=torch.bool))) == pytest.approx(only_diagonal, rel=1e-6)
