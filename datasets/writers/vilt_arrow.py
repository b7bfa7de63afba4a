"""Writer of ViLT-style ``.arrow`` files: one Arrow IPC file per split, and a card that reads them.

Columns ``image``, ``caption``, ``image_id``, ``split`` as dandelin/ViLT has them (``vilt/utils/write_f30k_karpathy.py``),
then ``path``, which the code of IEFT and CUP looks up, and ``label``, the scene class, where the set has classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from petlbench.datasets.card import Card
from petlbench.datasets.readers.vilt_arrow import ViltArrowOptions, read_vilt_arrow
from petlbench.datasets.split import SPLITS, Split
from petlbench.datasets.splits import captions_of
from petlbench.datasets.writers.common import (
    Progress,
    aside,
    card_facts,
    card_text,
    check_names,
    checked_stem,
    class_names,
    file_bytes,
    keeps_blanks,
    refuse_to_overwrite,
)

ROWS = 64
"""Pictures per record batch: what is held in memory at once."""


def write_vilt_arrow(
    splits: Mapping[str, Split],
    folder: str | Path,
    card: Card,
    stem: str | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a data set as ``STEM_train.arrow``, ``STEM_val.arrow``, ``STEM_test.arrow`` and ``STEM.yaml``.

    Files that hold pictures keep their bytes; pictures that are not files are stored as PNG, pixel for pixel. Every
    picture is decoded before it is written. The files are made aside, read back, and only then moved into place.

    Args:
        splits: The splits, as from :func:`petlbench.datasets.load.load`.
        folder: Where to write; made if need be.
        card: The card of the set, whose facts the new card takes over.
        stem: What the file names begin with. Default: ``NAME_caption_karpathy``, as in ViLT's code.
        force: Overwrite files that are there.
        progress: Called with (split, pictures done, pictures in all).

    Returns:
        The files, the card last.

    Raises:
        DataError: A file is there already, a picture cannot be read or has no caption, or the folder cannot be written.
            Nothing is left behind then, and what was there is as before.
    """
    folder = Path(folder).expanduser().absolute()
    stem = checked_stem(stem, f"{card.name}_caption_karpathy")
    names = [f"{stem}_{split}.arrow" for split in splits] + [f"{stem}.yaml"]
    refuse_to_overwrite(folder, names, force)
    check_names(splits)
    with aside(folder) as work:
        for split in splits.values():
            _write(split, work / f"{stem}_{split.name}.arrow", progress)
        (work / names[-1]).write_text(_card(card, work, stem, splits), encoding="utf-8")
    return [folder / name for name in names]


def _write(split: Split, path: Path, progress: Progress | None) -> None:
    """Write one split batch by batch, as far as the disk."""
    fields: list[tuple[str, Any]] = [("image", pa.binary()), ("caption", pa.list_(pa.string()))]
    fields += [(name, pa.string()) for name in ("image_id", "split", "path")]
    if split.classes:
        fields.append(("label", pa.string()))
    schema = pa.schema(fields)
    with path.open("wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for start, columns in _batches(split):
                writer.write_batch(pa.record_batch({name: columns[name] for name in schema.names}, schema=schema))
                if progress is not None:
                    progress(split.name, min(start + ROWS, len(split.images)), len(split.images))
        file.flush()
        os.fsync(file.fileno())


def _batches(split: Split) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """Columns of consecutive pictures, and the number of the first."""
    captions = captions_of(split)
    labels = class_names(split)
    for start in range(0, len(split.images), ROWS):
        rows = slice(start, start + ROWS)
        images = split.images[rows]
        names = [image.name for image in images]
        yield (
            start,
            {
                "image": [file_bytes(image) for image in images],
                "caption": captions[rows],
                "image_id": names,
                "split": [split.name] * len(images),
                "path": names,
                "label": labels[rows],
            },
        )


def _card(card: Card, folder: Path, stem: str, splits: Mapping[str, Split]) -> str:
    """A card that reads the files as they now lie in ``folder``."""
    options: dict[str, Any] = {"stem": stem}
    if without := [name for name in SPLITS if name not in splits]:
        options["parts"] = {name: [] for name in without}
    written = read_vilt_arrow(folder, ViltArrowOptions(**options, blank="keep"))
    if keeps_blanks(written):
        options["blank"] = "keep"
    facts = card_facts(card, f"{card.name.removesuffix('-arrow')}-arrow", written) | {
        "format": "vilt-arrow",
        "files": {"annotations": "."},
        "root": ".",
        "options": options,
    }
    return card_text(facts)
