"""From a card to the splits it describes: find the files, choose the reader, read, cut anew where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from petlbench.datasets.card import Card
from petlbench.datasets.layout import ROOT_VARIABLE, find_root, how_to_give, settle
from petlbench.datasets.registry import load_card, options_model
from petlbench.datasets.split import DataError, Split
from petlbench.datasets.splits import recut
from petlbench.datasets.validation import checked

__all__ = ["ROOT_VARIABLE", "find_root", "load"]

M = TypeVar("M", bound=BaseModel)


def load(card: Card | str | Path, root: str | Path | None = None, **options: Any) -> dict[str, Split]:
    """Read a data set.

    Pictures are not opened, nor is their presence checked: ``benchmark data doctor`` and the cache do that.

    Args:
        card: A card, the name of one, the path of one, or a folder.
        root: Folder of the set's files. Default: that of the card, else the folder named like the card inside
            ``PETLBENCH_DATA``.
        **options: Options of the reader, which override those of the card; and ``format``, where the files are in another
            one than the card's.

    Returns:
        The splits the set has, keyed ``train``, ``val``, ``test`` in that order.

    Raises:
        DataError: The files are missing or wrong, or an option is unknown.
    """
    if not isinstance(card, Card):
        card = load_card(card)
    named = options.pop("format", None)
    card = settle(card, root, options, named).card
    chosen = {**card.options, **options}
    if card.format == "scenes":
        from petlbench.datasets.readers.scenes import read_scenes

        return read_scenes(chosen)
    parsed: Any = checked(options_model(card.format), chosen, f"options of data set {card.name}")
    if card.files is None:  # from the hub
        splits = _read(card, None, Path(), parsed)
    else:
        folder = find_root(card, root)
        parsed = _as_rules(card.format, _inside(folder, parsed, "val_list"), folder)
        annotations = folder / (parsed.annotations or card.files.annotations)
        if not annotations.exists():
            raise DataError(f"data set {card.name}: {annotations} does not exist. {how_to_give(card)}")
        images = folder / (getattr(parsed, "image_dir", None) or card.files.images or ".")
        splits = _read(card, annotations, images, parsed)
    return recut(splits, parsed, f"data set {card.name}")


def _read(card: Card, annotations: Path | None, images: Path, options: Any) -> dict[str, Split]:
    """What the reader of the card's format makes of the files. Readers are imported as needed: some take their time."""
    if card.format == "huggingface":
        from petlbench.datasets.readers.huggingface import read_huggingface

        return read_huggingface(annotations, options)
    assert annotations is not None
    if card.format == "karpathy":
        from petlbench.datasets.readers.karpathy import read_karpathy

        return read_karpathy(annotations, images, options)
    if card.format == "precomp":
        from petlbench.datasets.readers.precomp import read_precomp

        return read_precomp(annotations, images, options)
    if card.format == "pir-json":
        from petlbench.datasets.readers.pir_json import read_pir_json

        return read_pir_json(annotations, images, options)
    if card.format == "nwpu-json":
        from petlbench.datasets.readers.nwpu_json import read_nwpu_json

        return read_nwpu_json(annotations, images, options)
    if card.format == "table":
        from petlbench.datasets.readers.table import read_table

        return read_table(annotations, images, options)
    if card.format == "webdataset":
        from petlbench.datasets.readers.webdataset import read_webdataset

        return read_webdataset(annotations, options)
    assert card.format == "vilt-arrow"
    from petlbench.datasets.readers.vilt_arrow import read_vilt_arrow

    return read_vilt_arrow(annotations, options)


def _as_rules(format_name: str, options: Any, folder: Path) -> Any:
    """Options with paths taken from the root on, and with the cut that the text layout's own reader makes."""
    if format_name == "vilt-arrow":
        return _inside(folder, options, "karpathy_json")
    if format_name != "precomp":
        return options
    options = _inside(folder, options, "val_images")
    if options.fold is not None or options.test_share:
        return options.model_copy(update={"val_share": 0.0, "val_images": None})
    if options.val_list is not None:
        return options.model_copy(update={"val_images": options.val_list, "val_list": None})
    return options


def _inside(folder: Path, options: M, key: str) -> M:
    """The options with the path under ``key``, where there is one, taken from the root folder on."""
    given = getattr(options, key)
    return options if given is None else options.model_copy(update={key: str(folder / given)})
