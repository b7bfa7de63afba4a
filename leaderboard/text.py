"""Numbers and records' strings as text for people: units, rounding, escaping."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

NOTHING = "–"

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKUP = re.compile(r"([\\`*_{}\[\]|~#$])")
_LINK = re.compile(r"(?i)\b(https?|ftp|mailto|www)([:.])")


def markdown(value: object) -> str:
    """Text that GitHub shows as it is: HTML and Markdown lose their meaning, line breaks and controls become spaces."""
    text = html.escape(_MARKUP.sub(r"\\\1", plain(value)), quote=False)
    return _LINK.sub(r"\1&#8203;\2", text)  # a zero-width space, so that an address does not become a link


def plain(value: object) -> str:
    """One line without control characters; among them are the ones that reverse the direction of text."""
    text = str(value)
    if text.isprintable():  # none of the characters below, so nearly every text is done here
        return " ".join(text.split())
    spaced = "".join(" " if unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp", "Cs"} else c for c in text)
    return " ".join(spaced.split())


def shorten(text: str, limit: int = 200) -> str:
    """At most ``limit`` characters of one line."""
    line = plain(text)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def slugs(titles: Iterable[str]) -> list[str]:
    """A distinct name of letters, digits and hyphens per title; of equal ones the later ones are counted."""
    taken: Counter[str] = Counter()
    found = []
    for title in titles:
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        taken[slug] += 1
        found.append(slug if taken[slug] == 1 else f"{slug}-{taken[slug]}")
    return found


def defused(cell: str) -> str:
    """Text that a spreadsheet does not run as a formula: it gets a leading apostrophe."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def percent(value: float | None, digits: int = 2) -> str:
    """``41.23``; a dash for None."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def metric(name: str) -> str:
    """``i2t R@1`` for ``i2t_r1``; ``mR`` as it is."""
    return name if name == "mR" else f"{name[:3]} R@{name[5:]}"


def milliseconds(seconds: float | None) -> str:
    """Three significant digits or all digits before the point, never an exponent; a dash for None."""
    if seconds is None:
        return NOTHING
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 or value == 0 else "<0.001"


def spread(mean: float, sd: float | None) -> str:
    """``41.23 ± 0.41``; the mean alone where there is no deviation."""
    return percent(mean) if sd is None else f"{percent(mean)} ± {percent(sd)}"


def interval(bounds: tuple[float, float] | None) -> str:
    """``40.80 to 41.90``; a dash for None."""
    return NOTHING if bounds is None else f"{percent(bounds[0])} to {percent(bounds[1])}"


def count(value: int) -> str:
    """Scalars: ``512``, ``163.8 K``, ``1.64 M``."""
    return _scaled(value, 1000.0, ("", "K", "M", "B", "T"))


def size(value: int | None) -> str:
    """Bytes: ``512 B``, ``640.0 KiB``, ``1.25 GiB``; a dash for None."""
    return NOTHING if value is None else _scaled(value, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))


def quantity(value: float | None) -> str:
    """Seconds or samples/s with three significant digits or all digits before the point; a dash for None."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def unless(reason: str, shown: str) -> str:
    """A cost, or one word that says why there is none: ``packed``, on a GPU that other trials shared; ``busy``, on a machine."""
    return reason or shown


def share(part: int, total: int) -> str:
    """Percent of a total with three significant digits; a dash where the total is 0."""
    return NOTHING if total == 0 else f"{100 * part / total:.3g}"


def ranges(values: tuple[int, ...]) -> str:
    """``20``, or ``10, 20`` where values differ."""
    return ", ".join(map(str, values))


def _scaled(value: int, base: float, units: tuple[str, ...]) -> str:
    power = 0
    scaled = float(value)
    while scaled >= base - 0.5 and power + 1 < len(units):
        scaled /= base
        power += 1
    digits = 0 if power == 0 else 1 if scaled >= 100 else 2
    return f"{scaled:,.{digits}f} {units[power]}".strip()
