"""Recall@K of image-text retrieval from ranks: tie rules, mR, and the reference rows (ceiling, class oracle).

Needs numpy only, so that a leaderboard can be made where torch and ray are absent. The ranks themselves come from
:mod:`petlbench.harness.ranks`.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

METRIC_VERSION = 1
"""Raised whenever a change could move a number; records of different versions are not ranked together."""

KS = (1, 5, 10)
TOP = 10
"""First answers of a query that are kept with the ranks of a test split."""
_OPTIONAL = ("i2t_top", "t2i_top")
RULES = ("index", "optimistic", "pessimistic", "expected", "duplicate_aware")

DEFINITION = (
    "Scores are fp32 dot products of L2-normalised embeddings (or the scores of a cross encoder); every distinct "
    "caption string is scored once, so equal strings tie exactly. Ranks count from 0. Image-to-text: the rank of an "
    "image is the best rank among its own captions, over all captions of the split; R@K is the share of images with "
    "rank < K. Text-to-image: the rank of a caption is that of the one image it was written for, over all images; "
    "R@K is the share of captions with rank < K. Only the exact image-caption pair counts: the same string under "
    "another image is a miss. Ties are ordered by the `index` rule, lower index in the split first. mR is the mean of "
    "the recalls over both directions and all K. All in percent, unrounded. Other tie rules: `optimistic` ranks the "
    "positive before everything it ties with, `pessimistic` after it, `expected` averages over every order of the tied "
    "items. `duplicate_aware` also accepts a caption whose string is one of the image's own, and any image that "
    "owns the string (index rule)."
)


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where the right answers landed, for N images and M captions, with what every tie rule needs.

    All arrays are int32 and count from 0. ``greater`` is the number of candidates scored strictly higher than the
    best positive, so the optimistic rank; ``greater + tied`` is the pessimistic one.

    Attributes:
        owner: (M,) image of each caption.
        i2t_greater: (N,) captions scored higher than the image's best own caption.
        i2t_tied: (N,) captions of other images that tie with that best score.
        i2t_positives: (N,) own captions at that best score, at least 1.
        i2t_index: (N,) best rank of an own caption in the stable descending order.
        i2t_duplicate: (N,) as ``i2t_index``, accepting any caption whose string is one of the image's own.
        t2i_greater: (M,) images scored higher than the caption's owner.
        t2i_tied: (M,) other images that tie with the owner.
        t2i_index: (M,) rank of the owner in the stable descending order.
        t2i_duplicate: (M,) as ``t2i_index``, accepting any image that owns the caption's string.
        i2t_top: (N, K) the first K captions of each image in the stable descending order; None where they were not kept.
        t2i_top: (M, K) the first K images of each caption in that order; None likewise.

    Raises:
        ValueError: The arrays contradict each other; the message names the array and the first bad row.
    """

    owner: NDArray[np.int32]
    i2t_greater: NDArray[np.int32]
    i2t_tied: NDArray[np.int32]
    i2t_positives: NDArray[np.int32]
    i2t_index: NDArray[np.int32]
    i2t_duplicate: NDArray[np.int32]
    t2i_greater: NDArray[np.int32]
    t2i_tied: NDArray[np.int32]
    t2i_index: NDArray[np.int32]
    t2i_duplicate: NDArray[np.int32]
    i2t_top: NDArray[np.int32] | None = None
    t2i_top: NDArray[np.int32] | None = None

    def __post_init__(self):
        for item in fields(self):
            if item.name in _OPTIONAL:
                continue
            array = getattr(self, item.name)
            rows = self.captions if item.name == "owner" or item.name.startswith("t2i") else self.images
            if array.dtype != np.int32 or array.shape != (rows,):
                raise ValueError(f"ranks: {item.name} is {array.dtype}{array.shape}, expected int32{(rows,)}")
            _require(item.name, array >= 0, "is negative")
        _require("owner", self.owner < self.images, f"lies outside the {self.images} images")
        _require("i2t_positives", self.i2t_positives > 0, "is 0, but one own caption always has the best own score")
        for way, total in (("i2t", self.captions), ("t2i", self.images)):
            greater, tied, index = (getattr(self, f"{way}_{part}") for part in ("greater", "tied", "index"))
            _require(f"{way}_greater", greater + tied < total, f"+ {way}_tied leaves no room among {total} candidates")
            _require(f"{way}_index", (greater <= index) & (index <= greater + tied), "lies outside its tied block")
            _require(f"{way}_duplicate", getattr(self, f"{way}_duplicate") <= index, f"is worse than {way}_index")
        self._check_top("i2t", self.images, self.captions)
        self._check_top("t2i", self.captions, self.images)

    def _check_top(self, way: str, queries: int, candidates: int) -> None:
        """The first answers are different candidates, and the right one stands where its rank says."""
        name, top = f"{way}_top", getattr(self, f"{way}_top")
        if top is None:
            return
        if top.dtype != np.int32 or top.ndim != 2 or len(top) != queries or not 0 < top.shape[1] <= candidates:
            expected = f"int32({queries}, K) with K from 1 to {candidates}"
            raise ValueError(f"ranks: {name} is {top.dtype}{top.shape}, expected {expected}")
        _require(name, ((top >= 0) & (top < candidates)).all(1), f"names something outside the {candidates} candidates")
        _require(name, np.asarray((np.diff(np.sort(top, axis=1)) > 0).all(1)), "names a candidate twice")
        right = self.owner[top] == np.arange(queries)[:, None] if way == "i2t" else top == self.owner[:, None]
        found = np.where(right.any(1), right.argmax(1), top.shape[1])
        index = np.minimum(getattr(self, f"{way}_index"), top.shape[1])
        _require(name, found == index, f"does not hold the right answer where {way}_index says")

    @property
    def images(self) -> int:
        """N."""
        return len(self.i2t_greater)

    @property
    def captions(self) -> int:
        """M."""
        return len(self.owner)

    def save(self, path: str | Path) -> None:
        """Write a compressed ``.npz`` (plain arrays, no pickle) to exactly ``path``, atomically.

        Raises:
            DiskFull: There is no room; an older file stands.
        """
        from petlbench.harness.disk import room_for
        from petlbench.harness.json_files import write_atomically

        held: dict[str, NDArray | None] = {item.name: getattr(self, item.name) for item in fields(self)}
        arrays = {name: array for name, array in held.items() if array is not None}
        stream = io.BytesIO()  # numpy would add a suffix to a name
        np.savez_compressed(stream, metric_version=np.int32(METRIC_VERSION), **arrays)  # type: ignore[arg-type]
        path, payload = Path(path), stream.getvalue()
        with room_for("the ranks", path.parent, len(payload)):
            write_atomically(path, payload)

    @classmethod
    def load(cls, path: str | Path) -> Ranks:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a ranks file, another metric version, or inconsistent arrays; the message names the file.
        """
        wanted = {item.name for item in fields(cls)} - set(_OPTIONAL)
        try:
            if not zipfile.is_zipfile(path := Path(path).resolve(strict=True)):
                raise ValueError("not an .npz archive")
            with np.load(path, allow_pickle=False) as stored:
                missing = sorted((wanted | {"metric_version"}) - set(stored.files))
                if missing:
                    raise ValueError(f"found no {', '.join(missing)}")
                if (version := int(stored["metric_version"])) != METRIC_VERSION:
                    raise ValueError(f"metric version {version}, expected {METRIC_VERSION}")
                return cls(**{name: stored[name] for name in (*wanted, *_OPTIONAL) if name in stored.files})
        except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # of zipfile: odd flags
            raise ValueError(
                f"{path}: not a usable ranks file ({error}). Delete it and run the trial again to rewrite it."
            ) from error


def recalls(ranks: Ranks, rule: str = "index", ks: Sequence[int] = KS) -> dict[str, float]:
    """Recall@K in both directions and their mean, in percent and unrounded.

    Args:
        ranks: Ranks of one evaluation.
        rule: One of :data:`RULES`; see :data:`DEFINITION`.
        ks: The cut-offs.

    Returns:
        ``i2t_r1, i2t_r5, ..., t2i_r1, ..., mR`` in this order.

    Raises:
        ValueError: Unknown rule or a cut-off below 1.
    """
    sums = per_image(ranks, rule, ks).sum(axis=0)
    return dict(zip(_names(ks), recalls_from_sums(sums, ranks.images).tolist(), strict=True))


def per_image(ranks: Ranks, rule: str = "index", ks: Sequence[int] = KS) -> NDArray[np.float64]:
    """What each image contributes to the recalls: the unit of the bootstrap (captions of one image move together).

    Args:
        ranks: Ranks of one evaluation.
        rule: One of :data:`RULES`.
        ks: The cut-offs, here L of them.

    Returns:
        (N, 2L+1): L image-to-text hits (0 or 1; a probability under ``expected``), L sums of text-to-image hits over
        the image's captions, and its number of captions. Feed sums of rows to :func:`recalls_from_sums`.

    Raises:
        ValueError: Unknown rule or a cut-off below 1.
    """
    if rule not in RULES:
        raise ValueError(f"unknown tie rule {rule!r}; choose one of {', '.join(RULES)}")
    _names(ks)  # checks the cut-offs
    i2t, t2i = (hits(ranks, way, rule, ks) for way in ("i2t", "t2i"))
    summed = [np.bincount(ranks.owner, weights=column, minlength=ranks.images) for column in t2i]
    return np.column_stack([*i2t, *summed, np.bincount(ranks.owner, minlength=ranks.images)])


def recalls_from_sums(sums: ArrayLike, images: int) -> NDArray[np.float64]:
    """Recalls from summed rows of :func:`per_image`; a whole bootstrap at once.

    Resampled counts ``weights`` (B, N) give ``recalls_from_sums(weights @ contributions, N)``.

    Args:
        sums: (..., 2L+1) sums over images.
        images: How many images (with repetition) went into each sum.

    Returns:
        (..., 2L+1) percent: L image-to-text recalls, L text-to-image recalls, mR.
    """
    sums = 100.0 * np.asarray(sums, dtype=np.float64)  # before the division, so that 110 of 200 is 55 to the last bit
    cutoffs = sums.shape[-1] // 2
    i2t = sums[..., :cutoffs] / images
    t2i = sums[..., cutoffs:-1] / (sums[..., -1:] / 100.0)
    both = np.concatenate([i2t, t2i], axis=-1)
    return np.concatenate([both, both.mean(axis=-1, keepdims=True)], axis=-1)


def ceiling(owner: ArrayLike, text_ids: ArrayLike, ks: Sequence[int] = KS) -> dict[str, float]:
    """The best text-to-image recall that exact-pair scoring allows on a split.

    A scorer sees a string, not which copy of it is asked: it orders the images once per distinct string. The best
    order lists the string's owners by how many copies they own, so of the copies only those of the first K owners hit.

    Args:
        owner: (M,) image of each caption.
        text_ids: (M,) id of each caption's string; equal strings, equal id.
        ks: The cut-offs.

    Returns:
        ``t2i_r1, ...`` in percent.
    """
    names = _names(ks)[len(ks) : -1]
    pairs, copies = np.unique(np.column_stack([text_ids, owner]), axis=0, return_counts=True)
    order = np.lexsort((-copies, pairs[:, 0]))
    text, copies = pairs[order, 0], copies[order]
    place = np.arange(len(text)) - np.searchsorted(text, text)  # place of the owner in its string's best order
    return {name: float(100.0 * copies[place < k].sum() / copies.sum()) for name, k in zip(names, ks, strict=True)}


def class_oracle(owner: ArrayLike, labels: ArrayLike, ks: Sequence[int] = KS) -> dict[str, float]:
    """Expected recalls of a scorer that knows the scene class of every image and caption, and nothing else.

    It lists the right class first, in random order. With c candidates in the class, p of them right, the chance of a
    hit among the first K is ``1 - C(c-p, K) / C(c, K)`` (hypergeometric); for text-to-image p = 1, so ``min(K/c, 1)``.

    Args:
        owner: (M,) image of each caption.
        labels: (N,) scene class of each image, numbers or names; pictures of unknown class (-1)
            count as one class of their own.
        ks: The cut-offs.

    Returns:
        The keys of :func:`recalls`, in percent.

    Raises:
        ValueError: A caption's owner has no label.
    """
    owner, (_, label) = np.asarray(owner), np.unique(np.asarray(labels), return_inverse=True)
    own = np.bincount(owner, minlength=len(label))
    if len(own) > len(label):
        raise ValueError(f"a caption belongs to image {len(own) - 1}, but only {len(label)} images have a label")
    rivals = np.bincount(label[owner])[label] - own  # captions of the other images of the class
    images = np.bincount(label)[label]
    none = np.zeros_like(own)
    i2t = [hit_probability(none, rivals, own, k) for k in ks]
    t2i = [own * hit_probability(none, images - 1, none + 1, k) for k in ks]
    sums = np.array([column.sum() for column in (*i2t, *t2i, own)])
    return dict(zip(_names(ks), recalls_from_sums(sums, len(label)).tolist(), strict=True))


def hit_probability(greater: NDArray, tied: NDArray, positives: NDArray, k: int) -> NDArray[np.float64]:
    """Chance that one of the tied positives ranks below ``k`` when ties fall in random order.

    ``1 - C(e, m) / C(e+p, m)`` with e tied negatives, p tied positives and ``m = clip(k - greater, 0, e+p)`` places
    left among the first k; the ratio is taken as the product of ``(e-j) / (e+p-j)`` over j < m.

    Args:
        greater: (Q,) candidates strictly better.
        tied: (Q,) e.
        positives: (Q,) p, at least 1.
        k: Cut-off.

    Returns:
        (Q,) probabilities.
    """
    negatives, places = tied.astype(np.float64), k - greater
    miss = np.ones(len(negatives))
    for drawn in range(min(k, int((tied + positives).max(initial=0)))):
        pool = np.maximum(negatives + positives - drawn, 1)  # 1: an empty pool has no negatives either, the miss is 0
        step = np.maximum(negatives - drawn, 0) / pool
        miss = np.where(drawn < places, miss * step, miss)
    return 1.0 - miss


def hits(ranks: Ranks, way: str, rule: str = "index", ks: Sequence[int] = KS) -> list[NDArray[np.float64]]:
    """Hits (0, 1 or a probability) of every query of one direction, one array per cut-off."""
    greater, tied = getattr(ranks, f"{way}_greater"), getattr(ranks, f"{way}_tied")
    if rule == "expected":
        positives = ranks.i2t_positives if way == "i2t" else np.ones_like(tied)
        return [hit_probability(greater, tied, positives, k) for k in ks]
    rank = {
        "index": getattr(ranks, f"{way}_index"),
        "optimistic": greater,
        "pessimistic": greater + tied,
        "duplicate_aware": getattr(ranks, f"{way}_duplicate"),
    }[rule]
    return [(rank < k).astype(np.float64) for k in ks]


def _names(ks: Sequence[int]) -> list[str]:
    if not ks or min(ks) < 1 or len(set(ks)) != len(ks):
        raise ValueError(f"cut-offs K are {tuple(ks)}, expected distinct whole numbers from 1 up, such as {KS}")
    return [f"{way}_r{k}" for way in ("i2t", "t2i") for k in ks] + ["mR"]


def _require(name: str, good: NDArray[np.bool_], complaint: str) -> None:
    if not good.all():
        raise ValueError(f"ranks: {name} {complaint} at row {int(np.argmin(good))}")
