"""Telling the format of a folder from its files: what it found, and why it takes it for that.

Names, and the beginnings of files (of tables, all), are looked at, in the folder itself, else one folder below. Where several
formats or several sets would fit, nothing is guessed: the candidates are listed with how to name one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from petlbench.datasets.card import SELF_CONTAINED, Files, Format
from petlbench.datasets.options import TableOptions
from petlbench.datasets.picture_folder import PICTURES, entries, find_pictures
from petlbench.datasets.readers.columns import IMAGE
from petlbench.datasets.readers.split_files import by_stem, split_named, stem_and_split
from petlbench.datasets.readers.table import SUFFIXES, is_binary, peek
from petlbench.datasets.split import DataError

_HEAD = 2**16
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class Found:
    """A format that a folder may be in.

    Attributes:
        format: Which reader understands it.
        files: Where its files lie, relative to the folder.
        options: Options of the reader that follow from the files.
        why: What speaks for it, for the user.
        picture: Name of a picture, for finding the folder of the pictures.
    """

    format: Format
    files: Files
    why: str
    options: dict[str, Any] = field(default_factory=dict)
    picture: str = ""

    @property
    def line(self) -> str:
        """One line for the user."""
        return f"{self.format}: {self.why}"


def detect(
    folder: Path,
    format_name: str | None = None,
    annotations: str | None = None,
    hints: Mapping[str, Any] | None = None,
) -> Found:
    """The one format that a folder is in.

    Args:
        folder: The folder.
        format_name: Only this format, where the user names one.
        annotations: Only this file or folder inside, where the user names one.
        hints: Options as given by the user; names of columns among them are heeded.

    Raises:
        DataError: There is none, or several; says what was found and how to name one.
    """
    found = candidates(folder, format_name, annotations, hints)
    if len(found) == 1:
        return found[0]
    if found:
        lines = "\n".join(f"- {one.line}\n  {_way(one)}" for one in found)
        raise DataError(f"{folder}: the files fit {len(found)} descriptions; name the one you mean:\n{lines}")
    what = f"of format {format_name}" if format_name else "of a known format"
    there = sorted(path.name + "/" * path.is_dir() for path in entries(folder))
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "") or "nothing"
    raise DataError(
        f"{folder}: no files {what} found{f' at {annotations}' if annotations else ''} (there: {shown}). Expected captions as "
        "Karpathy JSON, precomp text files, train/val/test JSON, CSV/TSV/Parquet/JSON tables, webdataset .tar, ViLT .arrow, or a "
        f"folder of Hugging Face's save_to_disk; see docs/data_formats.md{_reasons(folder, annotations, _columns(hints))}"
    )


def _reasons(folder: Path, annotations: str | None, columns: TableOptions) -> str:
    """Why files that look like tables are none, so that a small mistake in one is not hidden."""
    start = folder / annotations if annotations else folder
    paths = [start] if start.is_file() else entries(start) if start.is_dir() else []
    told = []
    for path in (path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()):
        try:
            peek(path, columns)
        except DataError as error:
            told.append(f"\n- {error}")
    return "".join(told[:3])


def _columns(hints: Mapping[str, Any] | None) -> TableOptions:
    """What the user says of columns; what is wrong with it is told when the options are checked."""
    named = ("image_column", "caption_columns", "delimiter")
    try:
        return TableOptions.model_validate({key: (hints or {}).get(key) for key in named})
    except ValidationError:
        return TableOptions()


def candidates(
    folder: Path,
    format_name: str | None = None,
    annotations: str | None = None,
    hints: Mapping[str, Any] | None = None,
) -> list[Found]:
    """Every format that a folder may be in, with the folder of its pictures; arguments as of :func:`detect`."""
    columns = _columns(hints)
    if not folder.is_dir():
        raise DataError(
            f"{folder}: {'is a file' if folder.exists() else 'does not exist'}, expected the folder of a set"
        )
    if annotations is not None:
        start = folder / annotations
        looked = _file(start, columns) if start.is_file() else _folder(start, columns, format_name)
        raw = list(looked) if start.exists() else []
    else:
        raw = list(_folder(folder, columns, format_name))
        if not raw:
            raw = [one for inner in entries(folder) if inner.is_dir() for one in _folder(inner, columns, format_name)]
    told = hints or {}
    raw = [one for one in raw if all(told.get(key) in (None, value) for key, value in one.options.items())]
    kept = {(one.format, one.files.annotations, *one.options.values()): one for one in raw[::-1]}
    return [_placed(one, folder) for one in list(kept.values())[::-1] if format_name in (None, one.format)]


def _folder(folder: Path, columns: TableOptions, wanted: str | None) -> Iterator[Found]:
    names = {path.name: path for path in entries(folder) if path.suffix.lower() not in PICTURES and path.is_file()}
    if saved := next((name for name in ("dataset_dict.json", "state.json") if name in names), None):
        yield _found("huggingface", folder, f"{saved} is what Hugging Face's save_to_disk writes")
        return
    if wanted != "table" and (meta := next((name for name in _METADATA if _is_there(folder, name)), None)):
        yield _found("huggingface", folder, f"{meta} beside pictures is the layout of Hugging Face's image folder")
        names = {name: path for name, path in names.items() if name not in _METADATA}
    for end in (".txt", "_verify.txt"):
        if {f"train_caps{end}", f"train_filename{end}"} <= names.keys():
            first = _first_line(names[f"train_filename{end}"])
            why = f"train_caps{end} and train_filename{end} are the text layout"
            yield _found("precomp", folder, why, picture=first)
            break
    tars = [*folder.glob("*.tar"), *folder.glob("*.tar.gz"), *folder.glob("*.tgz")]
    below = [] if tars else list(folder.glob("*/*.tar"))
    if tars or any(split_named(path.parent.name) for path in below):
        count = len(tars or below)
        yield _found("webdataset", folder, f"{count} tar file{'s' * (count != 1)}")
    yield from _arrow(folder)
    yield from _families(folder, names, columns)


def _file(path: Path, columns: TableOptions) -> Iterator[Found]:
    suffix = path.suffix.lower()
    if suffix == ".json":
        yield from filter(None, [_json(path, columns)])
    elif suffix == ".tar":
        yield _found("webdataset", path, f"{path.name} is a tar file")
    elif suffix in (*SUFFIXES, ".txt"):
        yield from filter(None, [_table(path, [path], columns)])


def _families(folder: Path, names: dict[str, Path], columns: TableOptions) -> Iterator[Found]:
    """JSON files and tables: one by one, or together where each is of one split."""
    families: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(names.values()):
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            named = stem_and_split(path)
            families.setdefault((named[0] if named else path.name, suffix), []).append(path)
    for (stem, suffix), paths in families.items():
        if stem_and_split(paths[0]) is None:
            yield from _file(paths[0], columns)
        elif suffix == ".json" and (head := _json_head(paths[0])) is not None and "image" in head and "caption" in head:
            told = ", ".join(path.name for path in paths)
            why = f"{told}: lists of objects with `image` and `caption`, as PIR and HarMA have them"
            yield _found("pir-json", folder, why, {"stem": stem} if stem else {}, str(head["image"]))
        else:
            yield from filter(None, [_table(folder, paths, columns)])


def _json(path: Path, columns: TableOptions) -> Found | None:
    """What a single JSON file is."""
    begin = _head(path).lstrip()
    if begin.startswith("["):
        return _table(path, [path], columns)
    if re.search(r'"images"\s*:\s*\[', begin) and re.search(r'"(filename|sentences)"\s*:', begin):
        name = re.search(r'"filename"\s*:\s*"((?:[^"\\]|\\.)*)"', begin)
        sub = re.search(r'"filepath"\s*:\s*"((?:[^"\\]|\\.)+)"', begin)
        first = "/".join(filter(None, [sub and sub[1], name and name[1]]))
        return _found(
            "karpathy", path, f"{path.name} has the list `images` with `filename` and `sentences`", picture=first
        )
    if re.match(r'\{\s*"[^"]*"\s*:\s*\[\s*\{', begin) and re.search(r'"raw(_\d+)?"\s*:', begin):
        name = re.search(r'"filename"\s*:\s*"((?:[^"\\]|\\.)*)"', begin)
        why = f"{path.name} has a list of pictures with `filename` and `raw` for each class, as NWPU-Captions"
        return _found("nwpu-json", path, why, picture=name[1] if name else "")
    if match := re.match(r'\{\s*"((?:[^"\\]|\\.)+\.(?:jpe?g|png|tiff?|webp|bmp))"\s*:', begin, re.IGNORECASE):
        return _found("table", path, f"{path.name} holds captions by picture name", picture=match[1])
    return None


def _table(place: Path, paths: list[Path], columns: TableOptions) -> Found | None:
    """A table, if its columns have usual names."""
    if paths[0].suffix.lower() == ".parquet" and _pictures_inside(paths[0]):
        why = f"{paths[0].name} is a Parquet file with the pictures inside, as Hugging Face's hub has them"
        return _found("huggingface", paths[0].parent, why)
    try:
        chosen, first = peek(paths[0], columns)
    except DataError:  # no table of captions, so no candidate; naming the format tells what is wrong with it
        return None
    if len(paths) == 1 and chosen.split:
        place = paths[0]  # it tells splits itself, whatever its name says
    return _found("table", place, f"{', '.join(path.name for path in paths)}: {chosen}", picture=first)


def _pictures_inside(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return False
    return any(
        (pa.types.is_struct(column.type) and {"bytes", "path"} <= {f.name for f in column.type})
        or (is_binary(column.type) and column.name.lower() in IMAGE)
        for column in schema
    )


def _arrow(folder: Path) -> Iterator[Found]:
    found = by_stem(folder.glob("*.arrow"))
    for stem, paths in found.items():
        told = ", ".join(path.name for path in paths.values())
        yield _found("vilt-arrow", folder, f"{told}: files as ViLT's code reads them", {"stem": stem} if stem else {})


def _found(name: Format, place: Path, why: str, options: dict[str, Any] | None = None, picture: str = "") -> Found:
    images = None if name in SELF_CONTAINED else "images"
    return Found(name, Files(annotations=str(place), images=images), why, options or {}, picture)


def _placed(one: Found, folder: Path) -> Found:
    """With places relative to the folder, and the folder of the pictures where there is one."""
    place = Path(one.files.annotations)
    annotations = place.relative_to(folder).as_posix()
    if place.is_dir() and annotations != ".":
        one = replace(one, why=f"{annotations}/: {one.why}")
    if one.files.images is None:
        return Found(one.format, Files(annotations=annotations), one.why, one.options)
    images, extension, told = find_pictures(folder, one.picture, by_split=one.format == "pir-json")
    options = {**one.options, **({"extension": extension} if extension else {})}
    return Found(one.format, Files(annotations=annotations, images=images), f"{one.why}; {told}", options, one.picture)


def _is_there(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or any((path / name).is_file() for path in entries(folder) if path.is_dir())


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_HEAD).decode("utf-8-sig", errors="replace")


def _json_head(path: Path) -> dict[str, Any] | None:
    """The first object of a JSON list, or None."""
    begin = _head(path).lstrip()
    if not begin.startswith("["):
        return None
    try:
        first, _ = json.JSONDecoder().raw_decode(begin[1:].lstrip())
    except json.JSONDecodeError:
        return None
    return first if isinstance(first, dict) else None


def _first_line(path: Path) -> str:
    return _head(path).split("\n", 1)[0].strip()


def _way(one: Found) -> str:
    told = {"format": one.format, "annotations": one.files.annotations, **one.options}
    return " ".join(f"--set {key}={value}" for key, value in told.items() if key != "extension")
