"""Captions that are nearly equal: but for case and punctuation, or but for a fifth of their words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

SHARE = (4, 5)
"""Share, as a fraction, of the words of both together that near duplicates have in common (Jaccard index of the sets)."""

_TOGETHER = 3
_NO_WORD = re.compile(r"[\W_]+")


class NearCaptions(NamedTuple):
    """Two different strings that are nearly equal.

    Attributes:
        first: Index of a string.
        second: Index of another one, ``first < second``.
        how: ``form``: equal in :func:`normal` form; ``words``: at least :data:`SHARE` of their words are common.
    """

    first: int
    second: int
    how: Literal["form", "words"]


def normal(text: str) -> str:
    """A caption without case and punctuation, words separated by one space; compatible characters are one (NFKC)."""
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def near_captions(texts: Sequence[str]) -> list[NearCaptions]:
    """All pairs of nearly equal strings.

    Args:
        texts: Distinct strings.

    Returns:
        Sorted by index. Of strings that are equal in normal form, the first one stands for all of them in pairs with others.
    """
    forms: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        forms[normal(text)].append(index)
    forms.pop("", None)
    pairs = [NearCaptions(members[0], other, "form") for members in forms.values() for other in members[1:]]
    firsts = [members[0] for members in forms.values()]
    for one, two in _common_words([frozenset(form.split()) for form in forms]):
        first, second = sorted((firsts[one], firsts[two]))
        pairs.append(NearCaptions(first, second, "words"))
    return sorted(pairs)


def _common_words(sets: Sequence[frozenset[str]]) -> Iterator[tuple[int, int]]:
    """Sets that overlap by :data:`SHARE`, by prefix filtering.

    Sets of which so much is common have their three rarest common words among the rarest words of either, so only sets
    that agree in three of those are compared (Chaudhuri, Ganti, Kaushik: A primitive operator for similarity joins in data
    cleaning. ICDE 2006; with longer prefixes: Wang, Li, Feng: Can we beat the prefix filtering? SIGMOD 2012).
    """
    share, whole = SHARE
    often = Counter(word for one in sets for word in one)
    met: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, own in enumerate(sets):
        # Sets of one or two words are only near to equal ones, and agree in all of them.
        together = min(_TOGETHER, len(own))
        length = len(own) * (whole - share) // whole + together
        rarest = sorted(own, key=lambda word: (often[word], word))[:length]
        near: set[int] = set()
        for key in combinations(rarest, together):
            near.update(met[key])
            met[key].append(index)
        for other in sorted(near):
            common = len(own & sets[other])
            if whole * common >= share * (len(own) + len(sets[other]) - common):
                yield other, index
