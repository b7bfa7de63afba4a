"""What writers of data sets share: a place aside until all is complete, the pictures, the card that reads it back."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import yaml
from PIL import Image, UnidentifiedImageError

from petlbench.datasets.card import Card
from petlbench.datasets.readers.common import without_blanks
from petlbench.datasets.split import DataError, FileImage, ImageRef, Split

Progress = Callable[[str, int, int], None]
"""Called with (split, pictures done, pictures in all)."""

IMAGES = "images"
"""Folder that copied pictures go to."""


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of a written set lie.

    Attributes:
        folder: As the card names it: ``images`` beside the annotations, or the folder where they are, absolute.
        copied: Whether they are written too.
        options: What the reader must be told of them.
    """

    folder: str
    copied: bool
    options: Mapping[str, Any] = field(default_factory=dict)


def place_pictures(splits: Mapping[str, Split], pictures: Literal["auto", "refer", "copy"]) -> Pictures:
    """Where the pictures shall lie.

    Args:
        splits: What is written.
        pictures: ``refer`` leaves them where they are; ``copy`` writes them beside the annotations; ``auto`` refers to files
            of one folder and copies everything else.

    Raises:
        DataError: They shall be referred to, but are not files of one folder.
    """
    images = [image for split in splits.values() for image in split.images]
    bases = {_base(image) for image in images}
    files = [image for image in images if isinstance(image, FileImage)]
    suffixes = {image.path.suffix for image in files}
    renamed = any(image.path.suffix != PurePosixPath(image.name).suffix for image in files)
    suffix = suffixes.pop().removeprefix(".") if renamed and len(suffixes) == 1 else ""
    options = {"extension": suffix} if suffix else {}
    fits = len(bases) == 1 and None not in bases and bool(suffix or not renamed)
    if pictures == "refer" and not fits:
        raise DataError(
            "the pictures are not files of one folder under their own names, so they cannot be left where they are; write them "
            "out by --pictures copy"
        )
    if fits and pictures != "copy":
        return Pictures(str(bases.pop()), copied=False, options=options)
    return Pictures(IMAGES, copied=True, options=options)


def _base(image: ImageRef) -> Path | None:
    """The folder that a picture file lies in under its name, whatever its extension; None for any other picture."""
    if not isinstance(image, FileImage):
        return None
    name = PurePosixPath(image.name)
    base = image.path.parents[len(name.parts) - 1] if len(image.path.parents) >= len(name.parts) else None
    return base if base is not None and (base / name).with_suffix("") == image.path.with_suffix("") else None


def copy_pictures(
    splits: Mapping[str, Split], folder: Path, pictures: Pictures, by_split: bool, progress: Progress | None
) -> None:
    """Write the pictures as files, each under its name (in a folder of its split where the layout has such)."""
    suffix = f".{pictures.options['extension']}" if "extension" in pictures.options else None
    for split in splits.values():
        home = folder / IMAGES / split.name if by_split else folder / IMAGES
        for done, image in enumerate(split.images, 1):
            path = home / image.name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"picture {image.name}: the name leads out of {folder}; rename it")
            path = path.with_suffix(suffix) if suffix else path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file_bytes(image))
            if progress is not None:
                progress(split.name, done, len(split.images))


def file_bytes(image: ImageRef) -> bytes:
    """A picture as the bytes of a picture file: as they are where it is one, else PNG, pixel for pixel.

    It is decoded once, so that no broken picture goes out.
    """
    picture, data = image.open(), image.content()
    try:
        with Image.open(io.BytesIO(data)):
            return data
    except (UnidentifiedImageError, OSError):  # drawn, not stored
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue()


def keep_out(folder: Path, places: Iterable[Path], splits: Mapping[str, Split]) -> None:
    """Refuse to write into a folder of the user's data.

    Args:
        folder: Where something shall be written.
        places: Folders that the set is read from.
        splits: Of the set, whose pictures may lie elsewhere.

    Raises:
        DataError: ``folder`` is one of the places, or a folder of the pictures, or lies inside one.
    """
    pictures = {
        image.path.parent for split in splits.values() for image in split.images if isinstance(image, FileImage)
    }
    for place in (*places, *sorted(pictures)):
        if folder.resolve().is_relative_to(place.resolve()):
            raise DataError(f"{folder}: lies in the data folder {place}, which is never written to; choose another one")


def refuse_to_overwrite(folder: Path, names: Sequence[str], force: bool) -> None:
    """Stop before anything of the user's is overwritten.

    Raises:
        DataError: One of the files is there and ``force`` is not given, or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file, expected a folder to write the files into")
    there = [name for name in names if (folder / name).exists()]
    if there and not force:
        raise DataError(
            f"{folder}: {', '.join(there)} {'are' if len(there) > 1 else 'is'} there already. "
            "Choose another folder or stem, or overwrite with --force"
        )


def check_names(splits: Mapping[str, Split]) -> None:
    """Refuse what files of this kind cannot express: they know pictures by name, and captions by picture.

    Raises:
        DataError: A name repeats, or a picture has no caption.
    """
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


def checked_stem(stem: str | None, default: str) -> str:
    """What the file names begin with.

    Raises:
        DataError: It is no beginning of a file name.
    """
    stem = stem if stem is not None else default
    if not stem or Path(stem).name != stem:
        raise DataError(f"stem {stem!r}: expected the beginning of a file name, e.g. {default}")
    return stem


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A folder inside ``folder`` for what is not complete yet; what is in it at the end is moved out of it.

    Annotations are moved last, so that what reads them finds their pictures.

    Raises:
        DataError: Something cannot be written; says what to do. Nothing is left behind.
    """
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".exporting-", dir=folder))
        try:
            yield work
            files = sorted((path for path in work.rglob("*") if path.is_file()), key=lambda p: (p.parent == work, p))
            for path in files:
                target = folder / path.relative_to(work)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def card_facts(card: Card, name: str, splits: Mapping[str, Split]) -> dict[str, Any]:
    """What a new card says of the set besides format, files and options: the old card's facts and new counts."""
    usable = {part: without_blanks(split) for part, split in splits.items()}
    told = card.model_dump(mode="json", include={"title", "version", "licence", "citation", "sources", "notes"})
    expected = {
        part: {"images": len(split.images), "captions": len(split.captions), "sha256": split.sha256}
        for part, split in usable.items()
    }
    return {"name": name, **told, "expected": expected}


def card_text(facts: Mapping[str, Any]) -> str:
    """A card as YAML."""
    return yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True, width=120)


def keeps_blanks(splits: Mapping[str, Split]) -> bool:
    """Whether a caption without a visible character is among what is written."""
    return any(without_blanks(split) is not split for split in splits.values())


def class_names(split: Split) -> list[str | None]:
    """The scene class of each picture, None where unknown."""
    if split.labels is None:
        return [None] * len(split.images)
    return [split.classes[number] if number >= 0 else None for number in split.labels.tolist()]


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
