"""Reader of tables: CSV, TSV, Parquet, JSON and JSON lines, with a picture name and one or more captions in each row.

A table may hold several rows per picture, or several columns of captions, or cells with lists of captions. JSON is a list of
objects, or one object of captions by picture name. Splits come from a column, or from one file per split.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlbench.datasets.options import FileOptions, TableOptions
from petlbench.datasets.readers.columns import Chosen, Row, choose, gather
from petlbench.datasets.readers.common import Entry, check_name, few, make_splits
from petlbench.datasets.readers.json_file import kind, load_json
from petlbench.datasets.readers.split_files import by_stem
from petlbench.datasets.readers.text_lines import read_text
from petlbench.datasets.split import DataError, Split

SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")
"""Of the files that are read."""

DELIMITERS = "\t,;"
"""Tried in this order on the first line."""


@dataclass(frozen=True)
class Table:
    """A table in memory.

    Attributes:
        columns: Their names, in order.
        rows: Each with its place for messages.
    """

    columns: list[str]
    rows: list[Row]


def read_table(annotations: Path, images: Path, options: TableOptions | None = None) -> dict[str, Split]:
    """Read a table, or a folder of one table per split.

    Args:
        annotations: The file or the folder.
        images: Folder of the pictures.
        options: How to read it.

    Returns:
        The splits in the order train, val, test; all pictures in ``train`` where nothing tells of splits. Captions are
        without surrounding white space.

    Raises:
        DataError: A file is damaged, a column is missing or a cell is wrong; names file and line.
    """
    options = options or TableOptions()
    files = table_files(annotations)
    entries: dict[str, list[Entry]] = {}
    for split, path in files.items():
        table = load_table(path, options.delimiter)
        chosen = choose(table.columns, options, str(path))
        for part, listed in gather(table.rows, chosen, options, split or None).items():
            entries.setdefault(part, []).extend(listed)
    home: dict[str, str] = {}
    for part, listed in entries.items():
        for entry in listed:
            check_name(entry.name, str(annotations))
            if (other := home.setdefault(entry.name, part)) != part:
                raise DataError(
                    f"{annotations}: {entry.name!r} is in {other} and in {part}; a picture belongs to one split"
                )
    if not entries:
        raise DataError(f"{annotations}: no rows to read")
    return make_splits(entries, images, FileOptions(extension=options.extension, blank=options.blank))


def peek(path: Path, options: TableOptions | None = None) -> tuple[Chosen, str]:
    """The columns of a table that would be read, and the name of its first picture.

    Raises:
        DataError: It is no such table.
    """
    options = options or TableOptions()
    table = load_table(next(iter(table_files(path).values())), options.delimiter)
    chosen = choose(table.columns, options, str(path))
    return chosen, str(table.rows[0].cells.get(chosen.image)) if table.rows else ""


def load_table(path: Path, delimiter: str | None = None) -> Table:
    """A table of any of the kinds, by its extension.

    Raises:
        DataError: It is damaged, empty or of another kind.
    """
    suffix = path.suffix.lower()
    loaders = {".parquet": _parquet, ".json": _json, ".jsonl": _json_lines}
    table = loaders[suffix](path) if suffix in loaders else _text(path, delimiter)
    if not table.rows:
        raise DataError(f"{path}: the table has no rows; fetch it again")
    return table


def table_files(annotations: Path) -> dict[str, Path]:
    """Tables by split; under the empty name one that tells splits itself, or none.

    Raises:
        DataError: The folder does not hold one table for each split.
    """
    if annotations.is_file():
        return {"": annotations}
    found = by_stem(path for path in annotations.iterdir() if path.suffix.lower() in SUFFIXES)
    if len(found) == 1:
        return next(iter(found.values()))
    there = sorted(path.name for path in annotations.iterdir() if path.suffix.lower() in SUFFIXES)
    raise DataError(
        f"{annotations}: expected one table for each split, named {{train,val,test}}.csv (or {', '.join(SUFFIXES[1:])}), or a "
        f"table named by the option annotations; tables there: {few(there, 6)}"
    )


def _text(path: Path, delimiter: str | None) -> Table:
    text = read_text(path)
    head = text.split("\n", 1)[0]
    if not head.strip():
        raise DataError(f"{path}: the first line is blank; expected the names of the columns")
    if delimiter is None:
        delimiter = next((mark for mark in DELIMITERS if mark in head), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, line = [], 1
    try:
        columns = [name.strip() for name in next(reader)]
        if repeated := [name for name in columns if columns.count(name) > 1 and name]:
            raise DataError(f"{path}:1: two columns are named {repeated[0]!r}; rename one")
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(columns):
                raise DataError(
                    f"{path}:{line}: {len(cells)} cells, but the first line names {len(columns)} columns; quote captions that "
                    f"hold {delimiter!r}"
                )
            if cells:
                rows.append(Row(f"{path}:{line}", dict(zip(columns, cells, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not a table as the csv format has it ({error}); check the quotes") from error
    return Table(columns, rows)


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:  # by itself: read_table would take names of folders for columns
            schema = file.schema_arrow
            inside = [f.name for f in schema if is_binary(f.type) or pa.types.is_struct(f.type)]
            columns = [name for name in schema.names if name not in inside]
            listed = file.read(columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: the Parquet file cannot be read ({error}); copy it again") from error
    if inside and not any(
        "image" in name.lower() or "path" in name.lower() or "file" in name.lower() for name in columns
    ):
        raise DataError(
            f"{path}: the pictures themselves are in column `{inside[0]}`; read the file by the options format=huggingface and "
            f"image_column={inside[0]}"
        )
    return Table(columns, [Row(f"{path}: row {number}", cells) for number, cells in enumerate(listed)])


def is_binary(kind: Any) -> bool:
    """Whether a pyarrow type holds bytes of any length, as of picture files."""
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _json(path: Path) -> Table:
    data = load_json(path)
    if isinstance(data, dict) and data and all(isinstance(told, (str, list)) for told in data.values()):
        rows = [Row(f"{path}: {name}", {"image": name, "caption": told}) for name, told in data.items()]
        return Table(["image", "caption"], rows)
    if not isinstance(data, list):
        raise DataError(
            f"{path}: found {kind(data)} at the top level, expected a list of objects (rows), or an object of captions by "
            "picture name"
        )
    return _objects([(f"{path}: [{index}]", item) for index, item in enumerate(data)])


def _json_lines(path: Path) -> Table:
    return _objects(list(_parsed_lines(path)))


def _parsed_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}:{number}:{error.colno}: not valid JSON ({error.msg}); expected an object on each line"
                ) from error


def _objects(items: list[tuple[str, Any]]) -> Table:
    for place, item in items:
        if not isinstance(item, dict):
            raise DataError(f"{place}: found {kind(item)}, expected an object of cells by column")
    columns = list(dict.fromkeys(key for _, item in items for key in item))
    return Table(columns, [Row(place, item) for place, item in items])
