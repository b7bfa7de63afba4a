"""Ranks and recalls against a slow oracle that sorts every query, golden values, and published figures."""

import itertools
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import shared_path

from petlbench.harness import metrics, ranks
from petlbench.harness.metrics import KS, RULES, Ranks, ceiling, class_oracle, per_image, recalls, recalls_from_sums
from petlbench.harness.ranks import rank_all, rank_scores

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
ARRAYS = tuple(Ranks.__dataclass_fields__)
examples = settings(max_examples=300, deadline=None)


def same(one: Ranks, other: Ranks) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def ids(values):
    """Equal values, equal id, by first appearance."""
    seen = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values])


@st.composite
def problems(draw, most_images=6):
    """(string scores, owner, text_ids): shuffled owners, uneven captions, strings shared within and across images."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=most_images))
    owner = draw(st.permutations([image for image, count in enumerate(counts) for _ in range(count)]))
    text = ids(draw(st.lists(st.integers(0, 6), min_size=len(owner), max_size=len(owner))))
    strings = int(text.max()) + 1
    renamed = np.array(draw(st.permutations(range(strings))))
    row = st.lists(st.integers(0, 2), min_size=strings, max_size=strings)
    scores = draw(st.lists(row, min_size=len(counts), max_size=len(counts)))
    return np.array(scores), np.array(owner), renamed[text]


def slow_direction(scores, right, accepted):
    """Per query, from its own list of scores and its right answers: rank by rule, and P(rank < K) as fractions."""
    found = {rule: [] for rule in RULES}
    for row, good, also in zip(scores, right, accepted, strict=True):
        order = sorted(range(len(row)), key=lambda c: -row[c])  # Python's sort is stable
        found["index"].append(min(order.index(c) for c in good))
        found["duplicate_aware"].append(min(order.index(c) for c in also))
        for rule, sign in (("optimistic", 0), ("pessimistic", 1)):
            forced = sorted(range(len(row)), key=lambda c: (-row[c], (c in good) == sign))
            found[rule].append(min(forced.index(c) for c in good))
        best = max(row[c] for c in good)
        above, level = sum(s > best for s in row), [c for c, s in enumerate(row) if s == best]
        bad = [c for c in level if c not in good]
        room = [min(max(k - above, 0), len(level)) for k in KS]
        miss = [Fraction(math.comb(len(bad), m), math.comb(len(level), m)) for m in room]
        found["expected"].append([1 - chance for chance in miss])
    return found


def slow(scores, owner, text_ids):
    images, captions = range(len(scores)), range(len(owner))
    table = [[scores[i][text_ids[j]] for j in captions] for i in images]
    own = [[j for j in captions if owner[j] == i] for i in images]
    kin = [[j for j in captions if text_ids[j] in {text_ids[c] for c in own[i]}] for i in images]
    kin_images = [[i for i in images if any(text_ids[c] == text_ids[j] for c in own[i])] for j in captions]
    return (
        slow_direction(table, own, kin),
        slow_direction([[table[i][j] for i in images] for j in captions], [[owner[j]] for j in captions], kin_images),
    )


SHUFFLED_IDS = (np.array([[0, 0], [0, 1]]), np.array([0, 1]), np.array([1, 0]))


@examples
@example(SHUFFLED_IDS, 1, "float32", True)  # all strings distinct, ids not in the order of the captions
@given(problems(), st.integers(1, 8), st.sampled_from(["float32", "float64", "int64", "float16"]), st.booleans())
def test_ranks_equal_those_of_a_sort_per_query(problem, chunk, dtype, by_caption):
    scores, owner, text = problem
    given_scores = scores[:, text] if by_caption else scores
    columns = "captions" if by_caption else "strings"
    found = rank_scores(given_scores.astype(dtype), owner, text, columns=columns, chunk=chunk)
    for way, truth in zip(("i2t", "t2i"), slow(scores.tolist(), owner.tolist(), text.tolist()), strict=True):
        greater, tied = getattr(found, f"{way}_greater"), getattr(found, f"{way}_tied")
        assert greater.tolist() == truth["optimistic"]
        assert (greater + tied).tolist() == truth["pessimistic"]
        assert getattr(found, f"{way}_index").tolist() == truth["index"]
        assert getattr(found, f"{way}_duplicate").tolist() == truth["duplicate_aware"]
        for rule in RULES:
            table = recalls(found, rule)
            for place, k in enumerate(KS):
                hits = [row[place] if rule == "expected" else int(row < k) for row in truth[rule]]
                assert table[f"{way}_r{k}"] == pytest.approx(float(100 * sum(hits) / len(hits)), abs=1e-9)


UNIT = np.array(list(itertools.product((-0.5, 0.5), repeat=4)), dtype=np.float32)


@examples
@given(problems(), st.integers(1, 8), st.booleans(), st.randoms(use_true_random=False))
def test_embeddings_rank_as_their_exact_products(problem, chunk, keep, random):
    """Four halves make a vector of norm 1 with products in quarters, exact in fp32: any chunk gives one answer."""
    scores, owner, text = problem
    images, texts = (UNIT[[random.randrange(16) for _ in range(size)]] for size in scores.shape)
    expected = rank_scores(images @ texts.T, owner, text, columns="strings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "KEEP_BYTES", 2**30 if keep else 0)
        # The length of an embedding must not matter; powers of two keep the arithmetic exact.
        long_images, long_texts = (
            torch.from_numpy(e * 2.0 ** (np.arange(len(e)) % 5)[:, None]) for e in (images, texts)
        )
        same(rank_all(long_images, long_texts, owner, text, chunk=chunk), expected)


@examples
@given(problems(), st.data())
def test_invariants_of_the_tie_rules(problem, data):
    scores, owner, text = problem
    found = rank_scores(scores, owner, text, columns="strings")
    table = {rule: recalls(found, rule, ks=(1, 2, 3, 5, 10)) for rule in RULES}
    for key in table["index"]:
        low, high = table["pessimistic"][key] - 1e-9, table["optimistic"][key] + 1e-9
        assert low <= table["index"][key] <= high
        assert low <= table["expected"][key] <= high
        assert table["duplicate_aware"][key] >= table["index"][key]
    for rule, way in itertools.product(RULES, ("i2t", "t2i")):
        values = [table[rule][f"{way}_r{k}"] for k in (1, 2, 3, 5, 10)]
        assert all(a <= b + 1e-9 for a, b in itertools.pairwise(values))

    new_image = np.array(data.draw(st.permutations(range(len(scores)))))  # the order of a split is no information
    captions = np.array(data.draw(st.permutations(range(len(owner)))))
    moved_scores = np.empty_like(scores)
    moved_scores[new_image] = scores
    moved = rank_scores(moved_scores, new_image[owner][captions], text[captions], columns="strings")
    for rule in ("expected", "optimistic", "pessimistic"):
        assert recalls(moved, rule) == pytest.approx(recalls(found, rule), abs=1e-9)


def test_expected_rule_is_the_average_over_every_order():
    owner, text = np.array([0, 0, 1, 2]), np.arange(4)
    scores = np.array([[1, 1, 1, 2], [1, 1, 1, 1], [0, 0, 0, 0]])
    orders = list(itertools.permutations(range(4)))
    chance = dict.fromkeys((1, 2, 3), 0.0)
    for image, order in itertools.product(range(3), orders):
        line = sorted(order, key=lambda c: -scores[image, c])
        best = min(place for place, c in enumerate(line) if owner[c] == image)
        for k in chance:
            chance[k] += 100 * (best < k) / (3 * len(orders))
    found = recalls(rank_scores(scores, owner, text), "expected", ks=(1, 2, 3))
    assert [found[f"i2t_r{k}"] for k in chance] == pytest.approx(list(chance.values()))


OWNER = np.arange(200) // 5


def test_golden_matrix_without_ties():
    image, caption = np.arange(40)[:, None], np.arange(200)[None]
    scores = ((image + 3) * 7919 + (caption + 1) * 104729 * (image + 1) + 31 * caption**2) % 1000003
    scores += 400000 * (caption // 5 == image)
    found = rank_scores(scores, OWNER, np.arange(200), chunk=7)
    assert list(recalls(found)) == [*RECALLS, "mR"]
    for rule in RULES:
        assert [*recalls(found, rule).values()] == pytest.approx([87.5, 87.5, 90.0, 42.5, 55.0, 68.0, 71.75], abs=1e-12)


def test_golden_constant_matrix():
    found = rank_scores([np.zeros((25, 200)), np.zeros((15, 200))], OWNER, np.arange(200))
    assert [*recalls(found).values()][:6] == [2.5, 2.5, 5.0, 2.5, 12.5, 25.0]
    assert {*recalls(found, "optimistic").values()} == {100.0}
    assert {*recalls(found, "pessimistic").values()} == {0.0}
    expected = recalls(found, "expected")
    i2t = [100 * (1 - math.comb(195, k) / math.comb(200, k)) for k in KS]
    assert [expected[key] for key in RECALLS] == pytest.approx([*i2t, 2.5, 12.5, 25.0])


def test_collapsed_encoder_is_not_rewarded():
    """All embeddings equal: last-bit noise of the product must not lift the right pair above its equals."""
    draw = torch.Generator().manual_seed(3)
    images, texts = torch.randn(1, 37, generator=draw), torch.randn(1, 37, generator=draw)
    for chunk in (1, 16, 40):
        table = recalls(rank_all(images.expand(40, -1), texts.expand(200, -1), OWNER, np.arange(200), chunk=chunk))
        assert table["t2i_r1"] < 20 and table["i2t_r1"] < 20


def precision_settings():
    matmuls = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    return [torch.get_float32_matmul_precision(), *(getattr(m, "fp32_precision", None) for m in matmuls)]


def test_training_precision_does_not_leak_into_the_ranks():
    draw = torch.Generator().manual_seed(0)
    images, texts = torch.randn(40, 64, generator=draw), torch.randn(200, 64, generator=draw)
    exact = torch.nn.functional.normalize(images.double()) @ torch.nn.functional.normalize(texts.double()).T
    expected = rank_scores(exact, OWNER, np.arange(200))
    same(rank_all(images, texts, OWNER, np.arange(200)), expected)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        changed = precision_settings()
        with torch.autocast("cpu", torch.bfloat16):
            assert (images @ texts.T).dtype == torch.bfloat16  # the setting would bite
            same(rank_all(images, texts, OWNER, np.arange(200)), expected)
            assert (images @ texts.T).dtype == torch.bfloat16
        with ranks._plain_fp32(torch.device("cpu")):  # TF32 moves ranks on a GPU only, so the switch itself is read
            assert set(precision_settings()[1:]) == {"ieee"} or precision_settings()[:1] == ["highest"]
        assert precision_settings() == changed  # training goes on as it was
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_ranked_in_fp32(dtype):
    draw = torch.Generator().manual_seed(1)
    images, texts = (torch.randn(size, 64, generator=draw).to(dtype) for size in (40, 200))
    same(
        rank_all(images, texts, OWNER, np.arange(200)),
        rank_all(images.float(), texts.float(), OWNER, np.arange(200)),
    )


def test_chunk_must_be_positive():
    with pytest.raises(ValueError, match="chunk is 0"):
        rank_all(**GOOD, chunk=0)


def test_pruned_pairs_rank_last_and_tie():
    scores = np.full((2, 3), -np.inf)
    scores[0, 0] = 1.0
    found = rank_scores(scores, [0, 1, 1], [0, 1, 2])
    assert found.i2t_index.tolist() == [0, 1] and found.i2t_tied.tolist() == [0, 1]
    assert found.t2i_index.tolist() == [0, 1, 1] and found.i2t_positives.tolist() == [1, 2]


@examples
@given(problems(), st.sampled_from(RULES))
def test_contributions_of_images_give_the_recalls_and_resample(problem, rule):
    scores, owner, text = problem
    found = rank_scores(scores, owner, text, columns="strings")
    parts = per_image(found, rule)
    assert parts.shape == (len(scores), 7) and parts[:, 6].tolist() == np.bincount(owner).tolist()
    weights = np.vstack([np.ones(len(scores)), 2 * np.ones(len(scores))])
    for row, images in zip(weights @ parts, weights.sum(1), strict=True):
        assert recalls_from_sums(row, images) == pytest.approx([*recalls(found, rule).values()])
    assert recalls_from_sums(weights @ parts, len(scores)).shape == (2, 7)


GOOD = {"image_emb": torch.eye(3), "text_emb": torch.eye(3), "owner": [0, 1, 2, 2], "text_ids": [0, 1, 2, 0]}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image_emb": torch.diag(torch.tensor([1.0, torch.nan, 1.0]))}, "image embedding 1 has norm nan"),
        ({"text_emb": torch.diag(torch.tensor([1.0, 1.0, torch.inf]))}, "text embedding 2 has norm inf"),
        ({"text_emb": torch.diag(torch.tensor([1.0, 1.0, 0.0]))}, r"text embedding 2 has norm 0.0 \(1 such of 3\)"),
        ({"text_emb": torch.eye(4, 3)}, "4 rows, but text_ids name 3 distinct strings"),
        ({"text_emb": torch.eye(3, 4)}, "expected"),
        ({"owner": [0, 1, 1, 0]}, "image 2 owns no caption"),
        ({"owner": [0, 1, 2, 3]}, "owner of caption 3 is 3, but there are 3 images"),
        ({"owner": [0, 1, 2]}, "owner names 3 captions, text_ids 4"),
        ({"owner": [0.0, 1.0, 2.0, 2.0]}, "owner is float64"),
        ({"text_ids": [0, 3, 2, 0]}, "no caption has text id 1"),
    ],
)
def test_bad_embeddings_are_refused(change, complaint):
    rank_all(**GOOD)
    with pytest.raises(ValueError, match=complaint):
        rank_all(**{**GOOD, **change})


def test_bad_scores_are_refused():
    owner, text = [0, 1, 2, 2], [0, 1, 2, 0]
    scores = np.zeros((3, 4))
    scores[1, 3] = 1
    with pytest.raises(ValueError, match="image 1: captions 0 and 3 have the same string but different scores"):
        rank_scores(scores, owner, text, chunk=1)
    scores[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 NaN, the first at image, column \(2, 1\)"):
        rank_scores(scores, owner, text)
    with pytest.raises(ValueError, match=r"expected \(3, 3\)"):
        rank_scores(scores, owner, text, columns="strings")
    with pytest.raises(ValueError, match="unknown tie rule 'best'"):
        recalls(rank_all(**GOOD), "best")
    with pytest.raises(ValueError, match="cut-offs"):
        recalls(rank_all(**GOOD), ks=(0, 1))


@examples
@given(problems(most_images=4))
def test_ceiling_is_the_best_of_all_orders(problem):
    _, owner, text = problem
    best = ceiling(owner, text, ks=(1, 2))
    orders = list(itertools.permutations(range(owner.max() + 1)))
    for k in (1, 2):
        hits = 0
        for string in range(text.max() + 1):
            hits += max(np.isin(owner[text == string], order[:k]).sum() for order in orders)
        assert best[f"t2i_r{k}"] == pytest.approx(100 * hits / len(owner))


def test_class_oracle_is_the_average_over_every_order():
    owner, labels = np.array([0, 0, 1, 2, 2, 3]), ["sea", "sea", "sea", "port"]
    found = class_oracle(owner, labels, ks=(1, 2, 3))
    orders = list(itertools.permutations([j for j in range(6) if owner[j] < 3]))
    for k in (1, 2, 3):
        hits = sum(any(owner[j] == i for j in order[:k]) for order in orders for i in range(3)) / len(orders)
        assert found[f"i2t_r{k}"] == pytest.approx(100 * (hits + 1) / 4)
        assert found[f"t2i_r{k}"] == pytest.approx(100 * (5 * k / 3 + 1) / 6)
    assert found["mR"] == pytest.approx(np.mean([*found.values()][:6]))
    with pytest.raises(ValueError, match="image 3, but only 2 images have a label"):
        class_oracle(owner, [0, 1])


PUBLISHED = {  # measured on the shipped files: text-to-image ceilings; class-only recalls and their mean
    "rsicd": ([93.12, 99.19, 99.78], [2.84, 13.52, 25.46, 2.84, 14.18, 28.36, 14.53]),
    "rsitmd": ([99.87, 100.0, 100.0], [7.08, 29.89, 51.37, 7.08, 33.63, 65.49, 32.42]),
    "ucm": ([38.29, 84.76, 100.0], [10.0, 42.34, 68.94, 10.0, 50.0, 100.0, 46.88]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_reference_rows_of_the_real_test_splits(name):
    folder = shared_path("data", "annotations", "precomp", f"{name}_precomp")
    captions = (folder / "test_caps.txt").read_text(encoding="utf-8").splitlines()
    stems = [line.split(".")[0] for line in (folder / "test_filename.txt").read_text().splitlines()[::5]]
    if name == "ucm":
        labels = [(int(stem) - 1) // 100 for stem in stems]
    else:
        labels = ["unnamed" if stem.isdigit() else stem.split("_")[0] for stem in stems]
    owner = np.arange(len(captions)) // 5
    best, oracle = PUBLISHED[name]
    assert [round(value, 2) for value in ceiling(owner, ids(captions)).values()] == best
    assert [round(value, 2) for value in class_oracle(owner, labels).values()] == oracle


def test_metrics_need_neither_torch_nor_ray():
    code = "import sys, petlbench.harness.metrics; print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_definition_is_written_down():
    assert metrics.METRIC_VERSION == 1
    assert all(f"`{rule}`" in metrics.DEFINITION for rule in RULES)
