"""Reader of the JSON layout by Karpathy and Fei-Fei (CVPR 2015): one `images` list with splits and sentences.

Each item has ``filename``, ``split``, ``sentences`` (each with ``raw``) and may have ``filepath`` (a sub-folder) and
``class`` (the scene).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from petlbench.datasets.options import KarpathyOptions
from petlbench.datasets.readers.common import Entry, check_name, label_of, make_splits, repeated
from petlbench.datasets.readers.json_file import kind, load_json, picture_name
from petlbench.datasets.split import SPLITS, DataError, Split
from petlbench.datasets.validation import suggest


def read_karpathy(annotations: Path, images: Path, options: KarpathyOptions | None = None) -> dict[str, Split]:
    """Read a Karpathy JSON file.

    Args:
        annotations: The JSON file.
        images: Folder of the pictures.
        options: How to read it.

    Returns:
        The splits found, in the order train, val, test; captions are ``raw`` without surrounding white space.

    Raises:
        DataError: The file is no JSON or not of this layout; names the line or the item.
    """
    options = options or KarpathyOptions()
    entries: dict[str, list[Entry]] = {}
    names = []
    for index, item in enumerate(_items(annotations)):
        place = f"{annotations}: images[{index}]"
        name = picture_name(item, "filename", place, "`filename`, `split`, `sentences`")
        if isinstance(folder := item.get("filepath"), str) and folder:
            name = f"{folder}/{name}"
            check_name(name, place)
        place = f"{place} ({name})"
        split = _split(item, place, options)
        names.append(name)
        if split == "drop":
            continue
        captions = _captions(item, place, options)
        entries.setdefault(split, []).append(Entry(name, captions, _label(item, name, options)))
    if twice := repeated(names):
        name, first, second = twice
        raise DataError(
            f"{annotations}: images[{second}] and images[{first}] are both named {name!r}; file names must be unique. "
            "Join their sentences under one item, or remove one."
        )
    return make_splits(entries, images, options)


def _items(path: Path) -> list[Any]:
    data = load_json(path)
    found = data.get("images") if isinstance(data, dict) else None
    if not isinstance(found, list):
        keys = f"the keys {', '.join(map(repr, data)) or 'none'}" if isinstance(data, dict) else kind(data)
        raise DataError(f"{path}: found {keys} at the top level, expected an object with the list `images`")
    if not found:
        raise DataError(f"{path}: the list `images` is empty")
    return found


def _split(item: dict[str, Any], place: str, options: KarpathyOptions) -> str:
    if "split" not in item:
        raise DataError(f"{place}: key `split` is missing; expected one of {', '.join(SPLITS)}")
    split = item["split"]
    if split in SPLITS:
        return split
    if isinstance(split, str) and split in options.splits:
        return options.splits[split]
    known = (*SPLITS, *options.splits)
    raise DataError(
        f"{place}: key `split` is {split!r}; {suggest(str(split), known)} "
        f"Say what to do with it by the option splits, e.g. splits={{{split}: train}} (or val, test, drop)."
    )


def _captions(item: dict[str, Any], place: str, options: KarpathyOptions) -> list[str]:
    sentences = item.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise DataError(
            f"{place}: key `sentences` is {kind(sentences)}, expected a list with at least one sentence. "
            "Give the picture a caption or remove it from the file."
        )
    captions = []
    for number, sentence in enumerate(sentences):
        raw = sentence.get("raw") if isinstance(sentence, dict) else None
        if not isinstance(raw, str):
            raise DataError(f"{place}: sentences[{number}] has no text under the key `raw` (found {kind(raw)})")
        caption = raw.strip()
        if not caption and options.blank == "error":
            raise DataError(f"{place}: sentences[{number}] is blank. Write a caption, or use the option blank=drop.")
        captions.append(caption)
    return captions


def _label(item: dict[str, Any], name: str, options: KarpathyOptions) -> str | None:
    if options.labels == "class":
        label = item.get("class", item.get("label"))
        return None if label is None or label == "" else str(label)
    return label_of(name, options.labels)
