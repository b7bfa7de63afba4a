"""The doctor: reads a data set as a sceptic would and reports all that is wrong or worth knowing, not just the first.

Codes are described in :mod:`petlbench.datasets.findings`, figures in :mod:`petlbench.datasets.report`. Nothing is written;
:mod:`petlbench.datasets.fix` makes a mended copy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from petlbench.datasets.card import Card
from petlbench.datasets.doctor_against import Against, against_findings
from petlbench.datasets.doctor_captions import near_findings, text_findings
from petlbench.datasets.doctor_pictures import (
    Looks,
    bad_pictures,
    look_at,
    name_findings,
    picture_findings,
    same_pictures,
)
from petlbench.datasets.findings import CODES, SEVERITIES, Finding, finding, need_pictures
from petlbench.datasets.places import Places
from petlbench.datasets.readers.common import without_blanks, without_repeats
from petlbench.datasets.report import DoctorReport, SplitReport, render
from petlbench.datasets.split import Split

__all__ = ["CODES", "Against", "DoctorReport", "examine", "lenient", "look_at", "render"]


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
    *,
    looks: Looks | None = None,
    against: Against | None = None,
    codes: Collection[str] = frozenset(CODES),
    places: Places | None = None,
) -> DoctorReport:
    """Examine a data set.

    Load it with the options of :func:`lenient`. Counts are compared with the card without
    blank captions and the pictures they leave undescribed, and without repeats where the card leaves them out.

    Args:
        splits: The splits, as from :func:`petlbench.datasets.load.load`.
        card: What the set should be.
        check_pixels: Decode every picture; without it no picture is touched.
        progress: Called with (pictures done, pictures in all).
        looks: What was seen of the pictures already; they are not decoded again then.
        against: Another set, to find what both hold.
        codes: What to report; pictures are decoded only where one of these needs it.
        places: Where captions and pictures stand in the files.

    Returns:
        The report. Bad pictures never stop the examination.
    """
    check_pixels = check_pixels and need_pictures(codes)
    if not check_pixels:
        looks = {}
    elif looks is None:
        looks = look_at(splits, progress)
    reports = {name: _report(split, splits.get("train")) for name, split in splits.items()}
    found = [*name_findings(splits, card), *picture_findings(splits, looks)]
    for name, split in splits.items():
        found += _against_card(split, card)
        found += text_findings(split, reports[name], splits.get("train"), card)
        found += _reference_findings(name, reports[name])
    for name in card.expected:
        if name not in splits:
            message = "the split is missing"
            found.append(finding("D003", name, message, "The card expects it; check the annotation files."))
    if {"D040", "D041"} & set(codes):
        found += near_findings(splits)
    if against is not None:
        found += against_findings(splits, looks, against)
    found = [one for one in found if one.code in codes]
    found.sort(key=lambda one: (SEVERITIES.index(one.severity), one.code))
    if places is not None:
        found = [one.model_copy(update={"items": [places.placed(item) for item in one.items]}) for one in found]
    return DoctorReport(
        card=card.name,
        title=card.title,
        pixels_checked=check_pixels,
        splits=reports,
        bad_pictures=bad_pictures(looks),
        same_pictures=[[f"{split}/{name}" for split, name in group] for group in same_pictures(looks)],
        against=None if against is None else against.name,
        findings=found,
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
        yield finding("D003", split.name, message, "Compare the annotations with their source, and the options used.")
    elif expected.sha256 is not None and usable.sha256 != expected.sha256:
        message = "the counts are as expected, but a caption, a name or the order differs from the published files"
        yield finding("D004", split.name, message, "Results are comparable only to others on these same files.")


def _reference_findings(name: str, report: SplitReport) -> Iterator[Finding]:
    if name == "train":
        return
    if report.ceiling and report.ceiling["t2i_r1"] < 99:
        best = " / ".join(f"{report.ceiling[key]:.2f}" for key in ("t2i_r1", "t2i_r5", "t2i_r10"))
        message = f"no scorer can pass a text-to-image R@1/5/10 of {best}, because pictures share captions"
        yield finding("D030", name, message, "Read duplicate-aware recall beside the strict one.")
    if report.class_oracle is None:
        yield finding("D032", name, "no scene classes are known", "The class-only reference row is left out.")
        return
    message = f"knowing nothing but the scene class gives an mR of {report.class_oracle['mR']:.2f}"
    unknown = report.images_without_class
    advice = f"{unknown} pictures of unknown class count as one class." if unknown else "Read results against it."
    yield finding("D031", name, message, advice)
