"""Finding cards: by name among those that come with petlbench, or by the path of a user's own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import BaseModel

from petlbench.datasets.card import Card
from petlbench.datasets.options import OPTIONS
from petlbench.datasets.split import DataError
from petlbench.datasets.validation import checked, read_yaml, suggest

CARDS = Path(__file__).resolve().parent / "cards"

HUB = "hf:"
"""Begins the name of a data set on Hugging Face's hub."""


def list_cards() -> tuple[str, ...]:
    """Names of the cards that come with petlbench, sorted."""
    return tuple(sorted(path.stem for path in CARDS.glob("*.yaml")))


def load_card(name_or_path: str | Path) -> Card:
    """The card of a data set.

    Args:
        name_or_path: A name from :func:`list_cards`; or the path of a card file (``.yaml`` or ``.yml``); or a folder,
            whose format is found by looking; or ``hf:OWNER/NAME``, a data set on Hugging Face's hub.

    Raises:
        DataError: There is no such card, or a key of it is unknown, missing or has a wrong value; or a folder is in no
            format, or in several.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name.startswith(HUB):
        return _card_of_hub(name.removeprefix(HUB))
    if path.suffix not in (".yaml", ".yml"):
        if name not in list_cards():
            if path.is_dir():
                return card_of_folder(path)
            if is_path(name):
                raise DataError(
                    f"data set `{name}`: there is no such card, and no such folder; give the folder of a set, or a card (.yaml)"
                )
            raise DataError(
                f"data set `{name}`: there is no such card; {suggest(name, list_cards())} Your own card is given by its path, "
                "ending in .yaml, and a folder without a card by its path."
            )
        path = CARDS / f"{name}.yaml"
    values, lines = read_yaml(path)
    card = checked(Card, values, str(path), lines)
    checked(options_model(card.format), card.options, str(path), lines, prefix=("options",))
    for form, layout in card.layouts.items():
        checked(options_model(form), layout.options, str(path), lines, prefix=("layouts", form, "options"))
    if card.root is not None:
        card = card.model_copy(update={"root": str(path.absolute().parent / Path(card.root).expanduser())})
    return card


def is_path(name: str) -> bool:
    """Whether a data set is named by a place on this machine, and not by the name of a card or of the hub."""
    if name.startswith(HUB) or name in list_cards():
        return False
    given = Path(name).expanduser()
    return given.suffix in (".yaml", ".yml") or os.sep in name or name in (".", "..") or given.is_dir()


def card_of_folder(folder: Path) -> Card:
    """A card for a folder without one; its format is found when it is read (:func:`petlbench.datasets.layout.settle`)."""
    folder = folder.absolute()
    name = _as_name(folder.resolve().name)
    return Card(
        name=f"{name}-folder" if name in list_cards() else name,
        title=folder.resolve().name or "A folder",
        version="unversioned",
        licence="Not stated: a folder without a card.",
        citation="Not stated: a folder without a card.",
        format="auto",
        root=str(folder),
    )


def _card_of_hub(repo: str) -> Card:
    checked(options_model("huggingface"), {"repo": repo}, f"{HUB}{repo}")
    return checked(
        Card,
        {
            "name": _as_name(repo),
            "title": repo,
            "version": "see the revision",
            "licence": f"As stated at https://huggingface.co/datasets/{repo}",
            "citation": f"As stated at https://huggingface.co/datasets/{repo}",
            "sources": [{"what": "data set", "url": f"https://huggingface.co/datasets/{repo}"}],
            "format": "huggingface",
            "options": {"repo": repo},
        },
        f"{HUB}{repo}",
    )


def _as_name(text: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_") or "custom"


def options_model(format_name: str) -> type[BaseModel]:
    """The options that the reader of a format takes."""
    if format_name == "scenes":
        from petlbench.datasets.readers.scenes import ScenesOptions

        return ScenesOptions
    if format_name == "vilt-arrow":  # imported here, since pyarrow takes its time
        from petlbench.datasets.readers.vilt_arrow import ViltArrowOptions

        return ViltArrowOptions
    return OPTIONS[format_name]
