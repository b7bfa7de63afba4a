"""Published results as data: one YAML file per source, every number with where it was read and how it was chosen.

A printed mR is kept as printed and computed anew beside it; the two differ in a few tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from petlbench.datasets.validation import checked, read_yaml
from petlbench.errors import PetlbenchError
from petlbench.leaderboard.published_schema import (
    Mark,
    PublishedBackbone,
    PublishedFile,
    PublishedSplit,
    PublishedTable,
    Selection,
    TableRow,
)

FOLDER = Path(__file__).parent / "published"
"""The files that come with petlbench."""

ROUNDING = 0.01
"""Six recalls and their mean, all rounded to two decimals, can differ by this much without a mistake."""


class PublishedError(PetlbenchError):
    """A file of published rows is unreadable or contradicts itself."""


@dataclass(frozen=True)
class PublishedRow:
    """One row with everything that holds for it.

    Attributes:
        file: Name of the YAML file, or of a plugin, without ending.
        source: Short name of the source.
        paper: Citation.
        table: Table of the source.
        dataset: Data set as the field writes it, lower case.
        split: What it was measured on; None where only the data set's name is known.
        row: What is printed.
        known: What is known of its backbone.
        mark: ``seen`` or ``recalled``.
        selection: On which split the epoch was chosen.
        selection_note: How that is known.
        ties: How ties were broken; None where unknown.
        seeds: Runs averaged; None where unknown.
        read_in: In what the numbers of the source were read; empty for rows that a method declares.
        url: Where the source is to be had; None where not known.
        source_notes: Facts of the source that a reader of its numbers should know.
    """

    file: str
    source: str
    paper: str
    table: str
    dataset: str
    split: PublishedSplit | None
    row: TableRow
    known: PublishedBackbone
    mark: Mark
    selection: Selection
    selection_note: str = ""
    ties: str | None = None
    seeds: int | None = None
    read_in: str = ""
    url: str | None = None
    source_notes: tuple[str, ...] = ()

    @property
    def recalls(self) -> dict[str, float] | None:
        """Metric name to percent, without mR; None where the source gives mR only."""
        if self.row.i2t is None or self.row.t2i is None:
            return None
        ways = (("i2t", self.row.i2t), ("t2i", self.row.t2i))
        return {f"{way}_r{k}": value for way, values in ways for k, value in zip((1, 5, 10), values, strict=True)}

    @property
    def mean(self) -> float | None:
        """The mean of the six printed recalls, percent; None where they are not given."""
        return None if self.recalls is None else sum(self.recalls.values()) / 6

    @property
    def score(self) -> float:
        """The mR to compare with: computed from the recalls where they are given, else as printed; percent."""
        value = self.row.mR if self.mean is None else self.mean
        assert value is not None  # the schema demands one of the two
        return value

    @property
    def printed(self) -> float:
        """The mR to show: as printed, unless that is misprinted or not given; percent."""
        return self.score if self.row.mR is None or self.misprinted else self.row.mR

    @property
    def misprinted(self) -> bool:
        """The printed mR is not the mean of the printed recalls, by more than rounding explains."""
        if self.mean is None or self.row.mR is None:
            return False
        return abs(self.mean - self.row.mR) > ROUNDING + 1e-9

    @property
    def size(self) -> str:
        """Trained parameters as printed, or as counted elsewhere; empty where neither is known."""
        return self.row.params or self.row.counted or ""

    @property
    def where(self) -> str:
        """Source and table in one line, with what lowers its weight."""
        told = [self.source, self.table, "quoted there" if self.row.quoted else ""]
        return ", ".join(filter(None, told)) + " (recalled, not read)" * (self.mark == "recalled")


def load_published(folder: Path = FOLDER) -> list[PublishedRow]:
    """Every row of every file of a folder, in the order of file names, tables and rows.

    Raises:
        PublishedError: A file is no valid YAML, breaks the schema, or repeats a row; the message names file, line and key.
    """
    return list(_shipped()) if folder == FOLDER else _load(folder)


@cache  # a second of YAML; the files do not change under a running program
def _shipped() -> tuple[PublishedRow, ...]:
    return tuple(_load(FOLDER))


def _load(folder: Path) -> list[PublishedRow]:
    rows: list[PublishedRow] = []
    for path in sorted(folder.glob("*.yaml")):
        rows.extend(_rows(path))
    if not rows:
        raise PublishedError(f"{folder}: no file with published rows; the installation is incomplete, install it again")
    return rows


def declared(name: str, title: str, published: Iterable[Any]) -> list[PublishedRow]:
    """Rows that a method declares in its own file, as rows of a source called after it.

    Args:
        name: Registered name of the method.
        title: Its title.
        published: Of :class:`petlbench.methods.base.Published`, not imported here because that needs torch.

    Raises:
        PublishedError: A row breaks the schema of the files; the message names method, source and key.
    """
    rows = []
    for one in published:
        where = f"method {name}, published row of {one.source}"
        told = {
            "method": title,
            "ours": name,
            "params": one.trainable or None,
            "i2t": one.values[:3],
            "t2i": one.values[3:],
        }
        try:
            row = checked(TableRow, told, where)
            known = checked(PublishedBackbone, one.backbone, where, prefix=("backbone",))
            split = checked(PublishedSplit, one.split, where, prefix=("split",)) if one.split else None
        except ValueError as error:
            raise PublishedError(str(error)) from error
        mark: Mark = "seen" if one.seen else "recalled"
        rows.append(PublishedRow(name, one.source, one.source, "", one.dataset, split, row, known, mark, one.selection))
    return rows


def parameters(size: str) -> tuple[float, float] | None:
    """The range of parameter counts that prints as ``size``: ``0.16M`` is 155,000 to 165,000; None if it is no number.

    Of ``161M of 185M`` the first number counts.
    """
    found = re.match(r"\s*(\d+(?:\.(\d+))?)\s*([KMB]?)", size)
    if found is None:
        return None
    unit = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}[found.group(3)]
    half = 0.5 * 10 ** -len(found.group(2) or "") if found.group(3) or found.group(2) else 0.0
    number = float(found.group(1))
    return (number - half) * unit, (number + half) * unit


def base_name(dataset: str, known: Sequence[str]) -> str | None:
    """The published data set that a card of ours holds: ``ucm`` for ``ucm-precomp``; None where there is none."""
    fits = [name for name in known if dataset == name or dataset.startswith((f"{name}-", f"{name}_"))]
    return max(fits, key=len, default=None)


def _rows(path: Path) -> list[PublishedRow]:
    try:
        values, lines = read_yaml(path)
        source = checked(PublishedFile, values, str(path), lines)
    except ValueError as error:
        raise PublishedError(str(error)) from error
    rows, seen = [], set()
    for table in source.tables:
        for row in table.rows:
            key = (table.table, table.dataset, row.method, row.backbone, row.tuned_on)
            if key in seen:
                raise PublishedError(
                    f"{path}: table {table.table!r}, data set {table.dataset}: two rows for {row.method!r} with the same "
                    "backbone and training data; delete one, or tell them apart by `tuned_on`"
                )
            seen.add(key)
            rows.append(_whole(path.stem, source, table, row))
    return rows


def _whole(file: str, source: PublishedFile, table: PublishedTable, row: TableRow) -> PublishedRow:
    """A row with what it inherits; of a quoted one, what its source says of its own measurements does not hold."""
    split, selection, ties, seeds = table.split, source.selection, source.ties, source.seeds
    if row.quoted:
        split = split.model_copy(update={"cards": (), "train_images": None, "val_images": None})
        selection, ties, seeds = "unknown", None, None
    return PublishedRow(
        file=file,
        source=source.title,
        paper=source.paper,
        table=table.table,
        dataset=table.dataset,
        split=split,
        row=row,
        known=source.backbones.get(row.backbone or "", PublishedBackbone()),
        mark=row.mark or source.mark,
        selection=row.selection or selection,
        selection_note=source.selection_note if row.selection_note is None else row.selection_note,
        ties=ties,
        seeds=row.seeds or seeds,
        read_in=source.read_in,
        url=source.url,
        source_notes=source.notes,
    )
