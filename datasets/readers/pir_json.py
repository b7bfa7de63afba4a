"""Reader of the JSON files of PIR and HarMA: ``STEM_train.json``, ``STEM_val.json``, ``STEM_test.json``, each one list.

Train files hold an object per caption (``image``, ``caption``, ``image_id``, ``label_name``, ``label``), val and test files one
per picture, whose ``caption`` is a list (layout as read by ``dataset/re_dataset.py`` of jaychempan/PIR). Both forms are
understood in every file. ``image`` begins with the name of the split (``train/bridge_942.tif``); pictures of a set are known
without it, so that they are the same pictures as in the set's other layouts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from petlbench.datasets.options import PirJsonOptions
from petlbench.datasets.readers.common import Entry, few, label_of, make_splits, picture_in, repeated, stripped
from petlbench.datasets.readers.json_file import kind, load_json, picture_name
from petlbench.datasets.readers.split_files import by_stem, choose_stem
from petlbench.datasets.split import DataError, Split

FILES = "STEM_{train,val,test}.json"
"""How the files are called."""


def read_pir_json(folder: Path, images: Path, options: PirJsonOptions | None = None) -> dict[str, Split]:
    """Read the files of a folder.

    Args:
        folder: Where they lie. Splits without a file are left out: HarMA's repository lacks RSICD's train file.
        images: Folder of the pictures, with sub-folders train, val and test or without.
        options: How to read them.

    Returns:
        The splits in the order train, val, test; pictures in order of first appearance; captions without surrounding
        white space.

    Raises:
        DataError: A file is missing, is no JSON or not of this layout; names file and item.
    """
    options = options or PirJsonOptions()
    if not folder.is_dir():
        raise DataError(f"{folder}: expected the folder of the files {FILES}; see the option annotations")
    files = choose_stem(by_stem(folder.glob("*.json")), options.stem, folder, FILES)
    read = {split: _read(path, options) for split, path in files.items()}
    bare = _without_folder(read)
    home: dict[str, Path] = {}
    for split, listed in bare.items():
        for entry in listed:
            if (other := home.setdefault(entry.name, files[split])) != files[split]:
                raise DataError(
                    f"{files[split]}: the picture {entry.name!r} is in {other.name} too; a picture belongs to one split"
                )
    for split, listed in bare.items():
        if bare is not read and _lies_in(images / split, images, listed[0].name, options):
            bare[split] = [replace(one, image=picture_in(images / split, one.name, options)) for one in listed]
    return make_splits(bare, images, options)


def _lies_in(inner: Path, images: Path, name: str, options: PirJsonOptions) -> bool:
    """Whether a picture lies in the folder of its split; a name may begin with that of a split by itself."""
    if not inner.is_dir():
        return False
    return picture_in(inner, name, options).path.is_file() or not picture_in(images, name, options).path.is_file()


def _read(path: Path, options: PirJsonOptions) -> list[Entry]:
    data = load_json(path)
    if not isinstance(data, list) or not data:
        raise DataError(
            f"{path}: found {kind(data)} at the top level, expected a list of objects with `image`, `caption`"
        )
    captions: dict[str, list[str]] = {}
    labels: dict[str, str | None] = {}
    ids: dict[Any, str] = {}
    known: dict[str, Any] = {}
    whole: dict[str, int] = {}
    for index, item in enumerate(data):
        place = f"{path}: [{index}]"
        name = picture_name(item, "image", place, "`image` and `caption`")
        place = f"{place} ({name})"
        told = item.get("caption")
        if isinstance(told, list) or name in whole:
            if name in captions:
                raise DataError(
                    f"{place}: the picture is also in [{whole.get(name, 'an earlier item')}]; join their captions"
                )
            whole[name] = index
        captions.setdefault(name, []).extend(_captions(told, place, options))
        _same_id(item.get("image_id"), name, place, ids, known)
        labels[name] = _label(item, name, options)
    return [Entry(name, listed, labels[name]) for name, listed in captions.items()]


def _captions(told: Any, place: str, options: PirJsonOptions) -> list[str]:
    listed = told if isinstance(told, list) else [told]
    if not listed or not all(isinstance(text, str) for text in listed):
        wrong = next((text for text in listed if not isinstance(text, str)), told)
        raise DataError(f"{place}: key `caption` holds {kind(wrong)}, expected a text or a list of texts")
    return stripped(listed, place, options.blank)


def _same_id(given: Any, name: str, place: str, ids: dict[Any, str], known: dict[str, Any]) -> None:
    """Refuse an ``image_id`` that stands for two pictures, and a picture that has two."""
    if not isinstance(given, (int, str)):
        return
    if (other := ids.setdefault(given, name)) != name:
        raise DataError(f"{place}: image_id {given!r} also belongs to {other!r}; expected one id for each picture")
    if (first := known.setdefault(name, given)) != given:
        raise DataError(f"{place}: image_id is {given!r}, but {first!r} in an earlier item of the same picture")


def _label(item: dict[str, Any], name: str, options: PirJsonOptions) -> str | None:
    if options.labels != "field":
        return label_of(name, options.labels)
    label = item.get("label_name", item.get("label"))
    return None if label is None or label == "" else str(label)


def _without_folder(read: dict[str, list[Entry]]) -> dict[str, list[Entry]]:
    """Names without the folder of their split, where every name has it and they stay distinct."""
    bare = {}
    for split, listed in read.items():
        if not all(PurePosixPath(entry.name).parts[0] == split for entry in listed):
            return read
        names = [PurePosixPath(entry.name).relative_to(split).as_posix() for entry in listed]
        bare[split] = [replace(entry, name=name) for name, entry in zip(names, listed, strict=True)]
    everything = [entry.name for listed in bare.values() for entry in listed]
    if "." in everything:
        lone = [entry.name for listed in read.values() for entry in listed if len(PurePosixPath(entry.name).parts) < 2]
        raise DataError(f"the picture name {few(lone)} is the name of a split; expected a file inside that folder")
    return read if repeated(everything) else bare
