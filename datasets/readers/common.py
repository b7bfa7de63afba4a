"""What readers of picture files share: labels, names of picture files, the last step to a split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from petlbench.datasets.options import FileOptions
from petlbench.datasets.split import SPLITS, DataError, FileImage, ImageRef, Split

UCM_CLASSES = (
    "agricultural", "airplane", "baseballdiamond", "beach", "buildings", "chaparral", "denseresidential", "forest",
    "freeway", "golfcourse", "harbor", "intersection", "mediumresidential", "mobilehomepark", "overpass", "parkinglot",
    "river", "runway", "sparseresidential", "storagetanks", "tenniscourt",
)  # fmt: skip
"""The 21 classes of UC Merced Land Use; picture n of UCM-Captions is of class (n - 1) // 100."""

SYDNEY_CLASSES = {
    "residential": 242, "airport": 264, "meadow": 314, "river": 359, "ocean": 451, "industrial": 547, "runway": 613,
}  # fmt: skip
"""The 7 classes of Sydney-Captions, each with its last picture; the pictures of a class are numbered consecutively."""

_PREFIX = re.compile(r"(?P<label>.*[^\W\d_])[_-]?\d+")


@dataclass(frozen=True)
class Entry:
    """One annotated picture: its name, its captions, its scene class (None: unknown).

    ``image`` is the picture where it is not the file of that name in the folder of the pictures.
    """

    name: str
    captions: Sequence[str]
    label: str | None
    image: ImageRef | None = None


def label_of(name: str, rule: str) -> str | None:
    """The scene class that a file name tells, or None.

    Args:
        name: File name, e.g. ``airport_12.jpg`` or ``1785.tif``.
        rule: ``prefix`` (``airport``), ``ucm_number`` or ``sydney_number`` (class of the number there) or ``none``.
    """
    stem = PurePosixPath(name).stem
    if rule == "prefix":
        match = _PREFIX.fullmatch(stem)
        return match["label"] if match else None
    number = int(stem) if stem.isascii() and stem.isdigit() else 0
    if rule == "ucm_number" and 1 <= number <= 100 * len(UCM_CLASSES):
        return UCM_CLASSES[(number - 1) // 100]
    if rule == "sydney_number" and number >= 1:
        return next((label for label, last in SYDNEY_CLASSES.items() if number <= last), None)
    return None


def check_name(name: str, place: str) -> None:
    """Refuse a picture name that leads out of the picture folder.

    Raises:
        DataError: The name is absolute or goes up a folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{place}: the picture name {name!r} leads out of the picture folder; expected one inside")


def make_splits(entries: dict[str, list[Entry]], images: Path, options: FileOptions) -> dict[str, Split]:
    """Splits from entries; classes are numbered alphabetically over all splits.

    Args:
        entries: Entries by split name.
        images: Folder of the pictures that are files of their name.
        options: ``extension`` and ``blank`` are heeded here (``error`` is the reader's affair: it knows the line).

    Raises:
        DataError: A name or a caption cannot be written as UTF-8.
    """
    _check_characters(entries)
    known = {entry.label for listed in entries.values() for entry in listed} - {None}
    classes = tuple(sorted(label for label in known if label is not None))
    number = {label: index for index, label in enumerate(classes)}
    splits: dict[str, Split] = {}
    for name in SPLITS:
        if name not in entries:
            continue
        listed = entries[name]
        split = Split(
            name=name,
            images=tuple(entry.image or picture_in(images, entry.name, options) for entry in listed),
            captions=tuple(caption for entry in listed for caption in entry.captions),
            owner=np.repeat(np.arange(len(listed)), [len(entry.captions) for entry in listed]).astype(np.int64),
            labels=np.array([number.get(entry.label or "", -1) for entry in listed], np.int64) if classes else None,
            classes=classes,
        )
        splits[name] = without_blanks(split) if options.blank == "drop" else split
    return splits


def _check_characters(entries: dict[str, list[Entry]]) -> None:
    """Refuse half characters, which JSON can hold (an emoji cut in two) and nothing can be made of."""
    for split, listed in entries.items():
        for entry in listed:
            for text in (entry.name, *entry.captions):
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise DataError(
                        f"split {split}: the picture {entry.name!a}: {text!a} holds half a character "
                        f"({text[error.start]!a}, a surrogate without its other half); write the text anew as UTF-8"
                    ) from error


def picture_in(folder: Path, file: str, options: FileOptions, name: str | None = None) -> FileImage:
    """A picture file, with the extension that the files really have; known by ``name``, else by that of the file."""
    path = folder / file
    if options.extension:
        path = path.with_suffix(f".{options.extension.lstrip('.')}")
    return FileImage(path, name or file)


def stripped(captions: Sequence[str], place: str, blank: str) -> list[str]:
    """Captions without surrounding white space.

    Raises:
        DataError: One holds no visible character, where ``blank`` is ``error``.
    """
    texts = [caption.strip() for caption in captions]
    if blank == "error" and "" in texts:
        raise DataError(f"{place}: caption {texts.index('')} is blank. Write one, or use the option blank=drop.")
    return texts


def without_blanks(split: Split) -> Split:
    """The split without captions that hold no visible character, and without pictures left with no caption."""
    keep = np.array([bool(caption.strip()) for caption in split.captions], dtype=bool)
    described = np.zeros(len(split.images), dtype=bool)
    described[split.owner[keep]] = True
    if keep.all() and described.all():
        return split
    renumbered = np.cumsum(described) - 1
    return replace(
        split,
        images=_pick(split.images, described),
        captions=_pick(split.captions, keep),
        owner=renumbered[split.owner[keep]].astype(np.int64),
        labels=None if split.labels is None else split.labels[described],
    )


def without_repeats(split: Split) -> Split:
    """The split with each distinct caption string of a picture once, in order of first appearance."""
    pairs = list(dict.fromkeys(zip(split.owner.tolist(), split.captions, strict=True)))
    return replace(
        split,
        captions=tuple(caption for _, caption in pairs),
        owner=np.array([owner for owner, _ in pairs], dtype=np.int64),
    )


def few(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many more there are; ``none`` for no name."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "none") + more


def repeated(names: Iterable[str]) -> tuple[str, int, int] | None:
    """The first name that occurs twice, with both places (from 0), or None."""
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in seen:
            return name, seen[name], index
        seen[name] = index
    return None


def _pick(things: tuple, mask: np.ndarray) -> tuple:
    return tuple(thing for thing, wanted in zip(things, mask, strict=True) if wanted)
