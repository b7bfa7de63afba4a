"""Recall per group of queries, from stored ranks alone: by scene class, by length of captions, by number of duplicates.

Two things make groups harder to read than whole splits. Some are small, so every recall has its number of queries and a
Wilson interval. And captions of one picture stand and fall together, so intervals count pictures, not captions, in both
directions; that is the cautious side. With several seeds, hits are averaged over them first: the interval says how far a
recall depends on the pictures drawn, for the seeds that were trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petlbench.datasets.split import class_name
from petlbench.harness.metrics import KS, Ranks, hits
from petlbench.leaderboard.load import METRICS

By = Literal["class", "length", "duplicates"]
RULES = ("index", "optimistic", "pessimistic", "duplicate_aware")
"""Tie rules under which a query hits or misses."""

Z = 1.959963984540054
"""Of a 95 % interval."""

UNKNOWN = "(no class)"
COPIES = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, None))
"""Numbers of pictures that own a caption's string, by group."""


@dataclass(frozen=True)
class Cell:
    """A recall of a group.

    Attributes:
        value: Percent.
        low: Lower end of the 95 % Wilson interval, percent.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Part:
    """A group of queries.

    Attributes:
        name: Of the group.
        images: Image-to-text queries in it.
        captions: Text-to-image queries in it.
        owners: Pictures of these captions.
        cells: Recalls by name, and mR; a direction without queries has none.
    """

    name: str
    images: int
    captions: int
    owners: int
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Grouping:
    """A group per query.

    Attributes:
        names: Of the groups, in the order in which they are shown.
        images: (N,) group of each picture.
        captions: (M,) group of each caption.
        said: What the groups are, one sentence.
    """

    names: tuple[str, ...]
    images: NDArray[np.int64]
    captions: NDArray[np.int64]
    said: str


def by_class(owner: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> Grouping:
    """Pictures by scene class, and captions by the class of their picture.

    Args:
        owner: (M,) picture of each caption.
        labels: (N,) class of each picture, -1 where unknown.
        classes: Names.
    """
    owner, labels = np.asarray(owner), np.asarray(labels)
    known = np.where(labels < 0, np.iinfo(np.int64).max, labels)  # unknown ones come last
    present, images = np.unique(known, return_inverse=True)
    unknown = bool((labels < 0).any())
    names = (*(class_name(classes, c) for c in present[: len(present) - unknown].tolist()), *[UNKNOWN] * unknown)
    return Grouping(names, images, images[owner], "Pictures by scene class, captions by the class of their picture.")


def by_length(owner: ArrayLike, captions: Sequence[str]) -> Grouping:
    """Captions by quartile of their number of words; pictures by quartile of the mean over their own captions.

    Equal numbers stay together, so groups need not be equally large, and there may be fewer than four.

    Args:
        owner: (M,) picture of each caption.
        captions: M strings.
    """
    owner = np.asarray(owner)
    words = np.array([len(caption.split()) for caption in captions], dtype=np.float64)
    counts = np.bincount(owner)
    means = np.bincount(owner, weights=words) / np.maximum(counts, 1)
    edges = np.unique(np.quantile(words, (0.25, 0.5, 0.75), method="inverted_cdf"))
    of_captions = np.searchsorted(edges, words, side="left")
    image_edges = np.unique(np.quantile(means, (0.25, 0.5, 0.75), method="inverted_cdf"))
    of_images = np.searchsorted(image_edges, means, side="left")
    size = max(len(edges), len(image_edges)) + 1
    names = tuple(
        f"{place + 1}: {_spread(words[of_captions == place])}, pictures {_spread(means[of_images == place])}"
        for place in range(size)
    )
    said = "Quartiles, from few words to many: captions by their number of words, pictures by the mean over their own captions."
    return Grouping(names, of_images.astype(np.int64), of_captions.astype(np.int64), said)


def by_duplicates(owner: ArrayLike, text_ids: ArrayLike) -> Grouping:
    """Captions by how many pictures own their string; pictures by that of their most distinctive caption.

    Args:
        owner: (M,) picture of each caption.
        text_ids: (M,) distinct string of each caption.
    """
    owner, text_ids = np.asarray(owner), np.asarray(text_ids)
    pairs = np.unique(np.column_stack([text_ids, owner]), axis=0)
    owners = np.bincount(pairs[:, 0])[text_ids]
    rarest = np.full(int(owner.max()) + 1, owners.max())
    np.minimum.at(rarest, owner, owners)
    bounds = np.array([low for low, _ in COPIES])
    of_captions, of_images = (np.searchsorted(bounds, counted, side="right") - 1 for counted in (owners, rarest))
    used = np.union1d(of_captions, of_images)
    said = (
        "Captions by the number of pictures that own the same string (above 1, a strict hit is partly luck), pictures by that "
        "of their most distinctive caption."
    )
    names = tuple(_named(*COPIES[group]) for group in used)
    return Grouping(names, np.searchsorted(used, of_images), np.searchsorted(used, of_captions), said)


def break_down(ranks: Sequence[Ranks], grouping: Grouping, rule: str = "index") -> list[Part]:
    """Recalls per group, averaged over the seeds of a method, and over all queries as the last part, ``all``.

    Args:
        ranks: Of the seeds, on one split.
        grouping: Of that split.
        rule: One of :data:`RULES`.

    Raises:
        ValueError: Unknown rule, no ranks, or ranks of another split than the grouping.
    """
    if rule not in RULES:
        raise ValueError(f"tie rule {rule!r}: a query must hit or miss; choose one of {', '.join(RULES)}")
    if not ranks:
        raise ValueError("no ranks to break down")
    for one in ranks:
        if (one.images, one.captions) != (len(grouping.images), len(grouping.captions)):
            raise ValueError(f"ranks of {one.images} pictures and {one.captions} captions do not fit the grouping")
    owner = ranks[0].owner
    image_hits, caption_hits = (np.mean([hits(one, way, rule) for one in ranks], axis=0) for way in ("i2t", "t2i"))
    parts = []
    for number, name in [*enumerate(grouping.names), (None, "all")]:
        images = np.full(len(grouping.images), True) if number is None else grouping.images == number
        captions = np.full(len(grouping.captions), True) if number is None else grouping.captions == number
        parts.append(_part(name, image_hits[:, images], caption_hits[:, captions], len(np.unique(owner[captions]))))
    return parts


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927), which stays within 0 and 1 and has a width at 0 and 1 too.

    ``(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``

    Args:
        share: p, 0 to 1; a mean of values between 0 and 1 is taken for a proportion, which can only widen the interval.
        n: Independent observations, at least 1.

    Raises:
        ValueError: No observations, or no share.
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"an interval needs at least one observation and a share from 0 to 1, not {n} and {share}")
    centre = share + Z * Z / (2 * n)
    half = Z * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max(0.0, float((centre - half) / scale)), min(1.0, float((centre + half) / scale))


def confusion(ranks: Sequence[Ranks], labels: ArrayLike, way: Literal["i2t", "t2i"]) -> NDArray[np.float64]:
    """(C, C) how often a query of one class (row) gets a first answer of another (column), mean over the seeds.

    Args:
        ranks: Of the seeds, with first answers.
        labels: (N,) class of each picture; pictures of unknown class (-1) are left out, as queries and as answers.
        way: ``i2t``: the answer is a caption, whose class is that of its picture.

    Raises:
        ValueError: The ranks hold no first answers.
    """
    labels = np.asarray(labels)
    size = int(labels.max(initial=-1)) + 1
    matrices = []
    for one in ranks:
        top = one.i2t_top if way == "i2t" else one.t2i_top
        if top is None:
            raise ValueError("these ranks hold no first answers")
        asked, said = (labels, labels[one.owner[top[:, 0]]]) if way == "i2t" else (labels[one.owner], labels[top[:, 0]])
        known = (asked >= 0) & (said >= 0)
        cells = np.bincount(asked[known] * size + said[known], minlength=size * size)
        matrices.append(cells.reshape(size, size))
    return np.mean(matrices, axis=0)


def _part(name: str, images: NDArray[np.float64], captions: NDArray[np.float64], owners: int) -> Part:
    cells: dict[str, Cell] = {}
    for way, found, n in (("i2t", images, images.shape[1]), ("t2i", captions, owners)):
        if n:
            cells |= {f"{way}_r{k}": _cell(float(row.mean()), n) for k, row in zip(KS, found, strict=True)}
    if len(cells) == len(METRICS) - 1:
        cells["mR"] = _cell(float(np.mean([cell.value for cell in cells.values()])) / 100, min(images.shape[1], owners))
    return Part(name, images.shape[1], captions.shape[1], owners, cells)


def _cell(share: float, n: int) -> Cell:
    low, high = wilson(min(share, 1.0), n)
    return Cell(100 * share, 100 * low, 100 * high)


def _spread(values: NDArray[np.float64]) -> str:
    if not len(values):
        return "none"
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return f"{low} words" if low == high else f"{low} to {high} words"


def _named(low: int, high: int | None) -> str:
    if high is None:
        return f"{low} or more pictures"
    return f"{low} picture{'s' * (low > 1)}" if low == high else f"{low} to {high} pictures"
