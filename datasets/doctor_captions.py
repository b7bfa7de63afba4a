"""The doctor reads captions: blank, damaged, repeated, shared with other pictures, with train, with another set."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import ftfy
import numpy as np

from petlbench.datasets.card import Card
from petlbench.datasets.findings import Finding, Item, count, finding
from petlbench.datasets.near_captions import near_captions
from petlbench.datasets.readers.common import few
from petlbench.datasets.report import SplitReport
from petlbench.datasets.split import Split
from petlbench.datasets.splits import captions_of

LONG = 60
"""Words from which on a caption risks more than CLIP's 77 tokens; the sets of the field need 1.2 tokens a word."""

USUAL = 5
"""Captions of a picture in the sets of the field."""

_REFERENCE = re.compile(r"&(#\d+|#x[0-9a-fA-F]+|[A-Za-z]+\d*);")
_SPACE = re.compile(r"\s+")


def decoded_rightly(text: str) -> str:
    """A caption with UTF-8 that was read as another encoding read again, by ftfy, and with HTML references resolved."""
    while _REFERENCE.search(text) and (resolved := html.unescape(text)) != text:  # references to references
        text = resolved
    return text if text.isascii() else ftfy.fix_encoding(text)


def visible(text: str) -> str:
    """A caption without control and format characters (zero-width ones among them; white space stays), in form NFC."""
    if text.isascii() and text.isprintable():
        return text
    kept = (c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs"))
    return unicodedata.normalize("NFC", "".join(kept))


def evenly_spaced(text: str) -> str:
    """A caption with one space wherever there is white space."""
    return _SPACE.sub(" ", text).strip()


NORMALISE: dict[str, Callable[[str], str]] = {"D016": decoded_rightly, "D017": visible, "D019": evenly_spaced}
"""What a code says of a caption is so where this changes it."""


def has_word(text: str) -> bool:
    """Whether a letter or digit is in it."""
    return any(c.isalnum() for c in text)


def text_findings(split: Split, report: SplitReport, train: Split | None, card: Card) -> Iterator[Finding]:
    """What is to be said of the captions of one split."""
    said = Said(split)
    yield from _blank(said, report, card)
    yield from _numbers(split, report)
    yield from _repeats(split, report, card)
    yield from _shared(said, report)
    if report.captions_in_train and train is not None:
        message = f"{report.captions_in_train / report.captions:.1%} of the captions occur verbatim in train"
        items = said.items_in(homes_of(train), "train")
        yield finding("D013", split.name, message, "Part of the recall rewards memory of sentences.", items)
    yield from _letters(said, report)
    if report.words_max > LONG:
        items = said.items(lambda text: len(text.split()) > LONG)
        message = f"the longest caption has {report.words_max} words"
        yield finding("D015", split.name, message, "CLIP's text tower cuts after 77 tokens.", items)


def near_findings(splits: Mapping[str, Split]) -> Iterator[Finding]:
    """Captions that are nearly those of another picture, of the split itself or of train."""
    texts = list(dict.fromkeys(text for split in splits.values() for text in split.distinct))
    pairs = near_captions(texts)
    homes = {name: homes_of(split) for name, split in splits.items()}
    ways = (
        ("D040", "form", "are equal, but for case and punctuation, to one", "Cleaning makes them one."),
        ("D041", "words", "share four fifths of their words with one", "Near to false negatives."),
    )
    for code, how, says, advice in ways:
        listed = [(texts[pair.first], texts[pair.second]) for pair in pairs if pair.how == how]
        if not listed:
            continue
        for name, split in splits.items():
            for other in dict.fromkeys((name, "train")):
                if other not in splits:
                    continue
                items, captions = _near_items(name, other, homes, listed)
                if items:
                    of = "of another picture" if name == other else "of train"
                    shown = few([f"{one.text!r} ~ {one.twin_text!r}" for one in items], 1)
                    message = f"{captions / max(len(split.captions), 1):.1%} of the captions {says} {of}, e.g. {shown}"
                    place = name if name == other else f"{name}, {other}"
                    yield finding(code, place, message, advice, items)


def _blank(said: Said, report: SplitReport, card: Card) -> Iterator[Finding]:
    name = said.split.name
    if report.blank_captions:
        items = said.items(lambda text: not text.strip(), each=True)
        dropped = card.options.get("blank") == "drop"
        advice = "The card leaves them out." if dropped else "Write captions, or use the option blank=drop."
        pictures = list(dict.fromkeys(one.picture or "" for one in items))
        message = f"{count(report.blank_captions, 'caption')} blank, of {few(pictures)}"
        yield finding("D005", name, message, advice, items, "warning" if dropped else None)
    wordless = said.items(lambda text: bool(text.strip()) and not has_word(text), each=True)
    if wordless:
        named = few([f"{one.text!r} of {one.picture}" for one in wordless])
        message = f"{count(len(wordless), 'caption')} without a word: {named}"
        yield finding("D018", name, message, "No scorer can find their picture; leave them out.", wordless)


def _numbers(split: Split, report: SplitReport) -> Iterator[Finding]:
    counts = report.captions_per_image
    if 0 in counts:
        silent = np.flatnonzero(np.bincount(split.owner, minlength=report.images) == 0)
        names = [split.images[i].name for i in silent]
        message = f"{count(counts[0], 'picture')} without a caption: {few(names)}"
        items = [Item(split=split.name, picture=n) for n in names]
        yield finding("D006", split.name, message, "Caption them or remove them.", items)
    elif len(counts) > 1:
        usual = max(counts, key=lambda number: (counts[number], number))
        numbers = np.bincount(split.owner, minlength=report.images)
        odd = [
            Item(split=split.name, picture=split.images[i].name, told=f"{numbers[i]} captions")
            for i in np.flatnonzero(numbers != usual)
        ]
        spread = ", ".join(f"{times} with {number}" for number, times in counts.items())
        advice = "Text-to-image recall averages over captions, so such pictures weigh unequally."
        yield finding("D010", split.name, f"captions per picture differ: {spread}", advice, odd)
    elif counts and USUAL not in counts:
        message = f"every picture has {count(next(iter(counts)), 'caption')}; in the sets of the field it has five"
        advice = "Image-to-text recall grows with the number of captions, so do not compare it across sets."
        yield finding("D010", split.name, message, advice)


def _repeats(split: Split, report: SplitReport, card: Card) -> Iterator[Finding]:
    if not report.images_with_repeats:
        return
    message = (
        f"{report.images_with_repeats:,} of {report.images:,} pictures carry a caption more than once, "
        f"{report.images_one_caption_repeated:,} carry one caption only; "
        f"{count(report.repeated_captions, 'caption')} in all"
    )
    left_out = card.options.get("captions") == "distinct"
    advice = "The card leaves the repeats out." if left_out else "An epoch over captions repeats them."
    items = [
        Item(split=split.name, picture=image.name, told=f"{len(set(texts))} distinct of {len(texts)}")
        for image, texts in zip(split.images, captions_of(split), strict=True)
        if len(set(texts)) < len(texts)
    ]
    yield finding("D011", split.name, message, advice, items)


def _shared(said: Said, report: SplitReport) -> Iterator[Finding]:
    if not report.captions_of_several_images:
        return
    split, items = said.split.name, []
    for text, places in said.homes.items():
        names = list(dict.fromkeys(name for name, _ in places))
        if len(names) > 1:
            items.append(said.item(text, places[0], f"{len(names)} pictures", f"{split}/{names[1]}"))
    share = report.captions_of_several_images / report.captions
    message = f"{share:.1%} of the captions also belong to another picture"
    advice = "Plain contrastive losses push true pairs apart; see mask_duplicates."
    yield finding("D012", split, message, advice, items)


def _letters(said: Said, report: SplitReport) -> Iterator[Finding]:
    name = said.split.name
    if report.non_ascii_captions:
        items = said.items(lambda text: not text.isascii())
        message = f"{count(report.non_ascii_captions, 'caption')} with characters outside ASCII, e.g. {items[0].text!r}"
        yield finding("D014", name, message, "Harmless if meant; often a sign of a wrong encoding.", items)
    lost = said.items(lambda text: "\ufffd" in text)
    if lost:
        message = f"{count(len(lost), 'caption')} with letters that are lost (U+FFFD), e.g. {lost[0].text!r}"
        yield finding("D009", name, message, "Fetch the file again, or save it in the encoding it has.", lost)
    says = {
        "D016": ("decoded wrongly or with HTML references", "Tokenizers see other words; read the file as UTF-8."),
        "D017": ("with invisible characters or not in form NFC", "Equal captions count as different ones."),
        "D019": ("with double spaces or other irregular white space", "Equal captions count as different ones."),
    }
    for code, (what, advice) in says.items():
        mend = NORMALISE[code]
        items = said.items(lambda text, mend=mend: mend(text) != text)  # type: ignore[misc]
        if items:
            first = items[0].text or ""
            message = f"{count(len(items), 'distinct caption')} {what}, e.g. {first!r}, which would be {mend(first)!r}"
            yield finding(code, name, message, advice, items)


Homes = dict[str, list[tuple[str, int]]]
"""For each string the pictures that carry it, and which of their captions it is."""


class Said:
    """The captions of a split by string."""

    def __init__(self, split: Split):
        """Gather them."""
        self.split = split
        self.homes = homes_of(split)

    def item(self, text: str, place: tuple[str, int], told: str | None = None, twin: str | None = None) -> Item:
        """One caption."""
        return Item(split=self.split.name, picture=place[0], caption=place[1], text=text, told=told, twin=twin)

    def items(self, wanted: Callable[[str], bool], each: bool = False) -> list[Item]:
        """The captions that are wanted: each string once, or every one of them."""
        return [
            self.item(text, place, f"{len(places)} captions" if len(places) > 1 and not each else None)
            for text, places in self.homes.items()
            if wanted(text)
            for place in (places if each else places[:1])
        ]

    def items_in(self, known: Homes, where: str) -> list[Item]:
        """Each string that others have too, with the first of them."""
        found = self.items(known.__contains__)
        return [one.model_copy(update={"twin": f"{where}/{known[one.text or ''][0][0]}"}) for one in found]


def homes_of(split: Split) -> Homes:
    """Where each string stands."""
    homes: Homes = defaultdict(list)
    for image, texts in zip(split.images, captions_of(split), strict=True):
        for number, text in enumerate(texts):
            homes[text].append((image.name, number))
    return dict(homes)


def _near_items(
    name: str, other: str, homes: Mapping[str, Homes], pairs: Iterable[tuple[str, str]]
) -> tuple[list[Item], int]:
    """Strings of a split that are near to one of another picture, and how many captions they are."""
    near: dict[str, tuple[str, str]] = {}
    hit: set[tuple[str, str, int]] = set()
    for one, two in pairs:
        for text, twin in ((one, two), (two, one)):
            if text not in homes[name] or twin not in homes[other] or (name != other and text in homes[other]):
                continue
            there = homes[other][twin]
            names = {picture for picture, _ in there}
            for picture, number in homes[name][text]:
                if name != other or len(names) > 1 or picture not in names:
                    hit.add((text, picture, number))
                    near.setdefault(text, (twin, next(p for p, _ in there if name != other or p != picture)))
    items = [
        Item(
            split=name,
            picture=homes[name][text][0][0],
            caption=homes[name][text][0][1],
            text=text,
            twin=f"{other}/{picture}",
            twin_text=twin,
        )
        for text, (twin, picture) in near.items()
    ]
    return items, len(hit)
