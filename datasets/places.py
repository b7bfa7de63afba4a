"""Where in a set's files a picture or caption stands, so that it can be mended there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petlbench.datasets.card import Card
from petlbench.datasets.findings import Item
from petlbench.datasets.layout import find_root
from petlbench.datasets.readers.arrow_file import ArrowImage
from petlbench.datasets.readers.columns import choose, texts_in
from petlbench.datasets.readers.json_file import load_json
from petlbench.datasets.readers.nwpu_json import caption_keys
from petlbench.datasets.readers.precomp import pairs
from petlbench.datasets.readers.split_files import by_stem, choose_stem
from petlbench.datasets.readers.table import load_table, table_files
from petlbench.datasets.readers.tar_file import TarImage
from petlbench.datasets.readers.text_lines import read_lines
from petlbench.datasets.registry import options_model
from petlbench.datasets.split import ImageRef, Split
from petlbench.datasets.validation import checked


@dataclass
class Entry:
    """Where one picture is annotated.

    Attributes:
        file: The file.
        entry: Line or entry of the picture.
        captions: File, and line or entry, of each of its captions; empty where they stand with the picture.
    """

    file: str
    entry: str
    captions: list[tuple[str, str]] = field(default_factory=list)


Known = dict[str, Entry]
"""By name of the picture."""


class Places:
    """Finds places; the files are only read again when the first place is asked for."""

    def __init__(self, find: Callable[[], Known], images: Mapping[tuple[str, str], ImageRef]):
        """Use :meth:`of`."""
        self._find, self._images = find, images
        self._known: Known | None = None

    @classmethod
    def of(cls, card: Card, root: str | Path | None, options: Mapping[str, Any], splits: Mapping[str, Split]) -> Places:
        """Places of a set.

        Args:
            card: Of one format of files.
            root: Folder of the files, as given to :func:`petlbench.datasets.load.load`.
            options: Likewise.
            splits: What was read.
        """
        images = {(name, image.name): image for name, split in splits.items() for image in split.images}
        finder = _FINDERS.get(card.format)
        if finder is None or card.files is None:
            return cls(dict, images)
        parsed: Any = checked(
            options_model(card.format), {**card.options, **options}, f"options of data set {card.name}"
        )
        path = find_root(card, root) / (parsed.annotations or card.files.annotations)
        return cls(lambda: finder(path, parsed), images)

    def placed(self, item: Item) -> Item:
        """The item with file and entry, where they are known."""
        if item.picture is None:
            return item
        if self._known is None:
            self._known = self._find()
        entry = self._known.get(item.picture)
        if entry is None:
            return item.model_copy(update=_inside(self._images.get((item.split, item.picture))))
        file, told = entry.file, entry.entry
        if item.caption is not None and item.caption < len(entry.captions):
            file, told = entry.captions[item.caption]
        return item.model_copy(update={"file": file, "entry": told})


def _inside(image: ImageRef | None) -> dict[str, str]:
    """The place of a picture that is stored in another file."""
    if isinstance(image, ArrowImage):
        return {"file": str(image.path), "entry": f"row {image.row}"}
    if isinstance(image, TarImage):
        return {"file": str(image.path), "entry": f"byte {image.offset}"}
    # Hugging Face's: importing it takes its time.
    row, source = getattr(image, "row", None), getattr(image, "source", None)
    return {} if row is None or source is None else {"file": str(source.place), "entry": f"row {row}"}


def _karpathy(path: Path, options: Any) -> Known:
    known: Known = {}
    for index, item in enumerate(load_json(path)["images"]):
        name = "/".join(filter(None, [item.get("filepath"), item["filename"]]))
        here = f"images[{index}]"
        captions = [(str(path), f"{here}.sentences[{k}]") for k in range(len(item.get("sentences") or ()))]
        known[name] = Entry(str(path), here, captions)
    return known


def _precomp(folder: Path, options: Any) -> Known:
    known: Known = {}
    per = options.captions_per_image
    for captions, names in pairs(folder, options).values():
        lines = read_lines(names)
        step = per if len(read_lines(captions)) == len(lines) else 1
        for index, name in enumerate(lines[::step]):
            told = [(str(captions), f"line {per * index + k + 1}") for k in range(per)]
            known[name] = Entry(str(names), f"line {step * index + 1}", told)
    return known


def _pir_json(folder: Path, options: Any) -> Known:
    known: Known = {}
    for split, path in choose_stem(by_stem(folder.glob("*.json")), options.stem, folder, "STEM").items():
        for index, item in enumerate(load_json(path)):
            whole = isinstance(item["caption"], list)
            told = (
                [(str(path), f"[{index}].caption[{k}]") for k in range(len(item["caption"]))]
                if whole
                else [(str(path), f"[{index}]")]
            )
            for name in {item["image"], item["image"].removeprefix(f"{split}/")}:
                known.setdefault(name, Entry(str(path), f"[{index}]")).captions.extend(told)
    return known


def _nwpu_json(path: Path, options: Any) -> Known:
    known: Known = {}
    for label, listed in load_json(path).items():
        for index, item in enumerate(listed):
            here = f"{label}[{index}]"
            captions = [(str(path), f"{here}.{key}") for key in caption_keys(item)]
            for name in (item["filename"], f"{label}/{item['filename']}"):
                known.setdefault(name, Entry(str(path), here, captions))
    return known


def _table(path: Path, options: Any) -> Known:
    known: Known = {}
    for one in table_files(path).values():
        table = load_table(one, options.delimiter)
        chosen = choose(table.columns, options, str(one))
        for row in table.rows:
            here = (str(one), _after(row.place, one))
            entry = known.setdefault(str(row.cells.get(chosen.image)).strip(), Entry(*here))
            if len(chosen.captions) == 1:  # of several columns, those without a caption are not counted
                entry.captions += [here] * len(texts_in(row.cells.get(chosen.captions[0]), row.place))
    return known


def _after(place: str, path: Path) -> str:
    told = place.removeprefix(str(path)).lstrip(": ")
    return f"line {told}" if told.isdigit() else told


_FINDERS: dict[str, Callable[[Path, Any], Known]] = {
    "karpathy": _karpathy,
    "precomp": _precomp,
    "pir-json": _pir_json,
    "nwpu-json": _nwpu_json,
    "table": _table,
}
