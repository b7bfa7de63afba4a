"""Writer of ViLT-style ``.arrow`` files: one Arrow IPC file per split, and a card that reads them.

Columns ``image``, ``caption``, ``image_id``, ``split`` as dandelin/ViLT has them (``vilt/utils/write_f30k_karpathy.py``),
then ``path``, which the code of IEFT and CUP looks up, and ``label``, the scene class, where the set has classes.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from petlbench.datasets.card import Card
from petlbench.datasets.readers.arrow_file import ArrowImage
from petlbench.datasets.readers.common import without_blanks
from petlbench.datasets.readers.vilt_arrow import ViltArrowOptions, read_vilt_arrow
from petlbench.datasets.split import SPLITS, DataError, FileImage, ImageRef, Split

ROWS = 64
"""Pictures per record batch: what is held in memory at once."""

Progress = Callable[[str, int, int], None]


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
    stem = stem if stem is not None else f"{card.name}_caption_karpathy"
    if not stem or Path(stem).name != stem:
        raise DataError(f"stem {stem!r}: expected the beginning of a file name, e.g. {card.name}_caption_karpathy")
    names = [f"{stem}_{split}.arrow" for split in splits] + [f"{stem}.yaml"]
    _refuse_to_overwrite(folder, names, force)
    _check(splits)
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".exporting-", dir=folder))
    try:
        for split in splits.values():
            _write(split, work / f"{stem}_{split.name}.arrow", progress)
        with _writable(folder):
            (work / names[-1]).write_text(_card(card, work, stem, splits), encoding="utf-8")
            for name in names:
                (work / name).replace(folder / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [folder / name for name in names]


def _refuse_to_overwrite(folder: Path, names: list[str], force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file, expected a folder to write the .arrow files into")
    there = [name for name in names if (folder / name).exists()]
    if there and not force:
        raise DataError(
            f"{folder}: {', '.join(there)} {'are' if len(there) > 1 else 'is'} there already. "
            "Choose another folder or stem, or overwrite with --force"
        )


def _check(splits: Mapping[str, Split]) -> None:
    """Refuse what these files cannot express: they know pictures by name, and captions by picture."""
    home: dict[str, str] = {}
    for split in splits.values():
        for image in split.images:
            if (first := home.setdefault(image.name, split.name)) != split.name:
                raise DataError(
                    f"picture {image.name} is in {first} and in {split.name}; these files know it by its name"
                )
        if len({image.name for image in split.images}) < len(split.images):
            raise DataError(f"split {split.name}: pictures share a name; see `benchmark data doctor`")
        silent = np.flatnonzero(np.bincount(split.owner, minlength=len(split.images)) == 0)
        if len(silent):
            raise DataError(
                f"split {split.name}: pictures without a caption: {len(silent):,}, e.g. {split.images[silent[0]].name}; "
                "leave them out, e.g. by the option blank=drop"
            )


def _write(split: Split, path: Path, progress: Progress | None) -> None:
    """Write one split batch by batch, as far as the disk."""
    fields: list[tuple[str, Any]] = [("image", pa.binary()), ("caption", pa.list_(pa.string()))]
    fields += [(name, pa.string()) for name in ("image_id", "split", "path")]
    if split.classes:
        fields.append(("label", pa.string()))
    schema = pa.schema(fields)
    with _writable(path.parent.parent), path.open("wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for start, columns in _batches(split):
                writer.write_batch(pa.record_batch({name: columns[name] for name in schema.names}, schema=schema))
                if progress is not None:
                    progress(split.name, min(start + ROWS, len(split.images)), len(split.images))
        file.flush()
        os.fsync(file.fileno())


def _batches(split: Split) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """Columns of consecutive pictures, and the number of the first."""
    captions: list[list[str]] = [[] for _ in split.images]
    for owner, text in zip(split.owner, split.captions, strict=True):
        captions[owner].append(text)
    labels = (
        [None] * len(captions) if split.labels is None else [split.classes[n] if n >= 0 else None for n in split.labels]
    )
    for start in range(0, len(split.images), ROWS):
        rows = slice(start, start + ROWS)
        images = split.images[rows]
        names = [image.name for image in images]
        yield (
            start,
            {
                "image": [_file_bytes(image) for image in images],
                "caption": captions[rows],
                "image_id": names,
                "split": [split.name] * len(images),
                "path": names,
                "label": labels[rows],
            },
        )


def _file_bytes(image: ImageRef) -> bytes:
    """A picture as the bytes of a picture file; decoded once, so that no broken picture goes out."""
    picture = image.open()
    if isinstance(image, (FileImage, ArrowImage)):
        return image.content()
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _card(card: Card, folder: Path, stem: str, splits: Mapping[str, Split]) -> str:
    """A card that reads the files as they now lie in ``folder``."""
    options: dict[str, Any] = {"stem": stem}
    if without := [name for name in SPLITS if name not in splits]:
        options["parts"] = {name: [] for name in without}
    written = read_vilt_arrow(folder, ViltArrowOptions(**options, blank="keep"))
    usable = {name: without_blanks(split) for name, split in written.items()}
    if any(usable[name] is not written[name] for name in written):
        options["blank"] = "keep"
    told = card.model_dump(mode="json", include={"title", "version", "licence", "citation", "sources", "notes"})
    facts = {
        "name": f"{card.name.removesuffix('-arrow')}-arrow",
        **told,
        "format": "vilt-arrow",
        "files": {"annotations": "."},
        "expected": {
            name: {"images": len(split.images), "captions": len(split.captions), "sha256": split.sha256}
            for name, split in usable.items()
        },
        "options": options,
    }
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=120)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Say what to do when the folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}). Make room, mend the permissions, or choose another "
            "folder by --out"
        ) from error
