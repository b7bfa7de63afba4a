"""Do the pictures and captions of other files agree with a Karpathy JSON of the same set?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from petlbench.datasets.options import KarpathyOptions
from petlbench.datasets.readers.common import Entry, few
from petlbench.datasets.readers.karpathy import read_karpathy
from petlbench.datasets.split import SPLITS, DataError
from petlbench.datasets.splits import captions_of


def check_against_karpathy(parts: Mapping[str, Sequence[Entry]], json: Path, source: Path, distinct: bool) -> None:
    """Compare names, splits and captions with a Karpathy JSON, whose ``restval`` counts as train.

    Pictures are known by the last part of their name; the order of a picture's captions is free.

    Args:
        parts: Entries by part: ``train``, ``val``, ``test``, or another one that trains.
        json: The JSON file.
        source: What the entries were read from, for the message.
        distinct: Compare sets of captions: repeats within a picture may be there or not.

    Raises:
        DataError: They differ; all that differs comes in one error.
    """
    told = _told(json)
    wanted = {part: part if part in SPLITS else "train" for part in parts}
    unread = {name for name, (split, _) in told.items() if split in wanted.values()}
    known = {tuple(sorted(captions)) for _, captions in told.values()}
    strange, moved, other, shifted = [], [], [], 0
    for part, entry in ((part, entry) for part, listed in parts.items() for entry in listed):
        name = _base(entry.name)
        unread.discard(name)
        if name not in told:
            strange.append(name)
            continue
        split, captions = told[name]
        if split != wanted[part]:
            moved.append(f"{name} ({split} in the JSON, {part} here)")
        form = set if distinct else sorted
        if form(captions) != form(entry.captions):
            other.append(f"{name} (JSON: {len(captions)} captions, here: {len(entry.captions)})")
            shifted += tuple(sorted(entry.captions)) in known
    complaints = {
        "of the JSON that no file has (ViLT's writers leave out those they do not find)": sorted(unread),
        "that the JSON does not have": strange,
        "in another split than in the JSON": moved,
        "with other captions than in the JSON": other,
    }
    found = [f"- pictures {what}: {len(names):,} ({few(names)})" for what, names in complaints.items() if names]
    if shifted:
        found.append(
            f"- of these with the captions of another picture: {shifted:,}; names and captions are out of step"
        )
    if found:
        raise DataError(
            "\n".join((f"{source}: the files do not fit {json}:", *found))
            + "\nWrite the files anew from the JSON, or leave the option karpathy_json out if they are meant to differ."
        )


def _told(json: Path) -> dict[str, tuple[str, list[str]]]:
    """Split and captions by picture, as the JSON has them."""
    told: dict[str, tuple[str, list[str]]] = {}
    for split in read_karpathy(json, json.parent, KarpathyOptions(labels="none", blank="keep")).values():
        listed = zip(split.images, captions_of(split), strict=True)
        told |= {_base(image.name): (split.name, texts) for image, texts in listed}
    return told


def _base(name: str) -> str:
    return PurePosixPath(name).name
