"""Which queries a gallery shows: named ones, those that two methods answer most differently, the worst, or some at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from petlbench.errors import PetlbenchError

Way = Literal["i2t", "t2i"]
WAYS: tuple[Way, ...] = ("i2t", "t2i")
"""Image to text, text to image."""

NOUNS = {"i2t": "picture", "t2i": "caption"}


class GalleryError(PetlbenchError):
    """A gallery was asked for that cannot be made."""


@dataclass(frozen=True)
class Choice:
    """How queries are chosen.

    Attributes:
        rule: ``query`` by number, ``most_different``, ``failures`` or ``random``.
        numbers: Of ``query``: places in the split, counted from 0.
        count: Of the others: how many per direction.
        seed: Of ``random``.
    """

    rule: Literal["query", "most_different", "failures", "random"]
    numbers: tuple[int, ...] = ()
    count: int = 8
    seed: int = 0


def choose(
    choice: Choice, way: Way, first: NDArray[np.int32], second: NDArray[np.int32] | None, same: Sequence[int]
) -> list[int]:
    """Places of the chosen queries in the split.

    Args:
        choice: The rule.
        way: Direction, for messages.
        first: (Q,) ranks of the right answer by one method, from 0.
        second: (Q,) by the other; None where there is none.
        same: (Q,) an id per query; of queries with the same id, such as equal captions, at most one is chosen. Queries
            by number are all shown.

    Raises:
        GalleryError: A number outside the split, or nothing to choose.
    """
    queries = len(first)
    if choice.rule == "query":
        for number in choice.numbers:
            if not 0 <= number < queries:
                raise GalleryError(
                    f"--query {number}: the split has {queries} {NOUNS[way]}s, numbered from 0 to {queries - 1}"
                )
        return list(dict.fromkeys(choice.numbers))
    if choice.count < 1:
        raise GalleryError(f"--{choice.rule.replace('_', '-')} {choice.count}: give a number from 1 up")
    if choice.rule == "random":
        order = np.random.default_rng(choice.seed).permutation(queries)
        return sorted(_without_twins(order, same)[: choice.count])
    if choice.rule == "failures":
        nearest = first if second is None else np.minimum(first, second)
        both = first.astype(np.int64) + (0 if second is None else second)
        order = np.lexsort((-both, -nearest))  # stable: of equally bad queries the first of the split
        return [place for place in _without_twins(order, same) if nearest[place] > 0][: choice.count]
    if second is None:
        raise GalleryError("--most-different compares two methods; give two records")
    return _most_different(choice.count, difference(first, second), same)


def difference(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.float64]:
    """(Q,) how much better the first method answers: ``ln((rank of the second + 1) / (rank of the first + 1))``."""
    return np.log1p(second.astype(np.float64)) - np.log1p(first.astype(np.float64))


def _most_different(count: int, by: NDArray[np.float64], same: Sequence[int]) -> list[int]:
    """Half of them in favour of either method; where one has fewer, the other fills up."""
    order = _without_twins(np.argsort(-np.abs(by), kind="stable"), same)
    ours = [place for place in order if by[place] > 0]
    theirs = [place for place in order if by[place] < 0]
    half = max((count + 1) // 2, count - len(theirs))
    ours = ours[:half]
    return [*ours, *theirs[: count - len(ours)]]


def _without_twins(order: NDArray[np.int64], same: Sequence[int]) -> list[int]:
    """The places in this order, the first of every id only."""
    seen: set[int] = set()
    kept = []
    for place in order.tolist():
        if same[place] not in seen:
            seen.add(same[place])
            kept.append(place)
    return kept
