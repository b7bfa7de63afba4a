"""Finding the folder of a set's pictures, and the extension that they really have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
"""Extensions of picture files."""

USUAL = ("images", "imgs", "image", "Images", "pictures", "img")
"""Usual names of the folder of the pictures, in the order in which they are tried."""


def find_pictures(folder: Path, name: str, *, by_split: bool = False) -> tuple[str, str | None, str]:
    """The folder of the pictures.

    Args:
        folder: Of the set.
        name: Of one picture, as the annotations have it.
        by_split: Whether the reader also finds pictures without the folder of the split that their names begin with.

    Returns:
        The folder relative to ``folder``; the extension that the files have where it differs from the name's; and a
        line for the user.
    """
    short = PurePosixPath(name)
    bare = PurePosixPath(*short.parts[1:]) if by_split and len(short.parts) > 1 else None
    names = [short, *([bare] if bare else [])] if name else []
    for candidate in names:
        for place in _places(folder):
            if (place / candidate).is_file():
                return _relative(place, folder), None, f"pictures in {_relative(place, folder)}/"
    for candidate in names:
        for place in _places(folder):
            for suffix in PICTURES:
                if (place / candidate).with_suffix(suffix).is_file():
                    told = f"pictures in {_relative(place, folder)}/, with the extension {suffix}"
                    return _relative(place, folder), suffix[1:], told
    for place in _places(folder):
        there = {path.suffix for path in place.iterdir() if path.suffix.lower() in PICTURES}
        if there:
            where, told = _relative(place, folder), f", though {name} is not there" if name else ""
            other = len(there) == 1 and short.suffix and short.suffix not in there
            return where, there.pop()[1:] if other else None, f"pictures in {where}/{told}"
    return "images", None, "no pictures found; expected in images/, or a folder given by the option image_dir"


def _places(folder: Path) -> Iterator[Path]:
    """Folders that may hold the pictures, the likeliest first."""
    usual = [folder / name for name in USUAL if (folder / name).is_dir()]
    yield from usual
    yield folder
    inner = [path for path in entries(folder) if path.is_dir()]
    yield from (path for path in inner if path not in usual)
    for place in inner:
        # A folder of pictures has no folders to look into, and may have very many files.
        yield from (Path(entry.path) for entry in sorted(os.scandir(place), key=lambda e: e.name) if entry.is_dir())


def _relative(place: Path, folder: Path) -> str:
    return place.relative_to(folder).as_posix()


def entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted, hidden ones left out."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
