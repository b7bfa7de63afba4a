"""Formats that name their columns freely: finding picture, captions, split and class, and gathering rows by picture."""

from __future__ import annotations

import ast
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from petlbench.datasets.options import ColumnOptions
from petlbench.datasets.readers.common import Entry, label_of
from petlbench.datasets.readers.split_files import split_named
from petlbench.datasets.split import SPLITS, DataError
from petlbench.datasets.validation import suggest

IMAGE = (
    "image",
    "file_name",
    "filename",
    "image_path",
    "filepath",
    "file_path",
    "image_name",
    "img",
    "path",
    "image_id",
)
CAPTION = ("caption", "captions", "sentence", "sentences", "text", "texts", "raw", "description", "title")
SPLIT = ("split", "partition", "subset")
CLASS = ("class", "class_name", "label_name", "label", "category", "scene")

_NUMBERED = re.compile(r"(?P<word>.*?[^_ \d])[_ ]?(?P<number>\d+)")
_LIST = re.compile(r"\s*\[\s*['\"].*\]\s*", re.DOTALL)
_LINE_ENDS = (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)


@dataclass(frozen=True)
class Chosen:
    """The columns that hold something.

    Attributes:
        image: Name of the picture.
        captions: One column or more.
        split: Split of the row, or None.
        label: Scene class, or None.
    """

    image: str
    captions: tuple[str, ...]
    split: str | None
    label: str | None

    def __str__(self) -> str:
        parts = [f"pictures in `{self.image}`", f"captions in {', '.join(f'`{name}`' for name in self.captions)}"]
        parts += [f"{what} in `{name}`" for what, name in (("splits", self.split), ("classes", self.label)) if name]
        return ", ".join(parts)


@dataclass(frozen=True)
class Row:
    """One row: where it stands, for messages, and its cells by column."""

    place: str
    cells: Mapping[str, Any]


def choose(columns: Sequence[str], options: ColumnOptions, source: str) -> Chosen:
    """The columns that the options name, else those with usual names.

    Args:
        columns: Of the table.
        options: May name some of them.
        source: What the user knows the table by.

    Raises:
        DataError: A column is not there, or none has a usual name; lists those there are.
    """
    there = f"the columns there are: {', '.join(columns) or 'none'}"

    def named(key: str, name: str) -> str:
        if name not in columns:
            raise DataError(f"{source}: no column `{name}` (option {key}); {suggest(name, columns)}; {there}")
        return name

    image = named("image_column", options.image_column) if options.image_column else _first(columns, IMAGE)
    if image is None:
        raise DataError(
            f"{source}: no column with the names of the pictures; expected one of {', '.join(IMAGE)}, or its name by the "
            f"option image_column; {there}"
        )
    captions = options.captions_in
    captions = [named("caption_columns", name) for name in captions] if captions else _captions(columns)
    if not captions:
        raise DataError(
            f"{source}: no column with captions; expected `caption`, several like `caption_1`, or their names by the option "
            f"caption_columns; {there}"
        )
    return Chosen(
        image=image,
        captions=tuple(captions),
        split=_optional(columns, options.split_column, "split_column", SPLIT, named),
        label=_optional(columns, options.class_column, "class_column", CLASS, named)
        if options.labels == "column"
        else None,
    )


def gather(rows: Iterable[Row], chosen: Chosen, options: ColumnOptions, split: str | None) -> dict[str, list[Entry]]:
    """Entries by split; rows of one picture are joined, pictures stay in order of first appearance.

    Args:
        rows: Of one table.
        chosen: Which columns to read.
        options: For split names, blank captions and labels.
        split: The split of every row; None reads it from the column, and takes ``train`` where there is none.

    Raises:
        DataError: A cell is empty or of a wrong kind, a split name is unknown, or rows of one picture differ in split
            or class; names the row.
    """
    captions: dict[str, list[str]] = {}
    told: dict[str, tuple[str, str | None, str]] = {}
    for row in rows:
        name = row.cells.get(chosen.image)
        if not isinstance(name, str) or not name.strip():
            found = "empty" if name in (None, "") else repr(name)
            raise DataError(f"{row.place}: column `{chosen.image}` is {found}, expected the name of a picture file")
        name = name.strip()
        part = split or _split(row, chosen, options)
        label = _label(row, chosen)
        first = told.setdefault(name, (part, label, row.place))
        for what, mine, theirs in (("split", part, first[0]), ("class", label, first[1])):
            if mine != theirs:
                raise DataError(
                    f"{row.place}: {what} of {name!r} is {mine!r}, but {theirs!r} at {first[2]}; a picture has one {what}"
                )
        if part != "drop":
            captions.setdefault(name, []).extend(_texts(row, name, chosen, options))
    entries: dict[str, list[Entry]] = {}
    for name, texts in captions.items():
        part, label, _ = told[name]
        entries.setdefault(part, []).append(
            Entry(name, texts, label if options.labels == "column" else label_of(name, options.labels))
        )
    return {part: entries[part] for part in SPLITS if part in entries}


def texts_in(cell: Any, place: str) -> list[Any]:
    """The captions of a cell: those of a list, or of the text that a list becomes in a CSV file, else the one it holds.

    pandas writes ``['a plane .', 'a field .']``, with commas or (from an array) without, and JSON has double quotes.

    Raises:
        DataError: The text begins like a list of texts, but is none.
    """
    if isinstance(cell, (list, tuple)):
        return list(cell)
    if not isinstance(cell, str) or not _LIST.match(cell):
        return [cell]
    try:
        told = json.loads(cell)
        if isinstance(told, list) and told and all(isinstance(text, str) for text in told):
            return told
    except ValueError:
        pass  # Python's own way of writing lists is tried next
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(cell.strip()).readline))
        words = [token.string for token in tokens if token.type == tokenize.STRING]
        rest = [token.string for token in tokens if token.type not in (tokenize.STRING, *_LINE_ENDS)]
        told = [ast.literal_eval(word) for word in words]
        if rest[0] == "[" and rest[-1] == "]" and set(rest[1:-1]) <= {","} and all(isinstance(t, str) for t in told):
            return told
    except (tokenize.TokenError, SyntaxError, ValueError):
        pass  # told below
    raise DataError(
        f"{place} holds {textwrap.shorten(repr(cell), 80)}, which begins like a list of captions but cannot be read as one; write "
        "each caption in a row or a column of its own"
    )


def resolve_split(word: str, known: Mapping[str, str], place: str) -> str:
    """A split for what a file calls it: the user's word for it, else one of the usual words.

    Raises:
        DataError: It is neither.
    """
    if (part := known.get(word) or split_named(word)) is not None:
        return part
    raise DataError(
        f"{place}: split {word!r} is unknown; {suggest(word, (*SPLITS, *known))} Say what it means by the option splits, e.g. "
        f"splits={{{word or 'x'}: train}} (or val, test, drop)."
    )


def _first(columns: Sequence[str], usual: Sequence[str]) -> str | None:
    plain = {column.strip().lower().replace(" ", "_"): column for column in reversed(columns)}
    return next((plain[name] for name in usual if name in plain), None)


def _captions(columns: Sequence[str]) -> list[str]:
    """A column with a usual name, and those that differ from it by a number: ``raw``, ``raw_1``, ``raw_2``."""
    families: dict[str, list[tuple[int, str]]] = {}
    for column in columns:
        plain = column.strip().lower().replace(" ", "_")
        match = _NUMBERED.fullmatch(plain)
        word, number = (match["word"], int(match["number"])) if match else (plain, -1)
        if word in CAPTION:
            families.setdefault(word, []).append((number, column))
    found = next((families[word] for word in CAPTION if word in families), [])
    return [column for _, column in sorted(found)]


def _optional(columns: Sequence[str], given: str | None, key: str, usual: Sequence[str], named: Any) -> str | None:
    if given is None:
        return _first(columns, usual)
    return None if given == "none" and given not in columns else named(key, given)


def _split(row: Row, chosen: Chosen, options: ColumnOptions) -> str:
    if chosen.split is None:
        return "train"
    word = row.cells.get(chosen.split)
    if word is None or not str(word).strip():
        raise DataError(f"{row.place}: column `{chosen.split}` is empty; expected train, val or test")
    return resolve_split(str(word).strip(), options.splits, row.place)


def _label(row: Row, chosen: Chosen) -> str | None:
    label = row.cells.get(chosen.label) if chosen.label is not None else None
    return None if label is None or str(label).strip() == "" else str(label).strip()


def _texts(row: Row, name: str, chosen: Chosen, options: ColumnOptions) -> list[str]:
    texts: list[str] = []
    for column in chosen.captions:
        told = texts_in(row.cells.get(column), f"{row.place}: column `{column}`")
        for text in told:
            if text is not None and not isinstance(text, str):
                found = textwrap.shorten(repr(text), 80)
                raise DataError(f"{row.place}: column `{column}` of {name!r} holds {found}, expected a caption")
        texts += [(text or "").strip() for text in told]
    if len(chosen.captions) > 1 and any(texts):
        texts = [text for text in texts if text]  # a picture may have fewer captions than there are columns
    if options.blank == "error" and not all(texts):
        columns = ", ".join(chosen.captions)
        raise DataError(
            f"{row.place}: {name!r} has a blank caption (column {columns}). Write one, or use the option blank=drop."
        )
    return texts
