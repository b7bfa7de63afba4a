"""Finding cards: by name among those that come with petlbench, or by the path of a user's own."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from petlbench.datasets.card import Card
from petlbench.datasets.options import OPTIONS
from petlbench.datasets.split import DataError
from petlbench.datasets.validation import checked, read_yaml, suggest

CARDS = Path(__file__).resolve().parent / "cards"


def list_cards() -> tuple[str, ...]:
    """Names of the cards that come with petlbench, sorted."""
    return tuple(sorted(path.stem for path in CARDS.glob("*.yaml")))


def load_card(name_or_path: str | Path) -> Card:
    """The card of a data set.

    Args:
        name_or_path: A name from :func:`list_cards`, or the path of a card file (``.yaml`` or ``.yml``).

    Raises:
        DataError: There is no such card, or a key of it is unknown, missing or has a wrong value.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        name, path = str(name_or_path), CARDS / f"{name_or_path}.yaml"
        if name not in list_cards():
            raise DataError(
                f"data set `{name}`: there is no such card; {suggest(name, list_cards())} "
                "Your own card is given by its path, ending in .yaml."
            )
    values, lines = read_yaml(path.expanduser())
    card = checked(Card, values, str(path), lines)
    checked(options_model(card.format), card.options, str(path), lines, prefix=("options",))
    return card


def options_model(format_name: str) -> type[BaseModel]:
    """The options that the reader of a format takes."""
    if format_name == "scenes":
        from petlbench.datasets.readers.scenes import ScenesOptions

        return ScenesOptions
    if format_name == "vilt-arrow":  # imported here, since pyarrow takes its time
        from petlbench.datasets.readers.vilt_arrow import ViltArrowOptions

        return ViltArrowOptions
    return OPTIONS[format_name]
