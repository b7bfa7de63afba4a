"""Reader of the text layout of AMFMN, GaLR and PE-RSITR (`NAME_precomp`): one caption a line, one picture name a line.

``train_caps.txt`` and ``test_caps.txt`` hold five consecutive lines per picture; ``train_filename.txt`` names each
picture once, ``test_filename.txt`` five times. Both forms are told apart by comparing lengths, as the loaders of those
repositories do. The train files hold train *and* validation pictures; the cut is PE-RSITR's (``train.py``: one shuffle
of the picture list in file order with Python's generator, the last fifth validates). A folder may say itself what validates:
by ``val_caps.txt`` and ``val_filename.txt``, or by both parts of the cut, as AMFMN's code and its heirs write them
(``train_caps_verify.txt``, ``val_filename_verify.txt`` and so on) and as SWAN hands them on.
"""

from __future__ import annotations

import random
from pathlib import Path

from petlbench.datasets.options import PrecompOptions
from petlbench.datasets.readers.alignment import explain_mismatch
from petlbench.datasets.readers.common import Entry, check_name, label_of, make_splits, repeated
from petlbench.datasets.readers.text_lines import read_lines
from petlbench.datasets.split import DataError, Split

FILES = ("train_caps.txt", "train_filename.txt", "test_caps.txt", "test_filename.txt")

Pair = tuple[Path, Path]
"""A file of captions and one of names."""


def read_precomp(folder: Path, images: Path, options: PrecompOptions | None = None) -> dict[str, Split]:
    """Read the text files of a folder.

    Args:
        folder: Where the text files lie.
        images: Folder of the pictures.
        options: How to read them.

    Returns:
        ``train``, ``val`` (unless ``val_share`` is 0) and ``test``. Train and val are in the order of the shuffle.

    Raises:
        DataError: A file is missing, or lines do not fit together; names file and line.
    """
    options = options or PrecompOptions()
    files = pairs(folder, options)
    read = {name: _pair(*pair, options) for name, pair in files.items()}
    home: dict[str, str] = {}
    for name, listed in read.items():
        both = [entry.name for entry in listed if home.setdefault(entry.name, name) != name]
        if both:
            raise DataError(
                f"{folder}: {len(both)} pictures are named in {files[home[both[0]]][1].name} and in {files[name][1].name}, "
                f"e.g. {both[0]!r}; a picture belongs to one split"
            )
    if options.cuts or "val" not in read:
        read["train"], read["val"] = _cut([*read["train"], *read.get("val", [])], options)
    return make_splits({name: listed for name, listed in read.items() if listed}, images, options)


def pairs(folder: Path, options: PrecompOptions | None = None) -> dict[str, Pair]:
    """The files that are read, by what they describe: ``train``, ``val`` where it has files of its own, ``test``.

    Args:
        folder: Where they lie.
        options: Whether train is cut by a rule; then the parts of an earlier cut are left alone, if the whole is there.

    Raises:
        DataError: Some are missing.
    """
    options = options or PrecompOptions()
    whole, test, val = (_named(folder, part) for part in ("train", "test", "val"))
    parts = {part: _named(folder, part, "_verify") for part in ("train", "val")}
    missing = [path.name for path in (*whole, *test) if not path.is_file()]
    cut = all(path.is_file() for pair in parts.values() for path in pair)
    if cut and test[0].is_file() and test[1].is_file() and (missing or not options.cuts):
        return {**parts, "test": test}
    if missing:
        raise DataError(f"{folder}: {', '.join(missing)} not found; expected the four files {', '.join(FILES)}")
    there = [path for path in val if path.is_file()]
    if len(there) == 1:
        lacking = next(path for path in val if path not in there)
        raise DataError(
            f"{folder}: {there[0].name} is there, but {lacking.name} is not; put it beside, or move the other away"
        )
    return {"train": whole, **({"val": val} if there else {}), "test": test}


def _named(folder: Path, part: str, ending: str = "") -> Pair:
    return folder / f"{part}_caps{ending}.txt", folder / f"{part}_filename{ending}.txt"


def _pair(caps: Path, filenames: Path, options: PrecompOptions) -> list[Entry]:
    captions, lines = read_lines(caps), read_lines(filenames)
    per = options.captions_per_image
    for path, found in ((caps, captions), (filenames, lines)):
        if not found:
            raise DataError(f"{path}: the file is empty; fetch it again")
    for number, line in enumerate(lines, 1):
        if not line:
            raise DataError(f"{filenames}:{number}: blank line, expected the name of a picture file")
        check_name(line, f"{filenames}:{number}")
    if len(captions) == len(lines) and per > 1:
        names = lines[::per]
        for index, line in enumerate(lines):
            if line != names[index // per]:
                raise DataError(explain_mismatch(caps, captions, filenames, lines, per))
        step = per
    elif len(captions) == per * len(lines):
        names, step = lines, 1
    else:
        raise DataError(explain_mismatch(caps, captions, filenames, lines, per))
    if twice := repeated(names):
        name, first, second = twice
        raise DataError(
            f"{filenames}:{second * step + 1}: {name!r} was already named on line {first * step + 1}; the lines of one "
            "picture must stand together and each picture be named once. Remove the second one and its captions."
        )
    if options.blank == "error":
        for number, caption in enumerate(captions):
            if not caption:
                raise DataError(
                    f"{caps}:{number + 1}: blank caption (of {names[number // per]}). "
                    "Write a caption, or use the option blank=drop."
                )
    return [
        Entry(name, captions[per * index : per * (index + 1)], label_of(name, options.labels))
        for index, name in enumerate(names)
    ]


def _cut(entries: list[Entry], options: PrecompOptions) -> tuple[list[Entry], list[Entry]]:
    """Train and validation entries."""
    if options.val_images is not None:
        return _cut_by_list(entries, Path(options.val_images))
    if not options.val_share:
        return entries, []
    shuffled = list(entries)
    random.Random(options.val_seed).shuffle(shuffled)
    kept = int(len(shuffled) * (1 - options.val_share))
    return shuffled[:kept], shuffled[kept:]


def _cut_by_list(entries: list[Entry], path: Path) -> tuple[list[Entry], list[Entry]]:
    if not path.is_file():
        raise DataError(f"{path}: the list of validation pictures (option val_images) is not found")
    by_name = {entry.name: entry for entry in entries}
    wanted: dict[str, int] = {}
    for number, name in enumerate(read_lines(path), 1):
        if name not in by_name:
            raise DataError(f"{path}:{number}: {name!r} is not named in train_filename.txt")
        if wanted.setdefault(name, number) != number:
            raise DataError(f"{path}:{number}: {name!r} was already listed on line {wanted[name]}")
    return [entry for entry in entries if entry.name not in wanted], [by_name[name] for name in wanted]
