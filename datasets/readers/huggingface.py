"""Reader of Hugging Face data sets, through the library ``datasets``: from a folder or from the hub.

A folder is what ``save_to_disk`` wrote, or Parquet files, or pictures with ``metadata.csv`` or ``metadata.jsonl`` (the library's
image folder). Code that comes with a data set is never run. The library's own files go to a folder of their own in
petlbench's cache; the user's folder is only read.
"""

from __future__ import annotations

import hashlib
import importlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from petlbench.datasets.cache import LIBRARY, cache_folder
from petlbench.datasets.options import FileOptions, HuggingFaceOptions
from petlbench.datasets.readers.columns import IMAGE, Row, choose, gather
from petlbench.datasets.readers.common import Entry, make_splits
from petlbench.datasets.readers.split_files import split_named
from petlbench.datasets.readers.stored_picture import decoded
from petlbench.datasets.split import DataError, FileImage, ImageRef, Split

NAMES = ("file_name", "filename", "image_name", "name", "image_id")
"""Columns that usually name a picture."""

SAVED = ("dataset_dict.json", "state.json")
"""One of these marks a folder that ``save_to_disk`` wrote."""


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        place: A folder, absolute, or a name on the hub.
        hub: Whether it is on the hub.
        config: Its configuration, where it has several.
        revision: Its version on the hub.
    """

    place: str
    hub: bool = False
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class StoredImage:
    """A picture in a row of a data set; it holds its place only, so it travels to other processes.

    Attributes:
        source: The data set.
        part: The split's own name there.
        column: Column of the picture.
        row: Row, from 0.
        name: What the set calls it.
    """

    source: Source
    part: str
    column: str
    row: int
    name: str

    def fingerprint(self) -> str:
        """Size and modification time of the files behind the split, and the row."""
        return f"{_files_mark(self.source, self.part)}|{self.column}|{self.row}"

    def content(self) -> bytes:
        """Bytes of the picture file, as stored."""
        cell = _undecoded(self.source, self.part, self.column)[self.row][self.column]
        if not isinstance(cell, Mapping) or not cell.get("bytes"):
            raise DataError(f"{self._place}: column `{self.column}` holds no picture there; fill it or drop the row")
        return bytes(cell["bytes"])

    def open(self) -> Image.Image:
        """Decode the whole picture."""
        return decoded(self.content(), self._place)

    @property
    def _place(self) -> str:
        return f"{self.source.place}: {self.part}[{self.row}] ({self.name})"


def read_huggingface(folder: Path | None, options: HuggingFaceOptions | None = None) -> dict[str, Split]:
    """Read a data set.

    Args:
        folder: Its folder; None where the option ``repo`` names it on the hub.
        options: How to read it.

    Returns:
        The splits in the order train, val, test. Pictures are named by ``name_column``, else by the file they come
        from, else by their row. Rows of one picture are joined. Captions are without surrounding white space.

    Raises:
        DataError: It cannot be loaded, or a column is missing or wrong; names split and row.
    """
    options = options or HuggingFaceOptions()
    if options.repo is None and folder is None:
        raise DataError("a Hugging Face data set needs a folder, or its name on the hub by the option repo=OWNER/NAME")
    source = Source(str(folder), config=options.config)
    if options.repo is not None:
        source = Source(options.repo, hub=True, config=options.config, revision=options.revision)
    entries: dict[str, list[Entry]] = {}
    known: set[str] = set()
    for part in _load(source):
        split = options.splits.get(part) or split_named(part)
        if split is None and len(_load(source)) > 1:
            raise DataError(
                f"{source.place}: split {part!r} is unknown; say what it means by the option splits, e.g. "
                f"splits={{{part}: train}} (or val, test, drop)"
            )
        if split == "drop":
            continue
        found = _read_part(source, part, split or "train", options)
        names = {entry.name for entry in found}
        if both := known & names:
            raise DataError(f"{source.place}: the picture {min(both)!r} is in two splits; a picture belongs to one")
        known |= names
        entries.setdefault(split or "train", []).extend(found)
    if not entries:
        raise DataError(f"{source.place}: no rows to read")
    return make_splits(entries, Path(), FileOptions(blank=options.blank))


def _read_part(source: Source, part: str, split: str, options: HuggingFaceOptions) -> list[Entry]:
    datasets = _library()
    data = _load(source)[part]
    told = f"{source.place}: {part}"
    if not len(data):
        raise DataError(f"{told}: the split has no rows; leave it out by splits={{{part}: drop}}")
    pictures = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    column = options.image_column or next(
        (name for name in pictures if name.lower() in IMAGE), next(iter(pictures), None)
    )
    if column is None or column not in pictures:
        there = ", ".join(f"{name} ({_kind(feature)})" for name, feature in data.features.items())
        raise DataError(
            f"{told}: no column of pictures{f' `{column}`' if column else ''}; expected one of the feature Image, but the columns "
            f"are {there}. A table of file names is read by format=table."
        )
    chosen = choose(data.column_names, options.model_copy(update={"image_column": column}), told)
    names, files = _names(source, part, column, options)
    # A row's own split column is not asked: the library has made the splits.
    wanted = [*chosen.captions, *([chosen.label] if chosen.label else [])]
    cells = data.select_columns(list(dict.fromkeys(wanted)))[:]
    if chosen.label is not None and isinstance(data.features[chosen.label], datasets.ClassLabel):
        feature = data.features[chosen.label]
        cells[chosen.label] = [None if n is None or n < 0 else feature.int2str(n) for n in cells[chosen.label]]
    rows = [
        Row(f"{told}[{row}]", {column: names[row], **{key: cells[key][row] for key in wanted}})
        for row in range(len(data))
    ]
    images: dict[str, ImageRef] = {}
    for row, (name, file) in enumerate(zip(names, files, strict=True)):
        images.setdefault(name, StoredImage(source, part, column, row, name) if file is None else FileImage(file, name))
    entries = gather(rows, replace(chosen, split=None), options, split)[split]
    return [replace(entry, image=images[entry.name]) for entry in entries]


def _names(source: Source, part: str, column: str, options: HuggingFaceOptions) -> tuple[list[str], list[Path | None]]:
    """Name of the picture of each row, and its file where the picture lies outside the data set's own files."""
    data = _load(source)[part]
    paths, outside = [], []
    for batch in data.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        cells = batch[column].combine_chunks()
        paths += cells.field("path").to_pylist()
        outside += cells.field("bytes").is_null().to_pylist()
    files = [
        _allowed(Path(path), source) if without and path else None for path, without in zip(paths, outside, strict=True)
    ]
    for row, (path, without) in enumerate(zip(paths, outside, strict=True)):
        if without and not path:
            raise DataError(
                f"{source.place}: {part}[{row}]: column `{column}` holds no picture; fill it or drop the row"
            )
    named = options.name_column or next((name for name in NAMES if name in data.column_names), None)
    if named is not None and named not in data.column_names:
        raise DataError(f"{source.place}: {part}: no column `{named}`; the columns are {', '.join(data.column_names)}")
    if named is not None:
        cells = data.select_columns([named])[:][named]
        names = ["" if cell is None else str(cell).strip() for cell in cells]
        if "" in names:
            raise DataError(f"{source.place}: {part}[{names.index('')}]: column `{named}` is empty; name every picture")
        if (twice := _ambiguous(names, files, source, part, column)) is None:
            return names, files
        if options.name_column is not None:
            raise DataError(
                f"{source.place}: {part}: column `{named}` names different pictures {twice!r}; name a column (option "
                "name_column) that tells them apart"
            )
    if all(paths):
        names = [PurePosixPath(path).name.strip() for path in paths]
        if _ambiguous(names, files, source, part, column) is None:
            return names, files
        if all(files):
            base = Path(source.place)
            return [f.relative_to(base).as_posix() if f.is_relative_to(base) else str(f) for f in files if f], files
    return [f"{part}-{row:06d}" for row in range(len(data))], files


def _ambiguous(names: list[str], files: list[Path | None], source: Source, part: str, column: str) -> str | None:
    """The first name that stands for different pictures, told by their files, else by their content; or None."""

    def mark(row: int) -> Path | bytes:
        content = StoredImage(source, part, column, row, names[row]).content
        return files[row] or hashlib.sha256(content()).digest()

    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        rows[name].append(row)
    return next((name for name, listed in rows.items() if len(listed) > 1 and len(set(map(mark, listed))) > 1), None)


def _allowed(path: Path, source: Source) -> Path:
    """A picture file that a data set names, which must lie in its folder or in the library's caches."""
    datasets = _library()
    roots = [cache_folder(), Path(datasets.config.HF_CACHE_HOME), Path(datasets.config.HF_DATASETS_CACHE)]
    roots += [] if source.hub else [Path(source.place)]
    if not any(path.resolve().is_relative_to(root.expanduser().resolve()) for root in roots):
        raise DataError(
            f"{source.place}: names the picture {path}, which lies outside of it; such a data set is not read"
        )
    return path


def _library() -> Any:
    """Hugging Face's `datasets`; by name, so that no tool takes the folder of that name for it."""
    return importlib.import_module("datasets")


@lru_cache(maxsize=8)
def _load(source: Source) -> Mapping[str, Any]:
    """The splits by their own names."""
    datasets = _library()
    datasets.disable_progress_bars()
    try:
        if not source.hub and any((Path(source.place) / name).is_file() for name in SAVED):
            loaded = datasets.load_from_disk(source.place)
        else:
            loaded = datasets.load_dataset(
                source.place,
                name=source.config,
                revision=source.revision,
                cache_dir=str(cache_folder() / LIBRARY),
            )
    except Exception as error:  # the library raises what its many parts raise
        way = (
            "check the folder; it must be what save_to_disk wrote, or hold Parquet files, or pictures with metadata.csv"
        )
        if source.hub:
            way = (
                "check the name, and the network; a private set needs `hf auth login`, and a set that comes with code is not "
                "read: save it once by save_to_disk elsewhere"
            )
        lines = str(error).strip().splitlines() or [""]
        raise DataError(
            f"{source.place}: cannot be loaded ({type(error).__name__}: {lines[0][:300]}); {way}"
        ) from error
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    return {part: _with_pictures(data) for part, data in parts.items()}


def _with_pictures(data: Any) -> Any:
    """The rows with columns of files' bytes as pictures, where none is one: pandas keeps the bytes, but not what they are."""
    datasets = _library()
    if any(isinstance(feature, datasets.Image) for feature in data.features.values()):
        return data
    for name, feature in data.features.items():
        stored = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
        if stored or getattr(feature, "dtype", None) in ("binary", "large_binary"):
            data = data.cast_column(name, datasets.Image())
    return data


@lru_cache(maxsize=32)
def _undecoded(source: Source, part: str, column: str) -> Any:
    datasets = _library()
    return _load(source)[part].select_columns([column]).cast_column(column, datasets.Image(decode=False))


@lru_cache(maxsize=32)
def _files_mark(source: Source, part: str) -> str:
    marks = []
    for file in _load(source)[part].cache_files:
        try:
            stat = Path(file["filename"]).stat()
        except OSError as error:
            raise DataError(
                f"{file['filename']}: cannot be read ({error.strerror}); it belongs to {source.place}"
            ) from error
        marks.append(f"{file['filename']}|{stat.st_size}|{stat.st_mtime_ns}")
    return "|".join(marks)


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)
