"""Which form of a set is at hand: the card's own, another one that the card knows, or one found by looking."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from petlbench.datasets.card import SELF_CONTAINED, WITHOUT_FILES, Card, Files, Format, Layout
from petlbench.datasets.detect import Found, candidates, detect
from petlbench.datasets.options import from_home
from petlbench.datasets.picture_folder import find_pictures
from petlbench.datasets.readers import precomp
from petlbench.datasets.readers.split_files import stem_and_split
from petlbench.datasets.readers.table import SUFFIXES
from petlbench.datasets.split import DataError
from petlbench.datasets.validation import suggest

ROOT_VARIABLE = "PETLBENCH_DATA"

FORMATS = tuple(name for name in get_args(Format) if name not in WITHOUT_FILES)
"""Formats of files, as the option ``format`` names them."""

CUTS = ("val_list", "val_images", "val_files", "val_share", "val_seed", "test_share", "fold", "captions_per_image")
"""Options that make other splits than those whose counts a card tells."""


@dataclass(frozen=True)
class Settled:
    """A card whose format and files are known.

    Attributes:
        card: Of one format of files (or of scenes).
        told: What was found, and why it was taken for that; empty where the card's own files are used.
    """

    card: Card
    told: str = ""


def settle(
    card: Card, root: str | Path | None = None, options: Mapping[str, Any] | None = None, format_name: str | None = None
) -> Settled:
    """Decide which files of which format are read.

    Args:
        card: Of any format, ``auto`` included.
        root: The folder of the files, as given by the user.
        options: As given by the user; ``annotations`` says where to look, and one that cuts the set anew takes the
            expected counts away.
        format_name: As given by the user.

    Raises:
        DataError: The format is unknown, nothing fits, or several do.
    """
    given = {key: value for key, value in (options or {}).items() if value is not None}
    if format_name is not None and format_name not in FORMATS:
        raise DataError(
            f"data set {card.name}: format {format_name!r} is unknown; {suggest(str(format_name), FORMATS)}"
        )
    settled = _settle(card, root, given, format_name)
    if any(key in given and given[key] != settled.card.options.get(key) for key in CUTS):
        return Settled(settled.card.model_copy(update={"expected": {}}), settled.told)
    return settled


def _settle(card: Card, root: str | Path | None, given: Mapping[str, Any], wanted: str | None) -> Settled:
    if card.format == "scenes":
        return Settled(card)
    if (repo := {**card.options, **given}.get("repo")) and (wanted or card.format) in ("huggingface", "auto"):
        hub = {"format": "huggingface", "files": None, "options": {**card.options, "repo": repo}, "layouts": {}}
        return Settled(card.model_copy(update=hub))
    annotations = from_home(str(given["annotations"])) if "annotations" in given else None
    if card.format == "auto" or wanted not in (None, card.format):
        folder = find_root(card, root)
        layout = card.layouts.get(wanted)  # type: ignore[call-overload]
        if layout is not None and (annotations is not None or _complete(str(wanted), layout.files, folder)):
            return Settled(_with(card, layout, str(wanted)))
        found = _named(folder, wanted, annotations) or detect(folder, wanted, annotations, given)
        return Settled(_as_found(card, found), f"{card.name}: read as {found.line}")
    assert card.files is not None  # the card's own validator saw to it
    near = root_or_none(card, root)
    if near is None or not near.is_dir() or annotations is not None or _complete(card.format, card.files, near):
        return Settled(card)
    others = [one for one in candidates(near, wanted, hints=given) if one.format in {card.format, *card.layouts}]
    if len(others) > 1:
        detect(near, wanted, hints=given)  # lists them
    if not others:
        return Settled(card)  # whose reader says what it misses
    return Settled(_as_found(card, others[0]), f"{card.name}: read as {others[0].line}")


def _named(folder: Path, wanted: str | None, annotations: Any) -> Found | None:
    """What the user has named in full, so that nothing need be found; the reader says what is wrong with it."""
    if wanted is None or annotations is None:
        return None
    images, told = None, "as named"
    if wanted not in SELF_CONTAINED:
        images, _, told = find_pictures(folder, "")
    files = Files(annotations=str(annotations), images=images)
    return Found(wanted, files, f"{annotations}, as named; {told}")  # type: ignore[arg-type]


def _complete(format_name: str, files: Files, folder: Path) -> bool:
    """Whether the annotation files of a layout are there, as far as names tell."""
    place = folder / files.annotations
    if not place.is_dir():
        return place.exists()
    suffixes = {"pir-json": (".json",), "vilt-arrow": (".arrow",), "table": SUFFIXES}.get(format_name)
    if suffixes is not None:
        return any(path.suffix.lower() in suffixes and stem_and_split(path) for path in place.iterdir())
    wanted = {"precomp": "*_caps.txt", "webdataset": "**/*.tar"}.get(format_name)
    return wanted is None or any(place.glob(wanted))


def _as_found(card: Card, found: Found) -> Card:
    layout = card.layouts.get(found.format)
    told = layout or (card if card.format == found.format else None)
    options = {**(told.options if told else {}), **found.options}
    expected = told.expected if told else {}
    return _with(card, Layout(files=found.files, expected=expected, options=options), found.format)


def _with(card: Card, layout: Layout, format_name: str) -> Card:
    update: dict[str, Any] = {
        "format": format_name,
        "files": layout.files,
        "expected": layout.expected,
        "options": layout.options,
        "notes": (*card.notes, layout.note) if layout.note else card.notes,
        "layouts": {},
    }
    return card.model_copy(update=update)


def root_or_none(card: Card, root: str | Path | None) -> Path | None:
    """The folder of a set's files as :func:`find_root` has it, whether it is there or not; None where none is given."""
    base = os.environ.get(ROOT_VARIABLE)
    given = root if root is not None else card.root
    if given is None and base:
        given = Path(base) / card.name
    return None if given is None else Path(given).expanduser().absolute()


def find_root(card: Card, root: str | Path | None = None) -> Path:
    """The folder of a set's files, absolute: the one given, else the card's own, else ``PETLBENCH_DATA/NAME``.

    Raises:
        DataError: No folder was given, or it is none; says which files are expected where, and how to give them.
    """
    folder = root_or_none(card, root)
    if folder is None:
        raise DataError(f"data set {card.name}: no folder was given. {how_to_give(card)}")
    if not folder.is_dir():
        base = os.environ.get(ROOT_VARIABLE)
        origin = f" (from {ROOT_VARIABLE}={base})" if root is None and card.root is None else ""
        state = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"data set {card.name}: {folder}{origin} {state}. {how_to_give(card)}")
    return folder


def data_folders(card: Card, root: str | Path | None = None) -> list[Path]:
    """The user's folders that a set is read from: its root, and those of annotations and pictures as card and options say.

    Raises:
        DataError: As of :func:`find_root`.
    """
    if card.files is None:
        return []
    folder = find_root(card, root)
    named = [folder / str(card.options.get("annotations") or card.files.annotations)]
    named += [folder / str(card.options.get("image_dir") or card.files.images or ".")]
    return [folder, *(path if path.is_dir() else path.parent for path in named)]


def how_to_give(card: Card) -> str:
    """Which files a card expects where, and the ways to say where they are."""
    if card.files is None:
        expected = "captions and pictures in any format of docs/data_formats.md "
        others = "format, annotations, image_dir"
    elif card.files.images is None:
        place = Path(card.files.annotations)
        names = {"vilt-arrow": "STEM_{train,val,test}.arrow", "webdataset": "train-000000.tar, ..."}
        expected = f"{place / names.get(card.format, '')}, which hold captions and pictures "
        others = "annotations, stem, pattern, parts" if card.format == "vilt-arrow" else "format, annotations"
    else:
        wanted = [card.files.annotations]
        if card.format == "precomp":
            wanted = [str(Path(card.files.annotations) / name) for name in precomp.FILES]
        if card.format == "pir-json":
            wanted = [str(Path(card.files.annotations) / f"{card.options.get('stem', 'STEM')}_{{train,val,test}}.json")]
        expected = f"{', '.join(wanted)} and the pictures in {card.files.images}/ "
        others = "annotations, image_dir, extension"
    lines = [
        f"Expected in the folder: {expected}(other places or names: options {others}).",
        f"Give it by --set dataset.{card.name}.root=FOLDER, or set {ROOT_VARIABLE}=PARENT so that it is "
        f"PARENT/{card.name}.",
    ]
    if card.layouts:
        lines.append(f"The set is also read from files of format {', '.join(card.layouts)}.")
    if card.sources:
        lines.append("Sources: " + "; ".join(f"{source.what}: {source.url}" for source in card.sources))
    return "\n".join(lines)
