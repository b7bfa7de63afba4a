"""Cutting a set anew where the published splits are not what is wanted: by a list, by a seeded share, by folds.

Whatever the rule, the splits that come out have hashes of their own, so that results on them never pass for results on
the published ones.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from petlbench.datasets.options import SplitOptions
from petlbench.datasets.readers.common import few, repeated
from petlbench.datasets.readers.text_lines import read_lines
from petlbench.datasets.split import SPLITS, DataError, Split

Groups = list[list[int]]
"""Indices of pictures that stay together."""


def recut(splits: Mapping[str, Split], options: SplitOptions, source: Path | str) -> dict[str, Split]:
    """The splits as the options ask for them; those given where they ask for nothing.

    Args:
        splits: As read, in the order train, val, test.
        options: The rule.
        source: What the user knows the set by, for messages.

    Returns:
        The splits in the order train, val, test; a split without pictures is left out.

    Raises:
        DataError: The rule does not fit the set: a listed picture is unknown, a split would be empty, or groups are too
            large for the folds.
    """
    if not options.recut:
        return dict(splits)
    if options.val_list is not None:
        pool = merged([splits[name] for name in ("train", "val") if name in splits], source)
        train, val = _listed(pool, Path(options.val_list), splits.get("test"))
        parts = {"train": train, "val": val}
    elif options.fold is not None:
        pool = merged(splits.values(), source)
        parts = _folds(pool, options, source)
    else:
        pool, parts = _shares(splits, options, source)
    made = {name: subset(pool, parts[name], name) for name in SPLITS if parts.get(name)}
    made |= {name: split for name, split in splits.items() if name not in parts}
    return {name: made[name] for name in SPLITS if name in made}


def merged(splits: Iterable[Split], source: Path | str) -> Split:
    """All pictures as one split, in the order given.

    Raises:
        DataError: There are none, or two share a name.
    """
    listed = list(splits)
    if not listed:
        raise DataError(f"{source}: no pictures to cut: the set has neither a train nor a val split")
    images = tuple(image for split in listed for image in split.images)
    if twice := repeated(image.name for image in images):
        raise DataError(f"{source}: two pictures are named {twice[0]!r}; a set that is cut anew needs distinct names")
    starts = np.cumsum([0, *(len(split.images) for split in listed)])
    labels = [np.full(len(s.images), -1, np.int64) if s.labels is None else s.labels for s in listed]
    classes = next((split.classes for split in listed if split.classes), ())
    return Split(
        name="train",
        images=images,
        captions=tuple(caption for split in listed for caption in split.captions),
        owner=np.concatenate([split.owner + start for split, start in zip(listed, starts, strict=False)]),
        labels=np.concatenate(labels) if classes else None,
        classes=classes,
    )


def subset(split: Split, chosen: Sequence[int], name: str) -> Split:
    """The pictures at some indices, in that order, each with its captions in their order."""
    captions = captions_of(split)
    counts = [len(captions[index]) for index in chosen]
    return Split(
        name=name,
        images=tuple(split.images[index] for index in chosen),
        captions=tuple(caption for index in chosen for caption in captions[index]),
        owner=np.repeat(np.arange(len(counts), dtype=np.int64), counts),
        labels=None if split.labels is None else split.labels[np.asarray(chosen, dtype=np.int64)],
        classes=split.classes,
    )


def captions_of(split: Split) -> list[list[str]]:
    """Captions by picture, in their order."""
    captions: list[list[str]] = [[] for _ in split.images]
    for owner, text in zip(split.owner.tolist(), split.captions, strict=True):
        captions[owner].append(text)
    return captions


def _listed(pool: Split, path: Path, test: Split | None) -> tuple[list[int], list[int]]:
    """Indices of train, in the order of the pool, and of val, in the order of the list."""
    if not path.is_file():
        raise DataError(f"{path}: the list of validation pictures (option val_list) is not found")
    place = {image.name: index for index, image in enumerate(pool.images)}
    tested = {image.name for image in test.images} if test is not None else set()
    # Lists hold bare file names; a set with sub-folders may be meant all the same.
    bare: dict[str, list[int]] = defaultdict(list)
    for name, index in place.items():
        bare[PurePosixPath(name).name].append(index)
    wanted: dict[int, int] = {}
    for number, name in enumerate(read_lines(path), 1):
        found = [place[name]] if name in place else bare.get(name, [])
        if len(found) != 1:
            why = "is a picture of the test split" if name in tested else "is no picture of train or val"
            if len(found) > 1:
                why = f"fits several pictures ({few([pool.images[i].name for i in found])})"
            raise DataError(f"{path}:{number}: {name!r} {why}; expected one name of train or val a line")
        if wanted.setdefault(found[0], number) != number:
            raise DataError(f"{path}:{number}: {name!r} was already listed on line {wanted[found[0]]}")
    if not wanted or len(wanted) == len(pool.images):
        lists = "none" if not wanted else "all"
        raise DataError(f"{path}: lists {lists} of the {len(pool.images):,} pictures of train and val; expected a part")
    return [index for index in range(len(pool.images)) if index not in wanted], list(wanted)


def _shares(
    splits: Mapping[str, Split], options: SplitOptions, source: Path | str
) -> tuple[Split, dict[str, list[int]]]:
    """One shuffle; the end of it is tested, what comes before validates, the rest trains.

    Without groups and test share this is the cut of PE-RSITR (``random.seed(2)``, one shuffle, the last fifth).
    """
    if options.test_share and "test" in splits:
        raise DataError(
            f"{source}: option test_share: the set has a test split, which results are compared on; leave the option out, "
            "or cut all of the set anew by fold=K/N"
        )
    pooled = ("train", "val") if options.val_share else ("train",)
    pool = merged([splits[name] for name in pooled if name in splits], source)
    groups = _grouped(pool, options.groups)
    random.Random(options.val_seed).shuffle(groups)
    total = len(pool.images)
    ends = {
        "train": int(total * (1 - options.val_share - options.test_share)),
        "val": int(total * (1 - options.test_share)),
        "test": total,
    }
    wanted = [name for name, share in (("val", options.val_share), ("test", options.test_share)) if share]
    parts: dict[str, list[int]] = {name: [] for name in ("train", *wanted)}
    filled = 0
    for group in groups:
        part = next(name for name in parts if filled < ends[name])
        parts[part].extend(group)
        filled += len(group)
    if empty := [name for name, indices in parts.items() if not indices]:
        raise DataError(
            f"{source}: {total:,} pictures in {len(groups):,} groups leave nothing for {' and '.join(empty)}; "
            "choose other shares, or groups=none"
        )
    return pool, parts


def _folds(pool: Split, options: SplitOptions, source: Path | str) -> dict[str, list[int]]:
    """Parts of nearly equal size; they follow from names, captions and seed, not from the order of the files."""
    assert options.fold is not None
    part, of = (int(number) for number in options.fold.split("/"))
    names = [image.name for image in pool.images]
    groups = [sorted(group, key=names.__getitem__) for group in _grouped(pool, options.groups)]
    groups.sort(key=lambda group: names[group[0]])
    random.Random(options.fold_seed).shuffle(groups)
    largest = max(groups, key=len)
    most = math.ceil(len(names) / of)
    if len(largest) > 1.5 * most or len(groups) < of:
        raise DataError(
            f"{source}: option fold={options.fold}: {len(names):,} pictures form {len(groups):,} groups "
            f"(groups={options.groups}), the largest of {len(largest):,}, which {of} parts of about {most:,} cannot hold "
            "evenly; choose fewer parts or a finer grouping"
        )
    groups.sort(key=len, reverse=True)  # stable: equals stay shuffled
    parts: list[list[int]] = [[] for _ in range(of)]
    for group in groups:
        min(parts, key=len).extend(group)
    test, val = part - 1, part % of
    train = sorted(index for number, listed in enumerate(parts) if number not in (test, val) for index in listed)
    return {"train": train, "val": sorted(parts[val]), "test": sorted(parts[test])}


def _grouped(pool: Split, rule: str) -> Groups:
    """Pictures that stay together, in order of their first picture; each one alone where nothing is asked for."""
    marks: dict[str, list[int]] = defaultdict(list)
    if rule in ("caption", "both"):
        for owner, text in zip(pool.owner.tolist(), pool.captions, strict=True):
            marks[f"caption {text}"].append(owner)
    if rule in ("picture", "both"):
        for index, image in enumerate(pool.images):
            marks[f"picture {hashlib.sha256(image.content()).hexdigest()}"].append(index)
    root = list(range(len(pool.images)))

    def find(index: int) -> int:
        while root[index] != index:
            root[index] = root[root[index]]
            index = root[index]
        return index

    for members in marks.values():
        for other in members[1:]:
            low, high = sorted((find(members[0]), find(other)))
            root[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(pool.images)):
        groups[find(index)].append(index)
    return list(groups.values())
