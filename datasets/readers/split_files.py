"""Files of which each belongs to one split by its name: ``STEM_train.json``, ``test.csv``, ``val-0003.tar``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from petlbench.datasets.readers.common import few
from petlbench.datasets.split import SPLITS, DataError

SYNONYMS = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}
"""Other words for splits that mean the same everywhere."""

_NAME = re.compile(rf"(?:(?P<stem>.+?)[_.-])??(?P<split>{'|'.join((*SPLITS, *SYNONYMS))})", re.IGNORECASE)


def split_named(name: str) -> str | None:
    """``train``, ``val`` or ``test`` for that word or a synonym, in any case; else None."""
    word = name.strip().lower()
    return word if word in SPLITS else SYNONYMS.get(word)


def stem_and_split(path: Path) -> tuple[str, str] | None:
    """What a file is called before its split, and the split; None where its name ends in no split."""
    match = _NAME.fullmatch(path.stem)
    split = split_named(match["split"]) if match else None
    return (match["stem"] or "", split) if match and split else None


def by_stem(paths: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """Files by what their names begin with and by split, in the order train, val, test.

    Raises:
        DataError: Two files are of the same split.
    """
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(paths):
        if (named := stem_and_split(path)) is None:
            continue
        stem, split = named
        if (other := found[stem].setdefault(split, path)) != path:
            raise DataError(f"{path.parent}: {other.name} and {path.name} are both of split {split}; remove one")
    return {stem: {name: files[name] for name in SPLITS if name in files} for stem, files in found.items()}


def choose_stem(found: dict[str, dict[str, Path]], stem: str | None, folder: Path, wanted: str) -> dict[str, Path]:
    """The files of a stem; of the only one where none is named.

    Args:
        found: From :func:`by_stem`.
        stem: As the user names it, or None.
        folder: Where they lie, for messages.
        wanted: How files of this kind are called, e.g. ``STEM_{train,val,test}.json``.

    Raises:
        DataError: There are none, or several to choose from.
    """
    if stem is not None:
        if stem in found:
            return found[stem]
        raise DataError(f"{folder}: no files {wanted.replace('STEM', stem)}; stems there: {few(sorted(found), 5)}")
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise DataError(f"{folder}: no files {wanted}; name them so")
    raise DataError(
        f"{folder}: files of several sets: {few(sorted(found), 5)}; choose one by the option stem, e.g. stem={min(found)}"
    )
