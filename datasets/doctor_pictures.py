"""The doctor looks at pictures: which cannot be used, and which show the same."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from petlbench.datasets.cache import processors
from petlbench.datasets.card import Card
from petlbench.datasets.findings import Finding, Item, count, finding
from petlbench.datasets.perceptual import NearPair, Prints, near_pairs, thumbnail
from petlbench.datasets.readers.common import few
from petlbench.datasets.report import BadPicture
from petlbench.datasets.split import SPLITS, DataError, ImageRef, Split

Place = tuple[str, str]
"""A picture: its split and its name."""


@dataclass(frozen=True, eq=False)
class Look:
    """What was seen of a picture that could be decoded.

    Attributes:
        pixels: Hash of size and pixels.
        thumbnail: (32, 32) uint8, see :mod:`petlbench.datasets.perceptual`.
        one_colour: Whether all pixels are equal.
    """

    pixels: bytes
    thumbnail: NDArray[np.uint8]
    one_colour: bool


Looks = Mapping[Place, Look | BadPicture]
"""Every picture that was looked at."""


def look_at(splits: Mapping[str, Split], progress: Callable[[int, int], None] | None = None) -> Looks:
    """Decode every picture of a set, on all cores.

    Args:
        splits: The set.
        progress: Called with (pictures done, pictures in all).

    Returns:
        What was seen; a bad picture stops nothing.
    """
    listed = [(name, image) for name, split in splits.items() for image in split.images]
    looks: dict[Place, Look | BadPicture] = {}
    with ThreadPoolExecutor(processors()) as pool:
        seen = pool.map(lambda one: _look(*one), listed)
        for done, ((name, image), look) in enumerate(zip(listed, seen, strict=True), 1):
            looks[name, image.name] = look
            if progress is not None:
                progress(done, len(listed))
    return looks


def bad_pictures(looks: Looks) -> list[BadPicture]:
    """Those that cannot be used, in order."""
    return [look for look in looks.values() if isinstance(look, BadPicture)]


def same_pictures(looks: Looks) -> list[list[Place]]:
    """Groups of pictures with the same pixels."""
    groups: dict[bytes, list[Place]] = defaultdict(list)
    for place, look in looks.items():
        if isinstance(look, Look):
            groups[look.pixels].append(place)
    return [group for group in groups.values() if len(group) > 1]


def picture_findings(splits: Mapping[str, Split], looks: Looks) -> Iterator[Finding]:
    """Pictures that cannot be used, are of one colour, or occur more than once, exactly or nearly."""
    bad = bad_pictures(looks)
    for name, split in splits.items():
        yield from _unusable(name, split, [picture for picture in bad if picture.split == name])
        plain = [n for (s, n), look in looks.items() if s == name and isinstance(look, Look) and look.one_colour]
        if plain:
            message = f"{count(len(plain), 'picture')} of one colour: {few(plain)}"
            items = [Item(split=name, picture=n) for n in plain]
            yield finding("D026", name, message, "No caption can be right; look at them.", items)
    same = same_pictures(looks)
    yield from _same(same)
    yield from _near(looks, same)


def name_findings(splits: Mapping[str, Split], card: Card) -> Iterator[Finding]:
    """Picture names in two splits."""
    home: dict[str, str] = {}
    twice: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted(splits, key=SPLITS.index):
        for image in splits[name].images:
            if (first := home.setdefault(image.name, name)) != name:
                twice[first, name].append(image.name)
    for pair, names in twice.items():
        message = f"{count(len(names), 'picture name')} in both splits: {few(names)}"
        joined = _joined(card, *pair)
        advice = "A picture belongs to one split; remove it from the other."
        if joined:
            advice = "The option parts joins them, as ViLT trains; choosing on val then rewards memory."
        items = [Item(split=pair[0], picture=n, twin=f"{pair[1]}/{n}") for n in names]
        yield finding("D007", ", ".join(pair), message, advice, items, "warning" if joined else None)


def _unusable(name: str, split: Split, bad: Sequence[BadPicture]) -> Iterator[Finding]:
    kinds = (
        ("D001", "are missing", [p for p in bad if p.missing]),
        ("D002", "cannot be decoded", [p for p in bad if not p.missing and not p.cut_off]),
        ("D008", "are cut off", [p for p in bad if p.cut_off]),
    )
    for code, trouble, pictures in kinds:
        if not pictures:
            continue
        advice = "Fetch these files again."
        if code == "D001" and len(pictures) == len(split.images):
            advice = "All of them: the picture folder or extension is wrong; see the options image_dir and extension."
        message = f"{len(pictures)} of {len(split.images)} pictures {trouble}: {few([p.name for p in pictures])}"
        items = [Item(split=name, picture=p.name, told=p.reason) for p in pictures]
        yield finding(code, name, message, advice, items)


def _same(same: Sequence[Sequence[Place]]) -> Iterator[Finding]:
    across: dict[tuple[str, ...], list[Sequence[Place]]] = defaultdict(list)
    within: dict[str, list[Sequence[Place]]] = defaultdict(list)
    for group in same:
        homes = tuple(dict.fromkeys(split for split, _ in group))
        if len(homes) > 1:
            across[homes].append(group)
        else:
            within[homes[0]].append(group)
    for homes, groups in across.items():
        message = f"{count(len(groups), 'picture')} with the same pixels in {' and '.join(homes)}: {_chains(groups)}"
        advice = "Recall on them measures memory; remove them from training."
        yield finding("D020", ", ".join(homes), message, advice, _group_items(groups))
    for home, groups in within.items():
        message = f"{count(len(groups), 'picture')} more than once, pixel by pixel: {_chains(groups)}"
        yield finding("D021", home, message, "Exact-pair recall counts the twin as a miss.", _group_items(groups))


def _chains(groups: Sequence[Sequence[Place]]) -> str:
    return few([" = ".join(f"{split}/{name}" for split, name in group) for group in groups])


def _group_items(groups: Sequence[Sequence[Place]]) -> list[Item]:
    """Every picture but the one that stays: of the last split in the order train, val, test, there the first."""
    items = []
    for group in groups:
        stays = max(group, key=lambda place: SPLITS.index(place[0]))
        items += [
            Item(split=split, picture=name, twin=f"{stays[0]}/{stays[1]}")
            for split, name in group
            if (split, name) != stays
        ]
    return items


def _near(looks: Looks, same: Sequence[Sequence[Place]]) -> Iterator[Finding]:
    places, prints = prints_of(looks)
    exact = {place: number for number, group in enumerate(same) for place in group}
    found: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for near in near_pairs(prints):
        one, two = places[near.first], places[near.second]
        if one in exact and exact[one] == exact.get(two):
            continue  # told as equal already
        earlier = SPLITS.index(one[0]) < SPLITS.index(two[0])
        goes, stays = (one, two) if earlier else (two, one)
        told = how_near(near, looks[one], looks[two])
        item = Item(split=goes[0], picture=goes[1], twin=f"{stays[0]}/{stays[1]}", told=told)
        found[tuple(dict.fromkeys((one[0], two[0])))].append(item)
    for homes, items in found.items():
        pairs = few([f"{item.split}/{item.picture} ~ {item.twin}" for item in items])
        if len(homes) > 1:
            message = f"{count(len(items), 'pair')} of nearly the same picture: {pairs}"
            advice = "Look at them: the same place, stored anew or a little shifted, makes recall measure memory."
            yield finding("D022", ", ".join(homes), message, advice, items)
        else:
            message = f"{count(len(items), 'pair')} of nearly the same picture: {pairs}"
            yield finding("D023", homes[0], message, "Look at them; exact-pair recall counts a twin as a miss.", items)


def how_near(near: NearPair, one: Look | BadPicture, two: Look | BadPicture) -> str:
    """In words."""
    if isinstance(one, Look) and isinstance(two, Look) and one.pixels == two.pixels:
        return "the same pixels"
    turn = ", turned or mirrored" if near.turn else ""
    return f"{near.distance} of 64 bits differ, correlation {near.correlation:.2f}{turn}"


def prints_of(looks: Looks) -> tuple[list[Place], Prints]:
    """The pictures that can be used, and what comparing them needs."""
    good = {place: look for place, look in looks.items() if isinstance(look, Look)}
    return list(good), Prints.of([look.thumbnail for look in good.values()])


def _look(split: str, image: ImageRef) -> Look | BadPicture:
    try:
        image.fingerprint()
    except DataError as error:
        return BadPicture(split=split, name=image.name, missing=True, reason=str(error))
    try:
        picture = image.open()
    except Exception as error:  # whatever a decoder raises on a broken file is the finding
        told = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        return BadPicture(split=split, name=image.name, missing=False, cut_off=_is_cut_off(error), reason=told)
    digest = hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).digest()
    small = thumbnail(picture)
    plain = bool(np.ptp(small) == 0) and picture.getcolors(1) is not None
    return Look(digest, small, plain)


def _is_cut_off(error: Exception) -> bool:
    """Whether the decoder ran out of data: Pillow has no class of its own for that, only words."""
    words = str(error.__cause__ or error).lower()
    return "truncated" in words


def _joined(card: Card, first: str, second: str) -> bool:
    """Whether the card's options read a part of the files into both splits."""
    parts = card.options.get("parts", {})
    return bool({*parts.get(first, [first])} & {*parts.get(second, [second])})
