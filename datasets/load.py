"""From a card to the splits it describes: find the files, choose the reader, read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from petlbench.datasets.card import Card
from petlbench.datasets.options import KarpathyOptions, PrecompOptions
from petlbench.datasets.readers import karpathy, precomp
from petlbench.datasets.registry import load_card, options_model
from petlbench.datasets.split import DataError, Split
from petlbench.datasets.validation import checked

ROOT_VARIABLE = "PETLBENCH_DATA"

M = TypeVar("M", bound=BaseModel)


def load(card: Card | str | Path, root: str | Path | None = None, **options: Any) -> dict[str, Split]:
    """Read a data set.

    Pictures are not opened, nor is their presence checked: ``benchmark data doctor`` and the cache do that.

    Args:
        card: A card, the name of one, or the path of one.
        root: Folder of the set's files. Default: the folder named like the card inside ``PETLBENCH_DATA``.
        **options: Options of the reader; they override those of the card.

    Returns:
        The splits the set has, keyed ``train``, ``val``, ``test`` in that order.

    Raises:
        DataError: The files are missing or wrong, or an option is unknown.
    """
    if not isinstance(card, Card):
        card = load_card(card)
    chosen = {**card.options, **options}
    if card.format == "scenes":
        from petlbench.datasets.readers.scenes import read_scenes

        return read_scenes(chosen)
    assert card.files is not None  # the card's own validator saw to it
    parsed: Any = checked(options_model(card.format), chosen, f"options of data set {card.name}")
    folder = find_root(card, root)
    annotations = folder / (parsed.annotations or card.files.annotations)
    if not annotations.exists():
        raise DataError(f"data set {card.name}: {annotations} does not exist. {_how_to_give(card)}")
    if card.format == "vilt-arrow":
        from petlbench.datasets.readers.vilt_arrow import read_vilt_arrow

        return read_vilt_arrow(annotations, _inside(folder, parsed, "karpathy_json"))
    assert card.files.images is not None
    images = folder / (parsed.image_dir or card.files.images)
    if isinstance(parsed, KarpathyOptions):
        return karpathy.read_karpathy(annotations, images, parsed)
    assert isinstance(parsed, PrecompOptions)
    return precomp.read_precomp(annotations, images, _inside(folder, parsed, "val_images"))


def find_root(card: Card, root: str | Path | None = None) -> Path:
    """The folder of a set's files, absolute.

    Raises:
        DataError: No folder was given, or it is none; says which files are expected where, and how to give them.
    """
    base = os.environ.get(ROOT_VARIABLE)
    given = Path(root) if root is not None else Path(base) / card.name if base else None
    if given is None:
        raise DataError(f"data set {card.name}: no folder was given. {_how_to_give(card)}")
    folder = given.expanduser().absolute()
    if not folder.is_dir():
        origin = "" if root is not None else f" (from {ROOT_VARIABLE}={base})"
        state = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"data set {card.name}: {folder}{origin} {state}. {_how_to_give(card)}")
    return folder


def _inside(folder: Path, options: M, key: str) -> M:
    """The options with the path under ``key``, where there is one, taken from the root folder on."""
    given = getattr(options, key)
    return options if given is None else options.model_copy(update={key: str(folder / given)})


def _how_to_give(card: Card) -> str:
    assert card.files is not None
    wanted = [card.files.annotations]
    if card.format == "precomp":
        wanted = [str(Path(card.files.annotations) / name) for name in precomp.FILES]
    expected = f"{', '.join(wanted)} and the pictures in {card.files.images}/ "
    others = "annotations, image_dir, extension"
    if card.format == "vilt-arrow":
        place = str(Path(card.files.annotations) / "STEM_{train,val,test}.arrow")
        expected, others = f"{place}, which hold captions and pictures ", "annotations, stem, pattern, parts"
    lines = [
        f"Expected in the folder: {expected}(other places or names: options {others}).",
        f"Give it by --set dataset.{card.name}.root=FOLDER, or set {ROOT_VARIABLE}=PARENT so that it is "
        f"PARENT/{card.name}.",
    ]
    if card.sources:
        lines.append("Sources: " + "; ".join(f"{source.what}: {source.url}" for source in card.sources))
    return "\n".join(lines)
