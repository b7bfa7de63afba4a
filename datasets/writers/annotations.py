"""Writers of annotation files that go with a folder of pictures: Karpathy JSON, a CSV table, PIR's and HarMA's JSON.

Each writes a card too, which reads the files back; they are read back before anything is moved into place, and must
give the splits that were written, to the hash.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from petlbench.datasets.card import Card, Format
from petlbench.datasets.load import load
from petlbench.datasets.split import DataError, Split
from petlbench.datasets.splits import captions_of
from petlbench.datasets.writers.common import (
    IMAGES,
    Progress,
    aside,
    card_facts,
    card_text,
    check_names,
    checked_stem,
    class_names,
    copy_pictures,
    keeps_blanks,
    place_pictures,
    refuse_to_overwrite,
)

_WORD = re.compile(r"[a-z0-9']+")


@dataclass(frozen=True)
class Kind:
    """How one kind of annotation file is written.

    Attributes:
        format: Which reader understands it.
        stem: What file names begin with, from the ``name`` of the set.
        file: Name of the file from the ``stem``, or of those of every ``split``.
        write: Writes them: (splits, folder, stem).
        options: What the reader must be told, from the ``stem``.
    """

    format: Format
    stem: str
    file: str
    write: Callable[[Mapping[str, Split], Path, str], None]
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def by_split(self) -> bool:
        """Whether each split has a file of its own, and a folder of its own for pictures that are copied."""
        return "{split}" in self.file


def write_annotations(
    splits: Mapping[str, Split],
    folder: str | Path,
    card: Card,
    kind: str,
    stem: str | None = None,
    *,
    pictures: Literal["auto", "refer", "copy"] = "auto",
    beside: Mapping[str, str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a data set as annotation files and a card.

    Args:
        splits: The splits, as from :func:`petlbench.datasets.load.load`.
        folder: Where to write; made if need be.
        card: The card of the set, whose facts the new card takes over.
        kind: A key of :data:`KINDS`.
        stem: What the file names begin with.
        pictures: Whether the pictures are copied; see :func:`petlbench.datasets.writers.common.place_pictures`.
        beside: Further texts to write, by file name.
        force: Overwrite files that are there.
        progress: Called while pictures are copied.

    Returns:
        The files, the card last.

    Raises:
        DataError: A file is there already, a picture cannot be read or has no caption, the format cannot express the
            set, or the folder cannot be written. Nothing is left behind then, and what was there is as before.
    """
    how = KINDS[kind]
    folder = Path(folder).expanduser().absolute()
    stem = checked_stem(stem, how.stem.format(name=card.name))
    splits = {name: split for name, split in splits.items() if split.images}
    beside = beside or {}
    files = list(dict.fromkeys(how.file.format(stem=stem, split=name) for name in splits))
    names = [*files, *beside, f"{stem}.yaml"]
    place = place_pictures(splits, pictures)
    refuse_to_overwrite(folder, [*names, *([IMAGES] if place.copied else [])], force)
    check_names(splits)
    with aside(folder) as work:
        how.write(splits, work, stem)
        for name, text in beside.items():
            (work / name).write_text(text, encoding="utf-8")
        if place.copied:
            copy_pictures(splits, work, place, how.by_split, progress)
        options = {**{key: told.format(stem=stem) for key, told in how.options.items()}, **place.options}
        if keeps_blanks(splits):
            options["blank"] = "keep"
        facts = card_facts(card, f"{card.name}-{kind}", splits) | {
            "format": how.format,
            "files": {"annotations": "." if how.by_split else files[0], "images": place.folder},
            "root": ".",
        }
        if options:
            facts["options"] = options
        (work / names[-1]).write_text(card_text(facts), encoding="utf-8")
        _check_back(work / names[-1], splits, kind)
    return [folder / name for name in names]


def _check_back(card: Path, splits: Mapping[str, Split], kind: str) -> None:
    read = load(card)
    for name, split in splits.items():
        if name not in read or read[name].sha256 != split.sha256:
            raise DataError(
                f"split {name}: files of format {kind} would not give back the same names, captions and order (captions with "
                "white space at their ends, or names that only another format can express); choose another format"
            )


def _karpathy(splits: Mapping[str, Split], folder: Path, stem: str) -> None:
    images: list[dict[str, Any]] = []
    sentence = 0
    for split in splits.values():
        labels = class_names(split)
        for image, captions, label in zip(split.images, captions_of(split), labels, strict=True):
            sentences = []
            for text in captions:
                told = {"tokens": _WORD.findall(text.lower()), "raw": text, "imgid": len(images), "sentid": sentence}
                sentences.append(told)
                sentence += 1
            item = {
                "filename": image.name,
                "imgid": len(images),
                "split": split.name,
                "sentids": [told["sentid"] for told in sentences],
                "sentences": sentences,
            }
            images.append(item if label is None else {**item, "class": label})
    _dump(folder / f"{stem}.json", {"dataset": stem.removeprefix("dataset_"), "images": images})


def _csv(splits: Mapping[str, Split], folder: Path, stem: str) -> None:
    classes = any(split.classes for split in splits.values())
    with (folder / f"{stem}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "caption", "split", *(["class"] if classes else [])])
        for split in splits.values():
            for image, captions, label in zip(split.images, captions_of(split), class_names(split), strict=True):
                for text in captions:
                    writer.writerow([image.name, text, split.name, *([label or ""] if classes else [])])


def _pir_json(splits: Mapping[str, Split], folder: Path, stem: str) -> None:
    number = 0
    for split in splits.values():
        items: list[dict[str, Any]] = []
        for image, captions, label in zip(split.images, captions_of(split), class_names(split), strict=True):
            told = {} if label is None else {"label_name": label, "label": split.classes.index(label)}
            name = f"{split.name}/{image.name}"
            if split.name == "train":
                items += [{"caption": text, "image": name, "image_id": number, **told} for text in captions]
                number += 1
            else:
                items.append({"image": name, "caption": captions, **told})
        _dump(folder / f"{stem}_{split.name}.json", items)


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


KINDS: dict[str, Kind] = {
    "karpathy": Kind("karpathy", "dataset_{name}", "{stem}.json", _karpathy),
    "csv": Kind("table", "{name}", "{stem}.csv", _csv),
    "pir-json": Kind("pir-json", "{name}", "{stem}_{split}.json", _pir_json, {"stem": "{stem}", "labels": "field"}),
}
"""Kinds of annotation files by name, which also ends the name of the new card."""
