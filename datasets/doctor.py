"""The doctor: reads a data set as a sceptic would and reports all that is wrong or worth knowing, not just the first.

Figures and findings are described in :mod:`petlbench.datasets.report`.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from petlbench.datasets.card import Card
from petlbench.datasets.readers.common import without_blanks, without_repeats
from petlbench.datasets.report import CODES, BadPicture, DoctorReport, Finding, Severity, SplitReport, render
from petlbench.datasets.split import DataError, ImageRef, Split

__all__ = ["CODES", "DoctorReport", "examine", "lenient", "render"]

LONG = 60
"""Words from which on a caption risks more than CLIP's 77 tokens; the sets of the field need 1.2 tokens a word."""

_ORDER = ("error", "warning", "note")
_NAMED = 3


def lenient(card: Card) -> dict[str, str]:
    """Options to load a set with before :func:`examine`: blank and repeated captions are then reported."""
    if card.format == "scenes":
        return {}
    return {"blank": "keep", "captions": "all"} if card.format == "vilt-arrow" else {"blank": "keep"}


def examine(
    splits: Mapping[str, Split],
    card: Card,
    check_pixels: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> DoctorReport:
    """Examine a data set.

    Load it with the options of :func:`lenient`. Counts are compared with the card without
    blank captions and the pictures they leave undescribed, and without repeats where the card leaves them out.

    Args:
        splits: The splits, as from :func:`petlbench.datasets.load.load`.
        card: What the set should be.
        check_pixels: Decode every picture; without it no picture is touched.
        progress: Called with (pictures done, pictures in all).

    Returns:
        The report. Bad pictures never stop the examination.
    """
    bad, same = _pictures(splits, progress) if check_pixels else ([], [])
    reports = {name: _report(split, splits.get("train")) for name, split in splits.items()}
    findings = [*_between(splits, same, card), *_picture_findings(splits, bad)]
    for name, split in splits.items():
        findings += _against_card(split, card)
        findings += _text_findings(split, reports[name], card)
        findings += _reference_findings(name, reports[name])
    for name in card.expected.keys() - splits.keys():
        findings.append(
            _finding("D003", name, "the split is missing", "The card expects it; check the annotation files.")
        )
    findings.sort(key=lambda finding: (_ORDER.index(finding.severity), finding.code))
    return DoctorReport(
        card=card.name,
        title=card.title,
        pixels_checked=check_pixels,
        splits=reports,
        bad_pictures=bad,
        same_pictures=same,
        findings=findings,
    )


def _report(split: Split, train: Split | None) -> SplitReport:
    """Figures of one split; strings are looked at once each, the rest is arithmetic on ids."""
    from petlbench.harness.metrics import ceiling, class_oracle

    n_images, distinct, ids = len(split.images), split.distinct, split.text_ids
    words = np.array([len(text.split()) for text in distinct], dtype=np.int64)[ids]
    ascii_only = np.array([text.isascii() for text in distinct], dtype=bool)[ids]
    per_image = np.bincount(split.owner, minlength=n_images)
    pairs = np.unique(split.owner * max(len(distinct), 1) + ids)
    distinct_per_image = np.bincount(pairs // max(len(distinct), 1), minlength=n_images)
    owners_per_text = np.bincount(pairs % max(len(distinct), 1), minlength=len(distinct))
    in_train = None
    if train is not None and split is not train:
        known = set(train.distinct)
        in_train = int(np.array([text in known for text in distinct], dtype=bool)[ids].sum())
    usable = without_blanks(split)
    labels = None if split.labels is None else split.labels[split.labels >= 0]
    return SplitReport(
        images=n_images,
        captions=len(ids),
        captions_per_image={
            int(n): int(times) for n, times in zip(*np.unique(per_image, return_counts=True), strict=True)
        },
        distinct_captions=len(distinct),
        blank_captions=int((words == 0).sum()),
        non_ascii_captions=int((~ascii_only).sum()),
        words_mean=float(words.mean()) if len(words) else 0.0,
        words_max=int(words.max(initial=0)),
        images_one_caption_repeated=int(((distinct_per_image == 1) & (per_image > 1)).sum()),
        images_with_repeats=int((distinct_per_image < per_image).sum()),
        repeated_captions=len(ids) - len(pairs),
        captions_of_several_images=int((owners_per_text[ids] > 1).sum()),
        captions_in_train=in_train,
        classes=0 if labels is None else len(np.unique(labels)),
        images_without_class=n_images - (0 if labels is None else len(labels)),
        ceiling=ceiling(usable.owner, usable.text_ids) if usable.captions else {},
        class_oracle=None
        if usable.labels is None or not usable.captions
        else class_oracle(usable.owner, usable.labels),
    )


def _pictures(
    splits: Mapping[str, Split], progress: Callable[[int, int], None] | None
) -> tuple[list[BadPicture], list[list[str]]]:
    """Open every picture: the bad ones, and the groups with equal pixels."""
    listed = [(name, image) for name, split in splits.items() for image in split.images]
    bad, groups = [], defaultdict(list)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, ((name, image), seen) in enumerate(
            zip(listed, pool.map(_look, (image for _, image in listed)), strict=True), 1
        ):
            if isinstance(seen, bytes):
                groups[seen].append(f"{name}/{image.name}")
            else:
                bad.append(BadPicture(split=name, name=image.name, missing=seen[0], reason=seen[1]))
            if progress is not None:
                progress(done, len(listed))
    return bad, [group for group in groups.values() if len(group) > 1]


def _look(image: ImageRef) -> bytes | tuple[bool, str]:
    """Hash of a picture's size and pixels; or whether it is missing, and the complaint."""
    try:
        image.fingerprint()
    except DataError as error:
        return True, str(error)
    try:
        picture = image.open()
    except Exception as error:  # whatever a decoder raises on a broken file is the finding
        return False, str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
    return hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).digest()


def _picture_findings(splits: Mapping[str, Split], bad: list[BadPicture]) -> Iterator[Finding]:
    for name, split in splits.items():
        for code, missing in (("D001", True), ("D002", False)):
            names = [picture.name for picture in bad if picture.split == name and picture.missing is missing]
            if not names:
                continue
            advice = "Fetch these files again."
            if missing and len(names) == len(split.images):
                advice = (
                    "All of them: the picture folder or extension is wrong; see the options image_dir and extension."
                )
            trouble = "are missing" if missing else "cannot be decoded"
            yield _finding(
                code, name, f"{len(names)} of {len(split.images)} pictures {trouble}: {_some(names)}", advice
            )


def _between(splits: Mapping[str, Split], same: list[list[str]], card: Card) -> Iterator[Finding]:
    """Pictures that occur more than once, by name or by pixels."""
    home: dict[str, str] = {}
    twice: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, split in splits.items():
        for image in split.images:
            if (first := home.setdefault(image.name, name)) != name:
                twice[first, name].append(image.name)
    for pair, names in twice.items():
        message = f"{_count(len(names), 'picture name')} in both splits: {_some(names)}"
        joined = _joined(card, *pair)
        advice = "A picture belongs to one split; remove it from the other."
        if joined:
            advice = "The option parts joins them, as ViLT trains; choosing on val then rewards memory."
        yield _finding("D007", ", ".join(pair), message, advice, "warning" if joined else None)
    across: dict[tuple[str, ...], list[str]] = defaultdict(list)
    within: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for group in same:
        homes = tuple(dict.fromkeys(member.split("/", 1)[0] for member in group))
        (across if len(homes) > 1 else within)[homes].append(" = ".join(group))
    for homes, groups in across.items():
        message = f"{_count(len(groups), 'picture')} with the same pixels in {' and '.join(homes)}: {_some(groups)}"
        yield _finding("D020", ", ".join(homes), message, "Recall on them measures memory; remove them from training.")
    for homes, groups in within.items():
        message = f"{_count(len(groups), 'picture')} more than once, pixel by pixel: {_some(groups)}"
        yield _finding("D021", homes[0], message, "Exact-pair recall counts the twin as a miss.")


def _joined(card: Card, first: str, second: str) -> bool:
    """Whether the card's options read a part of the files into both splits."""
    parts = card.options.get("parts", {})
    return bool({*parts.get(first, [first])} & {*parts.get(second, [second])})


def _as_used(split: Split, card: Card) -> Split:
    """The split without blank captions, and without repeats where the card leaves them out."""
    usable = without_blanks(split)
    return without_repeats(usable) if card.options.get("captions") == "distinct" else usable


def _against_card(split: Split, card: Card) -> Iterator[Finding]:
    expected = card.expected.get(split.name)  # type: ignore[call-overload]
    if expected is None:
        return
    usable = _as_used(split, card)
    found = (len(usable.images), len(usable.captions))
    if found != (expected.images, expected.captions):
        message = (
            f"found {found[0]:,} pictures with {found[1]:,} captions that are not blank, "
            f"the card expects {expected.images:,} with {expected.captions:,}"
        )
        yield _finding("D003", split.name, message, "Compare the annotations with their source, and the options used.")
    elif expected.sha256 is not None and usable.sha256 != expected.sha256:
        message = "the counts are as expected, but a caption, a name or the order differs from the published files"
        yield _finding("D004", split.name, message, "Results are comparable only to others on these same files.")


def _text_findings(split: Split, report: SplitReport, card: Card) -> Iterator[Finding]:
    name, captions = split.name, report.captions
    if report.blank_captions:
        blank = [split.images[o].name for o, c in zip(split.owner, split.captions, strict=True) if not c.strip()]
        dropped = card.options.get("blank") == "drop"
        advice = "The card leaves them out." if dropped else "Write captions, or use the option blank=drop."
        message = f"{_count(report.blank_captions, 'caption')} blank, of {_some(list(dict.fromkeys(blank)))}"
        yield _finding("D005", name, message, advice, "warning" if dropped else None)
    counts = report.captions_per_image
    if 0 in counts:
        silent = np.flatnonzero(np.bincount(split.owner, minlength=report.images) == 0)
        message = f"{_count(counts[0], 'picture')} without a caption: {_some([split.images[i].name for i in silent])}"
        yield _finding("D006", name, message, "Caption them or remove them.")
    elif len(counts) > 1:
        spread = ", ".join(f"{times} with {number}" for number, times in counts.items())
        advice = "Text-to-image recall averages over captions, so such pictures weigh unequally."
        yield _finding("D010", name, f"captions per picture differ: {spread}", advice)
    if report.images_with_repeats:
        message = (
            f"{report.images_with_repeats:,} of {report.images:,} pictures carry a caption more than once, "
            f"{report.images_one_caption_repeated:,} carry one caption only; "
            f"{_count(report.repeated_captions, 'caption')} in all"
        )
        left_out = card.options.get("captions") == "distinct"
        advice = "The card leaves the repeats out." if left_out else "An epoch over captions repeats them."
        yield _finding("D011", name, message, advice)
    if report.captions_of_several_images:
        message = f"{report.captions_of_several_images / captions:.1%} of the captions also belong to another picture"
        yield _finding("D012", name, message, "Plain contrastive losses push true pairs apart; see mask_duplicates.")
    if report.captions_in_train:
        message = f"{report.captions_in_train / captions:.1%} of the captions occur verbatim in train"
        yield _finding("D013", name, message, "Part of the recall rewards memory of sentences.")
    if report.non_ascii_captions:
        odd = next(caption for caption in split.captions if not caption.isascii())
        message = f"{_count(report.non_ascii_captions, 'caption')} with characters outside ASCII, e.g. {odd!r}"
        yield _finding("D014", name, message, "Harmless if meant; often a sign of a wrong encoding.")
    if report.words_max > LONG:
        message = f"the longest caption has {report.words_max} words"
        yield _finding("D015", name, message, "CLIP's text tower cuts after 77 tokens.")


def _reference_findings(name: str, report: SplitReport) -> Iterator[Finding]:
    if name == "train":
        return
    if report.ceiling and report.ceiling["t2i_r1"] < 99:
        best = " / ".join(f"{report.ceiling[key]:.2f}" for key in ("t2i_r1", "t2i_r5", "t2i_r10"))
        message = f"no scorer can pass a text-to-image R@1/5/10 of {best}, because pictures share captions"
        yield _finding("D030", name, message, "Read duplicate-aware recall beside the strict one.")
    if report.class_oracle is None:
        yield _finding("D032", name, "no scene classes are known", "The class-only reference row is left out.")
        return
    message = f"knowing nothing but the scene class gives an mR of {report.class_oracle['mR']:.2f}"
    unknown = report.images_without_class
    advice = f"{unknown} pictures of unknown class count as one class." if unknown else "Read results against it."
    yield _finding("D031", name, message, advice)


def _finding(code: str, place: str, message: str, advice: str, severity: Severity | None = None) -> Finding:
    return Finding(code=code, severity=severity or CODES[code][0], place=place, message=message, advice=advice)


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
