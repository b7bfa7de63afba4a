"""Reader of ViLT-style ``.arrow`` files: Arrow IPC files, one for each part of the set, with the pictures inside.

Columns, as the writers of dandelin/ViLT make them (``vilt/utils/write_f30k_karpathy.py``): ``image`` (bytes of the
picture file), ``caption`` (list of texts), ``image_id`` (file name), ``split``. The code of IEFT and CUP
(TangXu-Group/Cross-modal-remote-sensing-image-and-text-retrieval-models) also reads ``path``. petlbench's own writer adds
``label``, the scene class. Pictures stay in the memory-mapped files: nothing is extracted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from petlbench.datasets.options import FileOptions, SplitOptions
from petlbench.datasets.readers.arrow_file import ArrowImage, open_arrow
from petlbench.datasets.readers.common import (
    Entry,
    few,
    label_of,
    make_splits,
    repeated,
    stripped,
    without_repeats,
)
from petlbench.datasets.readers.karpathy_check import check_against_karpathy
from petlbench.datasets.split import SPLITS, DataError, Split

REQUIRED = ("image", "caption", "image_id")
"""Columns without which a file is refused."""


class ViltArrowOptions(SplitOptions):
    """Options of the reader of ViLT-style files.

    Attributes:
        annotations: Folder of the files, absolute or relative to the root; in place of the card's ``files.annotations``.
        stem: What the file names begin with, e.g. ``ucm_caption_karpathy_new``; found by itself where the folder holds
            files of one stem only.
        pattern: How a file is named after the stem and the part of the set.
        parts: Which parts make a split, where it is not the part of the same name alone: ``{train: [train, restval]}``
            for COCO; ``{train: [train, val]}`` trains on the validation pictures too, as ViLT and IEFT do;
            ``{val: []}`` does without a split; ``{unused: [restval]}`` leaves a file aside.
        captions: Keep every caption, or each distinct string of a picture once, as ViLT and IEFT do.
        labels: Where the scene class comes from: the column ``label`` (where there is one), the prefix of the file name,
            the UC Merced number, or nowhere.
        split_column: Whether the column ``split`` must name the file's own part.
        karpathy_json: Karpathy JSON that names and captions are compared with, absolute or relative to the root.
        blank: As for other readers: stop at captions without a visible character, leave them out, or keep them.
    """

    annotations: str | None = None
    stem: str | None = Field(default=None, min_length=1)
    pattern: str = "{stem}_{split}.arrow"
    parts: dict[Literal["train", "val", "test", "unused"], list[str]] = {}
    captions: Literal["all", "distinct"] = "all"
    labels: Literal["column", "prefix", "ucm_number", "none"] = "column"
    split_column: Literal["check", "ignore"] = "check"
    karpathy_json: str | None = None
    blank: Literal["error", "drop", "keep"] = "error"

    @field_validator("pattern")
    @classmethod
    def _one_split(cls, pattern: str) -> str:
        if pattern.count("{split}") != 1 or pattern.count("{stem}") > 1 or "/" in pattern:
            raise ValueError("expected a file name with {split} once and {stem} at most once")
        return pattern

    @field_validator("parts")
    @classmethod
    def _test_is_apart(cls, parts: dict[str, list[str]]) -> dict[str, list[str]]:
        for name, listed in parts.items():
            if len(set(listed)) < len(listed):
                raise ValueError(f"{name} lists a part twice")
        resolved = {split: set(parts.get(split, [split])) for split in SPLITS}
        for split in ("train", "val"):
            if both := resolved["test"] & resolved[split]:
                raise ValueError(
                    f"part {min(both)!r} is in test and in {split}; nothing else may read the test pictures. To measure "
                    "what choosing on test gives, set protocol.selection=test_max"
                )
        return parts

    def parts_of(self, split: str) -> list[str]:
        """The parts that make a split."""
        return self.parts.get(split, [split])  # type: ignore[call-overload]


def read_vilt_arrow(folder: Path, options: ViltArrowOptions | None = None) -> dict[str, Split]:
    """Read the files of a folder.

    Args:
        folder: Where the files lie.
        options: How to read them.

    Returns:
        The splits in the order train, val, test, pictures in the order of the rows; captions without surrounding white
        space.

    Raises:
        DataError: A file is missing, is of another kind, lacks a column or contradicts itself, its name, or the
            Karpathy JSON; names file and row.
    """
    options = options or ViltArrowOptions()
    if not folder.is_dir():
        raise DataError(f"{folder}: expected the folder of the .arrow files, found a file; see the option annotations")
    stem = options.stem or _find_stem(folder, options)
    wanted = {split: options.parts_of(split) for split in SPLITS}
    parts = {
        part: _read_part(_file(folder, stem, part, options), part, options)
        for part in dict.fromkeys(part for listed in wanted.values() for part in listed)
    }
    _all_read(folder, stem, parts, options)
    _named_once(parts.values())
    if options.karpathy_json is not None:
        check_against_karpathy(parts, Path(options.karpathy_json), folder, distinct=options.captions == "distinct")
    entries = {split: [e for p in listed for e in parts[p]] for split, listed in wanted.items() if listed}
    splits = make_splits(entries, folder, FileOptions(blank=options.blank))
    if options.captions == "distinct":
        return {name: without_repeats(split) for name, split in splits.items()}
    return splits


def _file(folder: Path, stem: str, part: str, options: ViltArrowOptions) -> Path:
    path = folder / options.pattern.replace("{split}", part).replace("{stem}", stem)
    if not path.is_file():
        raise DataError(
            f"{path}: not found, though a split is made of it. Files there: {few(_arrow_names(folder))}. "
            f"Other names: options stem, pattern. To do without it: option parts, e.g. parts={{{part}: []}}"
        )
    return path


def _arrow_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.arrow"))


def _name_pattern(options: ViltArrowOptions, stem: str, part: str) -> re.Pattern[str]:
    escaped = re.escape(options.pattern)
    return re.compile(escaped.replace(re.escape("{stem}"), stem).replace(re.escape("{split}"), part))


def _find_stem(folder: Path, options: ViltArrowOptions) -> str:
    if "{stem}" not in options.pattern:
        return ""
    pattern = _name_pattern(options, "(?P<stem>.+)", f"(?:{'|'.join(SPLITS)})")
    names = _arrow_names(folder)
    stems = sorted({match["stem"] for name in names if (match := pattern.fullmatch(name))})
    if len(stems) == 1:
        return stems[0]
    if stems:
        raise DataError(f"{folder}: files of several stems: {', '.join(stems)}. Choose one, e.g. stem={stems[0]}")
    raise DataError(
        f"{folder}: no file is named like {options.pattern} for a split train, val or test. "
        f"Files there: {few(names)}. Other names: options annotations (the folder), stem, pattern"
    )


def _all_read(folder: Path, stem: str, parts: Iterable[str], options: ViltArrowOptions) -> None:
    """Refuse to leave a file of the set aside unasked."""
    pattern = _name_pattern(options, re.escape(stem), "(?P<part>[A-Za-z0-9]+)")
    done_without = [split for split in SPLITS if not options.parts_of(split)]
    known = {*parts, *done_without, *options.parts.get("unused", ())}
    for name in _arrow_names(folder):
        match = pattern.fullmatch(name)
        if match and match["part"] not in known and (rows := len(open_arrow(folder / name))):
            part = match["part"]
            raise DataError(
                f"{folder / name}: no split reads this file (pictures: {rows:,}). Say what to do with it by the option parts: "
                f"parts={{train: [train, {part}]}} reads it, parts={{unused: [{part}]}} leaves it aside"
            )


def _named_once(parts: Iterable[list[Entry]]) -> None:
    images = [entry.image for listed in parts for entry in listed if isinstance(entry.image, ArrowImage)]
    if twice := repeated(image.name for image in images):
        name, first, second = twice
        one, other = images[first], images[second]
        raise DataError(
            f"{other.path}: row {other.row} and {one.path.name}: row {one.row} both have the image_id {name!r}; each "
            "picture must occur once. Join the captions in one row, or remove one"
        )


def _read_part(path: Path, part: str, options: ViltArrowOptions) -> list[Entry]:
    table = open_arrow(path)
    if missing := [name for name in REQUIRED if name not in table.column_names]:
        found = ", ".join(table.column_names) or "none"
        raise DataError(
            f"{path}: column {', '.join(missing)} is missing; found {found}; expected {', '.join(REQUIRED)} "
            "and usually split, as ViLT's writers make them"
        )
    if not len(table):  # the columns of an empty table have no type
        return []
    kind = table.schema.field("image").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)):
        raise DataError(f"{path}: column image holds {kind}, expected binary, the bytes of a picture file")
    if nulls := table["image"].null_count:
        raise DataError(
            f"{path}: no picture in {nulls:,} of {len(table):,} rows (column image is null there); write the file anew"
        )
    names = [name or "" for name in _texts(table, "image_id", path)]
    if "" in names:
        raise DataError(f"{path}: row {names.index('')} has no image_id, expected the name of the picture file")
    _right_part(table, path, part, names, options)
    captions = _captions(table, path, names, options)
    if options.labels == "column":
        labels = _texts(table, "label", path) if "label" in table.column_names else [None] * len(names)
    else:
        labels = [label_of(name, options.labels) for name in names]
    images = [ArrowImage(path, row, name) for row, name in enumerate(names)]
    return [Entry(*facts) for facts in zip(names, captions, labels, images, strict=True)]


def _texts(table: pa.Table, column: str, path: Path) -> list[str | None]:
    try:
        return table[column].cast(pa.string()).to_pylist()
    except pa.ArrowException as error:
        kind = table.schema.field(column).type
        raise DataError(f"{path}: column {column} holds {kind}, expected texts ({error})") from error


def _right_part(table: pa.Table, path: Path, part: str, names: list[Any], options: ViltArrowOptions) -> None:
    if options.split_column == "ignore" or "split" not in table.column_names:
        return
    found = _texts(table, "split", path)
    wrong = [row for row, name in enumerate(found) if name != part]
    if wrong:
        raise DataError(
            f"{path}: row {wrong[0]} ({names[wrong[0]]}) says split {found[wrong[0]]!r}, but the file is named as {part!r} "
            f"({len(wrong):,} of {len(found):,} rows). Rename the file, or trust its name by split_column=ignore"
        )


def _captions(table: pa.Table, path: Path, names: list[Any], options: ViltArrowOptions) -> list[list[str]]:
    kind = table.schema.field("caption").type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not (listed and any(test(kind.value_type) for test in texts)):
        raise DataError(f"{path}: column caption holds {kind}, expected a list of texts for each picture")
    captions = []
    for row, told in enumerate(table["caption"].to_pylist()):
        place = f"{path}: row {row} ({names[row]})"
        if told is None or None in told or (not told and options.blank == "error"):
            raise DataError(f"{place}: found the captions {told}, expected a list with at least one text")
        captions.append(stripped(told, place, options.blank))
    return captions
