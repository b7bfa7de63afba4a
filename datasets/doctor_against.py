"""The doctor compares a set with another one: pictures and captions that are in both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from petlbench.datasets.doctor_captions import Said
from petlbench.datasets.doctor_pictures import Looks, how_near, prints_of
from petlbench.datasets.findings import Finding, Item, Severity, count, finding
from petlbench.datasets.near_captions import normal
from petlbench.datasets.perceptual import near_pairs
from petlbench.datasets.readers.common import few
from petlbench.datasets.split import Split
from petlbench.datasets.splits import captions_of


@dataclass(frozen=True, eq=False)
class Against:
    """Another set to compare with.

    Attributes:
        name: Its name.
        splits: Its splits.
        looks: Its pictures; empty where there are none at hand. Those that cannot be used are passed over.
    """

    name: str
    splits: Mapping[str, Split]
    looks: Looks


def against_findings(splits: Mapping[str, Split], looks: Looks, other: Against) -> Iterator[Finding]:
    """What a set shares with another one.

    Pictures are compared by pixels and perceptual hash, captions without case and punctuation. Of captions, all those of a
    picture must be those of one other picture: one sentence fits many pictures, so pictures with a single distinct caption
    are passed over.
    """
    yield from _pictures(looks, other)
    for split in splits.values():
        for theirs in other.splits.values():
            yield from _all_captions(split, theirs, other.name)
            yield from _some_captions(split, theirs, other.name)


def _pictures(looks: Looks, other: Against) -> Iterator[Finding]:
    places, prints = prints_of(looks)
    their_places, theirs = prints_of(other.looks)
    pairs: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for near in near_pairs(prints, theirs):
        (split, name), twin = places[near.first], their_places[near.second]
        told = how_near(near, looks[split, name], other.looks[twin])
        item = Item(split=split, picture=name, twin=f"{other.name}:{twin[0]}/{twin[1]}", told=told)
        pairs[split, twin[0]].append(item)
    for (split, their_split), items in pairs.items():
        number = count(len({item.picture for item in items}), "picture")
        message = f"{number} in {their_split} of {other.name} too: {_shown(items)}"
        severity, advice = _across(split, their_split)
        yield finding("D024", split, message, advice, items, severity)


def _all_captions(split: Split, theirs: Split, other: str) -> Iterator[Finding]:
    sets: dict[frozenset[str], str] = {}
    for image, texts in zip(theirs.images, captions_of(theirs), strict=True):
        sets.setdefault(frozenset(map(normal, texts)), image.name)
    items = []
    for image, texts in zip(split.images, captions_of(split), strict=True):
        own = frozenset(map(normal, texts))
        if len(own) > 1 and own in sets:
            items.append(Item(split=split.name, picture=image.name, twin=f"{other}:{theirs.name}/{sets[own]}"))
    if items:
        number = count(len(items), "picture")
        message = f"{number} with all captions of one in {theirs.name} of {other}: {_shown(items)}"
        severity, advice = _across(split.name, theirs.name)
        yield finding("D025", split.name, message, advice, items, severity)


def _some_captions(split: Split, theirs: Split, other: str) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for owner, text in zip(theirs.owner.tolist(), theirs.captions, strict=True):
        if form := normal(text):
            first.setdefault(form, theirs.images[owner].name)
    forms = {text: normal(text) for text in split.distinct}
    hit = np.array([forms[text] in first for text in split.distinct], dtype=bool)[split.text_ids]
    if not hit.any():
        return
    pictures = count(len(np.unique(split.owner[hit])), "picture")
    message = (
        f"{hit.mean():.1%} of the captions, of {pictures} of {len(split.images):,}, occur in {theirs.name} of {other}"
    )
    items = [
        item.model_copy(update={"twin": f"{other}:{theirs.name}/{first[forms[item.text or '']]}"})
        for item in Said(split).items(lambda text: forms[text] in first)
    ]
    yield finding("D027", split.name, message, "It matters where both sets are used together.", items)


def _across(split: str, their_split: str) -> tuple[Severity, str]:
    """How bad it is that a split shares pictures with one of another set, and what to do."""
    if (split == "train") != (their_split == "train"):
        return "warning", "Do not train on one and test on the other before they are left out."
    return "note", "It matters where both sets are used together."


def _shown(items: list[Item]) -> str:
    return few([f"{item.picture} = {(item.twin or '').split('/', 1)[1]}" for item in items])
