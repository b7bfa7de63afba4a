"""Mending what the doctor found: in a copy of the annotations, never in the user's files.

The copy is a Karpathy JSON with a card, beside a list of all that was changed. Pictures stay where they are where they are
files of one folder, else they are written too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from petlbench.datasets.card import Card
from petlbench.datasets.doctor_captions import NORMALISE, has_word
from petlbench.datasets.findings import CODES, Finding, Item
from petlbench.datasets.readers.common import few, without_blanks, without_repeats
from petlbench.datasets.split import DataError, Split
from petlbench.datasets.splits import captions_of, subset
from petlbench.datasets.writers.annotations import write_annotations
from petlbench.datasets.writers.common import Progress, keep_out

CHANGES = "changes.json"
"""Name of the list of changes."""

SCHEMA_VERSION = 1


class Change(BaseModel):
    """One thing that was mended.

    Attributes:
        code: Why.
        split: Of the picture.
        picture: Its name.
        caption: Which of its captions, from 0; None: the picture was left out.
        before: The caption as it was.
        after: As it is; None: it was left out.
    """

    code: str
    split: str
    picture: str
    caption: int | None = None
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Mended:
    """A mended set.

    Attributes:
        splits: The splits.
        changes: All that was changed, caption by caption and picture by picture.
        codes: Codes that were mended.
    """

    splits: dict[str, Split]
    changes: list[Change] = field(default_factory=list)
    codes: tuple[str, ...] = ()


def mendable(findings: Iterable[Finding], select: Sequence[str] = ()) -> tuple[str, ...]:
    """Codes among the findings that are mended: those that always are, and those that ``select`` asks for."""
    asked = tuple(text.strip().upper() for text in select)
    found = {one.code for one in findings}
    return tuple(
        code
        for code, about in CODES.items()
        if code in found and (about.fix == "always" or (about.fix == "asked" and asked and code.startswith(asked)))
    )


def mend(splits: Mapping[str, Split], findings: Sequence[Finding], codes: Collection[str]) -> Mended:
    """A set without what some codes say of it.

    Captions are mended first, then captions are left out, then pictures; a picture that has no caption left goes too.

    Args:
        splits: As they were examined.
        findings: What was found, with their items.
        codes: What to mend.

    Raises:
        DataError: Nothing would be left of a split.
    """
    wanted = [code for code in CODES if code in codes]
    changes: list[Change] = []
    made: dict[str, Split] = {}
    for name, split in splits.items():
        for code in wanted:
            if code in NORMALISE:
                split = _rewritten(split, code, NORMALISE[code], changes)
        for code, stays in _STAYS.items():
            if code in wanted:
                split = _captions_left_out(split, code, stays, changes)
        if "D011" in wanted:
            split = _once(split, changes)
        gone = {item.picture: one.code for one in findings if one.code in wanted for item in _gone(one, name)}
        left = [index for index, image in enumerate(split.images) if image.name not in gone]
        changes += [
            Change(code=gone[image.name], split=name, picture=image.name)
            for image in split.images
            if image.name in gone
        ]
        if split.images and not left:
            raise DataError(
                f"split {name}: nothing is left once all pictures of {few(sorted(set(gone.values())))} are gone; "
                "see what the doctor says of them first"
            )
        made[name] = subset(split, left, name) if gone else split
    return Mended(made, changes, tuple(wanted))


def write_mended(
    mended: Mended,
    folder: str | Path,
    card: Card,
    places: Iterable[Path],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a mended set: annotations, a list of changes, and a card.

    Args:
        mended: From :func:`mend`.
        folder: Where to write; made if need be.
        card: Of the set as it was.
        places: The user's own folders; nothing is written into them.
        force: Overwrite files that are there.
        progress: Called while pictures are copied.

    Returns:
        The files, the card last.

    Raises:
        DataError: The folder lies inside one of the user's own, holds such files, cannot be written, or the set cannot be
            expressed (a name in two splits). Nothing is left behind then.
    """
    folder = Path(folder).expanduser().absolute()
    keep_out(folder, places, mended.splits)
    stem = f"{card.name}-mended"
    note = f"Made from {card.name} by benchmark data doctor --fix: {', '.join(mended.codes)}; see {CHANGES}."
    told = card.model_copy(update={"name": stem, "title": f"{card.title} (mended)", "notes": (*card.notes, note)})
    listed = [change.model_dump(exclude_none=True) for change in mended.changes]
    content = {"schema_version": SCHEMA_VERSION, "set": card.name, "codes": mended.codes, "changes": listed}
    beside = {CHANGES: json.dumps(content, indent=1, ensure_ascii=False) + "\n"}
    return write_annotations(
        mended.splits, folder, told, "karpathy", stem, beside=beside, force=force, progress=progress
    )


_STAYS: dict[str, Callable[[str], bool]] = {"D005": lambda text: bool(text.strip()), "D018": has_word}
"""Captions that stay, by the code that takes the others out."""

_LEAVES_OUT = ("D001", "D002", "D006", "D007", "D008", "D020", "D021", "D022", "D023", "D024", "D025", "D026")
"""Codes whose items are pictures that go."""


def _gone(one: Finding, split: str) -> list[Item]:
    return [item for item in one.items if item.split == split] if one.code in _LEAVES_OUT else []


def _rewritten(split: Split, code: str, mend_text: Callable[[str], str], changes: list[Change]) -> Split:
    after = {text: mend_text(text) for text in split.distinct}
    for picture, number, text in _numbered(split):
        if after[text] != text:
            one = Change(code=code, split=split.name, picture=picture, caption=number, before=text, after=after[text])
            changes.append(one)
    return replace(split, captions=tuple(after[text] for text in split.captions))


def _captions_left_out(split: Split, code: str, stays: Callable[[str], bool], changes: list[Change]) -> Split:
    for picture, number, text in _numbered(split):
        if not stays(text):
            changes.append(Change(code=code, split=split.name, picture=picture, caption=number, before=text))
    blanked = replace(split, captions=tuple(text if stays(text) else "" for text in split.captions))
    return _all_described(without_blanks(blanked), split, code, changes)


def _all_described(after: Split, before: Split, code: str, changes: list[Change]) -> Split:
    """Tell which pictures went with their last caption, or had none."""
    kept = {image.name for image in after.images}
    had = {before.images[owner].name for owner in np.unique(before.owner)}
    for image in before.images:
        if image.name not in kept:
            why = code if image.name in had else "D006"
            changes.append(Change(code=why, split=before.name, picture=image.name))
    return after


def _once(split: Split, changes: list[Change]) -> Split:
    seen: set[tuple[str, str]] = set()
    for picture, number, text in _numbered(split):
        if (picture, text) in seen:
            changes.append(Change(code="D011", split=split.name, picture=picture, caption=number, before=text))
        seen.add((picture, text))
    return without_repeats(split)


def _numbered(split: Split) -> list[tuple[str, int, str]]:
    """Every caption with its picture and its number there."""
    return [
        (image.name, number, text)
        for image, texts in zip(split.images, captions_of(split), strict=True)
        for number, text in enumerate(texts)
    ]
