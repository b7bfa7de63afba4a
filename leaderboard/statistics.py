"""Spread, intervals and tests. The unit is the image: captions of one image move together.

All functions are pure numpy and deterministic: random draws come from a fixed seed, and results are rounded to 1e-9 so
that the summation order of a machine's linear algebra cannot change a byte of a board.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petlbench.harness.metrics import recalls_from_sums

RESAMPLES = 2_000
FLIPS = 9_999
SEED = 20_240_501
EQUAL = 1e-9
"""Percentage points below which sums of image scores count as equal; real differences are larger than 1e-7."""
_DIGITS = 9
_BLOCK = 2**22  # random draws made at once (bounds memory at about 64 MiB)


def mean(values: Sequence[float]) -> float:
    """The mean alone, to the bit that of :func:`mean_sd`.

    Raises:
        ValueError: No values.
    """
    if not len(values):
        raise ValueError("mean of no values")
    return float(np.asarray(values, dtype=np.float64).mean())


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (divisor n - 1); the deviation of a single value is None.

    Raises:
        ValueError: No values.
    """
    if not len(values):
        raise ValueError("mean of no values")
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


@lru_cache(maxsize=1)  # tables of one data set follow each other
def resample_counts(images: int, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.float64]:
    """(B, N) how often each image occurs in each bootstrap sample; every row sums to N.

    The same counts serve every row of a table, so that intervals of different methods are paired; they are read-only.
    """
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, images))
    rows = max(1, _BLOCK // images)
    for start in range(0, resamples, rows):
        block = min(rows, resamples - start)
        drawn = rng.integers(images, size=(block, images)) + images * np.arange(block)[:, None]
        counts[start : start + block] = np.bincount(drawn.ravel(), minlength=block * images).reshape(block, images)
    counts.flags.writeable = False
    return counts


def bootstrap_mr(contributions: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mR of every bootstrap sample (Efron 1979), percent.

    Args:
        contributions: (R, N, C) rows of :func:`petlbench.harness.metrics.per_image`, for R methods.
        counts: (B, N) of :func:`resample_counts`.

    Returns:
        (B, R).
    """
    rows, images, columns = contributions.shape
    flat = contributions.transpose(1, 0, 2).reshape(images, rows * columns)
    sums = (counts @ flat).reshape(len(counts), rows, columns)
    return recalls_from_sums(sums, images)[..., -1]


def percentile_interval(samples: NDArray[np.float64], level: float = 0.95) -> NDArray[np.float64]:
    """(2, ...) lower and upper percentile bounds over the first axis."""
    tail = (1.0 - level) / 2.0
    return np.quantile(samples, [tail, 1.0 - tail], axis=0).round(_DIGITS)


def image_scores(contributions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each image's share of mR in percentage points; the sum over images is mR.

    With the number of captions fixed, mR is linear in the images, which is what makes a sign-flip test possible.

    Args:
        contributions: (..., N, 2L+1) rows of :func:`petlbench.harness.metrics.per_image`.

    Returns:
        (..., N).
    """
    cutoffs = contributions.shape[-1] // 2
    i2t = contributions[..., :cutoffs].sum(-1) / contributions.shape[-2]
    t2i = contributions[..., cutoffs:-1].sum(-1) / contributions[..., -1].sum(-1, keepdims=True)
    return 100.0 * (i2t + t2i) / (2 * cutoffs)


def sign_flip(differences: NDArray[np.float64], flips: int = FLIPS, seed: int = SEED) -> NDArray[np.float64]:
    """Two-sided paired sign-flip test of "the sum over images is zero" (Fisher's randomisation test).

    ``p = (1 + #{|sum of randomly signed differences| >= |sum of differences|}) / (1 + flips)``, which never is 0
    (Phipson and Smyth 2010). The same signs are used for every row.

    Args:
        differences: (R, N) per-image differences.
        flips: Random sign vectors.
        seed: Of the signs.

    Returns:
        (R,) p-values.
    """
    differences = np.asarray(differences, dtype=np.float64)
    rows, images = differences.shape
    if not rows:
        return np.empty(0)
    # Equal sums in exact arithmetic are common (few images differ); rounding noise must not break those ties.
    bound = np.abs(differences.sum(1)) - 1e-9 * np.abs(differences).sum(1)
    rng = np.random.default_rng(seed)
    reached = np.zeros(rows, dtype=np.int64)
    step = max(1, _BLOCK // images)
    for start in range(0, flips, step):
        signs = 2.0 * rng.integers(2, size=(min(step, flips - start), images), dtype=np.int8) - 1.0
        reached += (np.abs(signs @ differences.T) >= bound).sum(0)
    return ((1 + reached) / (1 + flips)).round(_DIGITS)


def sign_flip_pairs(scores: NDArray[np.float64], flips: int = FLIPS, seed: int = SEED) -> NDArray[np.float64]:
    """:func:`sign_flip` between all pairs of rows.

    A randomly signed sum of differences is the difference of two randomly signed sums, so each row is summed once per
    sign vector instead of once per pair.

    Args:
        scores: (R, N) of :func:`image_scores`.
        flips: Random sign vectors.
        seed: Of the signs.

    Returns:
        (R, R) p-values, symmetric, 1 on the diagonal.
    """
    scores = np.asarray(scores, dtype=np.float64)
    scores = scores[:, (scores != scores[:1]).any(0)]  # images on which all rows agree cancel in every pair
    rows, images = scores.shape
    if not images:
        return np.ones((rows, rows))
    totals = scores.sum(1, keepdims=True)
    bound = np.abs(totals - totals.T) - EQUAL
    rng = np.random.default_rng(seed)
    reached = np.zeros((rows, rows), dtype=np.int64)
    step = max(1, min(flips, _BLOCK // max(images, 64 * rows)))  # sums of a block should fit a processor's cache
    for start in range(0, flips, step):
        count = min(step, flips - start)
        bits = np.frombuffer(rng.bytes(images * -(-count // 8)), dtype=np.uint8).reshape(images, -1)
        signs = np.unpackbits(bits, axis=1, count=count).astype(np.float64)  # 0 or 1, made -1 or 1 below
        sums = 2.0 * (scores @ signs) - totals
        for i in range(rows - 1):
            reached[i, i + 1 :] += (np.abs(sums[i + 1 :] - sums[i]) >= bound[i, i + 1 :, None]).sum(1)
    reached += reached.T
    p_values = ((1 + reached) / (1 + flips)).round(_DIGITS)
    np.fill_diagonal(p_values, 1.0)
    return p_values


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's (1979) step-down adjustment: ``max over j <= i of min(1, (m - j + 1) p_(j))``, in the given order."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    return adjusted
