"""Reader of webdataset tar files: members that share a name up to the first dot are one sample.

A sample has a picture (``.jpg``, ``.png``, ...) and captions: in ``.txt``, one a line, or in ``.json`` under a usual key. The class
is in ``.cls`` or in the JSON. Which split a tar file belongs to is told by its name (``train-000000.tar``), by its folder, by the
option ``parts``, or by the key ``split`` of the JSON members.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from petlbench.datasets.options import FileOptions, WebDatasetOptions
from petlbench.datasets.picture_folder import PICTURES
from petlbench.datasets.readers.columns import CAPTION, CLASS, IMAGE, SPLIT, resolve_split
from petlbench.datasets.readers.common import Entry, few, label_of, make_splits, repeated, stripped
from petlbench.datasets.readers.json_file import kind
from petlbench.datasets.readers.split_files import split_named
from petlbench.datasets.readers.tar_file import Member, TarImage, members, read_member
from petlbench.datasets.split import DataError, Split

_EXTENSIONS = tuple(suffix.removeprefix(".") for suffix in PICTURES)
TEXT_LIMIT = 16 * 2**20
"""Bytes that a member of text may have."""


@dataclass
class _Sample:
    shard: Path
    key: str
    pictures: list[Member] = field(default_factory=list)
    others: dict[str, Member] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.shard}: sample {self.key}"


@dataclass(frozen=True)
class _Read:
    image: TarImage
    captions: list[str]
    label: str | None
    split: str | None


def read_webdataset(annotations: Path, options: WebDatasetOptions | None = None) -> dict[str, Split]:
    """Read the tar files of a folder and of its sub-folders, or one tar file.

    Args:
        annotations: The folder or the file.
        options: How to read them.

    Returns:
        The splits in the order train, val, test, samples in the order of file names and members; all in ``train``
        where nothing tells of splits. Captions are without surrounding white space.

    Raises:
        DataError: A tar file is packed, cut off or unsafe, or a sample lacks picture or caption; names file and sample.
    """
    options = options or WebDatasetOptions()
    shards = tar_files(annotations)
    if not shards:
        raise DataError(f"{annotations}: no .tar files there; expected e.g. train-000000.tar")
    base = annotations if annotations.is_dir() else annotations.parent
    read: list[_Read] = []
    for shard in shards:
        part = _split_of(shard, base, options)
        samples = [_sample(sample, part, options) for sample in _samples(shard)]
        if not samples:
            raise DataError(f"{shard}: no samples inside; pack the set again")
        read += samples
    return _splits(_with_distinct_names(read, base), annotations, options)


def tar_files(annotations: Path) -> list[Path]:
    """The tar files at a path, one folder deep, in the order of their names; packed ones too, which reading refuses."""
    if annotations.is_file():
        return [annotations]
    wanted = ("*.tar", "*/*.tar", "*.tar.gz", "*.tgz")
    return sorted(path for pattern in wanted for path in annotations.glob(pattern))


def _splits(read: list[_Read], source: Path, options: WebDatasetOptions) -> dict[str, Split]:
    told = {sample.split for sample in read}
    if None in told and len(told) > 1:
        lone = [s.image.path.name for s in read if s.split is None]
        raise DataError(
            f"{source}: some samples belong to a split, others to none: {few(list(dict.fromkeys(lone)))}. Name the files "
            "after their split, or say what they are by the option parts, e.g. parts={shard-00: train}"
        )
    listed: dict[str, list[Entry]] = {}
    for sample in (sample for sample in read if sample.split != "drop"):
        entry = Entry(sample.image.name, sample.captions, sample.label, sample.image)
        listed.setdefault(sample.split or "train", []).append(entry)
    if not listed:
        raise DataError(f"{source}: no samples are left; see the option splits")
    return make_splits(listed, source, FileOptions(blank=options.blank))


def _split_of(shard: Path, base: Path, options: WebDatasetOptions) -> str | None:
    for begin, told in sorted(options.parts.items(), key=lambda part: -len(part[0])):  # shard-01 before shard-0
        if shard.relative_to(base).as_posix().startswith(begin) or shard.name.startswith(begin):
            return told
    for name in (shard.name, shard.parent.name if shard.parent != base else ""):
        words = [word for word in re.split(r"[^A-Za-z]+", name.split(".")[0]) if word]
        found = {part for word in words if (part := options.splits.get(word) or split_named(word))}
        if len(found) > 1:
            raise DataError(f"{shard}: the name speaks of {' and '.join(sorted(found))}; say which by the option parts")
        if found:
            return found.pop()
    return None


def _samples(shard: Path) -> list[_Sample]:
    """Members by the part of their name before the first dot of the file name."""
    found: dict[str, _Sample] = {}
    for member in members(shard):
        path = PurePosixPath(member.name)
        if path.name.startswith("."):  # what some packers leave behind
            continue
        stem, _, extension = path.name.partition(".")
        key = (path.parent / stem).as_posix()
        sample = found.setdefault(key, _Sample(shard, key))
        extension = extension.lower()
        if extension in sample.others or extension in (p.name.lower().partition(".")[2] for p in sample.pictures):
            raise DataError(f"{sample.place}: two members end in .{extension}; expected one of each kind for a sample")
        if extension in _EXTENSIONS:
            sample.pictures.append(member)
        else:
            sample.others[extension] = member
    return list(found.values())


def _sample(sample: _Sample, part: str | None, options: WebDatasetOptions) -> _Read:
    if len(sample.pictures) != 1:
        found = [PurePosixPath(m.name).name for m in (*sample.pictures, *sample.others.values())]
        raise DataError(
            f"{sample.place}: {len(sample.pictures)} pictures, expected one ({', '.join(PICTURES)}); its members: {few(found)}"
        )
    picture = sample.pictures[0]
    told = _json(sample)
    captions = _captions(sample, told, options)
    if part is None and (word := next((str(told[key]) for key in SPLIT if told.get(key)), None)) is not None:
        part = resolve_split(word, options.splits, sample.place)
    name = next((str(told[key]) for key in IMAGE if isinstance(told.get(key), str)), None)
    name = PurePosixPath(name).name if name else f"{sample.key}.{picture.name.rpartition('.')[2]}"
    label = _label(sample, told) if options.labels == "member" else label_of(name, options.labels)
    image = TarImage(sample.shard, picture.offset, picture.size, name)
    return _Read(image, captions, label, part)


def _json(sample: _Sample) -> dict[str, Any]:
    if "json" not in sample.others:
        return {}
    try:
        told = json.loads(_text(sample, "json"))
    except json.JSONDecodeError as error:
        raise DataError(f"{sample.place}: its .json is not valid JSON ({error})") from error
    if not isinstance(told, dict):
        raise DataError(f"{sample.place}: its .json holds {kind(told)}, expected an object")
    return told


def _captions(sample: _Sample, told: dict[str, Any], options: WebDatasetOptions) -> list[str]:
    keys = [options.caption_keys] if isinstance(options.caption_keys, str) else options.caption_keys
    keys = keys or [key for key in CAPTION if key in told][:1]
    texts: list[Any] = []
    if options.captions == "json" or (options.captions is None and keys):
        for key in keys:
            value = told.get(key)
            texts += value if isinstance(value, list) else [value]
        texts = [text.get("raw") if isinstance(text, dict) else text for text in texts]
    elif "txt" in sample.others:
        texts = list(_text(sample, "txt").removesuffix("\n").split("\n"))
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{sample.place}: no captions; expected a .txt member with one a line, or a .json member with a text or list under "
            f"{', '.join(CAPTION[:5])} (found: .{', .'.join(sorted(sample.others)) or 'nothing'}); other keys: option caption_keys"
        )
    return stripped(texts, sample.place, options.blank)


def _label(sample: _Sample, told: dict[str, Any]) -> str | None:
    if "cls" in sample.others:
        return _text(sample, "cls").strip() or None
    return next((str(told[key]) for key in CLASS if told.get(key) not in (None, "")), None)


def _text(sample: _Sample, extension: str) -> str:
    member = sample.others[extension]
    if member.size > TEXT_LIMIT:
        raise DataError(f"{sample.place}: its .{extension} has {member.size:,} bytes, expected text")
    try:
        return read_member(sample.shard, member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{sample.place}: its .{extension} is not UTF-8 text (byte {error.start})") from error


def _with_distinct_names(read: list[_Read], base: Path) -> list[_Read]:
    """The samples, named after their tar file too where names repeat, as numbered keys do."""
    if not repeated(sample.image.name for sample in read):
        return read
    renamed = []
    for sample in read:
        shard = sample.image.path.relative_to(base).with_suffix("").as_posix()
        renamed.append(replace(sample, image=replace(sample.image, name=f"{shard}/{sample.image.name}")))
    if twice := repeated(sample.image.name for sample in renamed):
        raise DataError(f"{base}: two pictures are named {twice[0]!r}; remove one of them")
    return renamed
