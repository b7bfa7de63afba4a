"""Reader of NWPU-Captions' JSON: an object of scene classes, each a list of pictures with ``raw``, ``raw_1`` ... ``raw_4``.

Each picture has ``filename``, ``split`` and its captions. Pictures lie in one folder, or in a folder per class.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from petlbench.datasets.options import NwpuJsonOptions
from petlbench.datasets.readers.common import Entry, make_splits, picture_in, repeated
from petlbench.datasets.readers.json_file import kind, load_json, picture_name
from petlbench.datasets.readers.split_files import split_named
from petlbench.datasets.split import DataError, Split

_RAW = re.compile(r"raw(?:_(\d+))?")


def read_nwpu_json(annotations: Path, images: Path, options: NwpuJsonOptions | None = None) -> dict[str, Split]:
    """Read the JSON file.

    Args:
        annotations: The file.
        images: Folder of the pictures, or of the folders of the classes.
        options: How to read it.

    Returns:
        The splits found, in the order train, val, test, pictures in the order of the file. A picture is known by its
        file name, and by its class too where file names repeat.

    Raises:
        DataError: The file is no JSON or not of this layout; names class and item.
    """
    options = options or NwpuJsonOptions()
    data = load_json(annotations)
    if not isinstance(data, dict) or not data:
        raise DataError(f"{annotations}: found {kind(data)} at the top level, expected an object of scene classes")
    found = [
        (label, *_item(item, f"{annotations}: {label}[{index}]", options))
        for label, listed in data.items()
        for index, item in enumerate(_listed(listed, f"{annotations}: {label}"))
    ]
    names = [name for _, name, _, _ in found]
    if repeated(names):
        names = [f"{label}/{name}" for label, name, _, _ in found]
    if twice := repeated(names):
        raise DataError(f"{annotations}: two pictures are named {twice[0]!r}; remove one of them")
    entries: dict[str, list[Entry]] = {}
    folders = {label for label in data if (images / label).is_dir()}
    for name, (label, _, split, captions) in zip(names, found, strict=True):
        file = PurePosixPath(name).name
        image = picture_in(images / label, file, options, name) if label in folders else None
        entries.setdefault(split, []).append(Entry(name, captions, None if options.labels == "none" else label, image))
    return make_splits(entries, images, options)


def caption_keys(item: dict[str, Any]) -> list[str]:
    """The keys ``raw``, ``raw_1``, ... of a picture, by number."""
    found = {key: match for key in item if (match := _RAW.fullmatch(key))}
    return sorted(found, key=lambda key: int(found[key][1] or 0))


def _listed(listed: Any, place: str) -> list[Any]:
    if not isinstance(listed, list):
        raise DataError(f"{place}: found {kind(listed)}, expected the list of the pictures of a scene class")
    return listed


def _item(item: Any, place: str, options: NwpuJsonOptions) -> tuple[str, str, list[str]]:
    name = picture_name(item, "filename", place, "`filename`, `split`, `raw`")
    place = f"{place} ({name})"
    split = split_named(str(item.get("split")))
    if split is None:
        raise DataError(f"{place}: key `split` is {item.get('split')!r}; expected train, val or test")
    keys = caption_keys(item)
    if not keys:
        raise DataError(f"{place}: no caption; expected the keys `raw`, `raw_1`, ...")
    captions = []
    for key in keys:
        text = item[key]
        if not isinstance(text, str):
            raise DataError(f"{place}: key `{key}` is {kind(text)}, expected a caption")
        if not text.strip() and options.blank == "error":
            raise DataError(f"{place}: key `{key}` is blank. Write a caption, or use the option blank=drop.")
        captions.append(text.strip())
    return name, split, captions
