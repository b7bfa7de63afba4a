"""What the doctor found, as data, as JSON and as tables on a terminal."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from petlbench.datasets.findings import Finding

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
_LISTED = 20
_PLACES = 3

SCHEMA_VERSION = 1
"""Of the JSON form of a report; grows when a field changes its meaning or goes."""


class SplitReport(BaseModel):
    """Figures of one split.

    Attributes:
        images: N.
        captions: M.
        captions_per_image: How many pictures have 0, 1, 2, ... captions, by that number.
        distinct_captions: Distinct strings.
        blank_captions: Captions without a visible character.
        non_ascii_captions: Captions with a character outside ASCII.
        words_mean: Words per caption, split at white space.
        words_max: Words of the longest caption.
        images_one_caption_repeated: Pictures with several captions that are all one string.
        images_with_repeats: Pictures with fewer distinct captions than captions.
        repeated_captions: Captions that their picture carries already.
        captions_of_several_images: Captions whose string also belongs to another picture of the split.
        captions_in_train: Captions that occur verbatim in train; None for train itself or where there is no train.
        classes: Scene classes that occur; 0 where none is known.
        images_without_class: Pictures of unknown class.
        ceiling: Text-to-image recalls of a perfect scorer, percent; see :func:`petlbench.harness.metrics.ceiling`.
        class_oracle: Recalls of knowing the scene class only, percent; None without classes.
    """

    images: int
    captions: int
    captions_per_image: dict[int, int]
    distinct_captions: int
    blank_captions: int
    non_ascii_captions: int
    words_mean: float
    words_max: int
    images_one_caption_repeated: int
    images_with_repeats: int
    repeated_captions: int
    captions_of_several_images: int
    captions_in_train: int | None
    classes: int
    images_without_class: int
    ceiling: dict[str, float]
    class_oracle: dict[str, float] | None


class BadPicture(BaseModel):
    """A picture that cannot be used, and why."""

    split: str
    name: str
    missing: bool
    cut_off: bool = False
    reason: str


class DoctorReport(BaseModel):
    """All that the doctor found in a data set.

    Attributes:
        schema_version: Of this form.
        card: Name of the card.
        title: Its title.
        pixels_checked: Whether the pictures were opened.
        splits: Figures by split.
        bad_pictures: Every picture that is missing or cannot be decoded.
        same_pictures: Groups of pictures (``split/name``) with the same pixels.
        against: The set that it was compared with, or None.
        findings: Worst first; those that were selected.
    """

    schema_version: int = SCHEMA_VERSION
    card: str
    title: str
    pixels_checked: bool
    splits: dict[str, SplitReport]
    bad_pictures: list[BadPicture]
    same_pictures: list[list[str]]
    against: str | None = None
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """No finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_json(self) -> str:
        """The report as indented JSON."""
        return self.model_dump_json(indent=2)


def render(report: DoctorReport, console: Console) -> None:
    """Print a report: figures, unusable pictures, findings with advice, verdict."""
    console.print(_figures(report))
    for picture in report.bad_pictures[:_LISTED]:
        console.print(Text(f"{picture.split}/{picture.name}: {picture.reason}", style="red"))
    if (hidden := len(report.bad_pictures) - _LISTED) > 0:
        console.print(f"... and {hidden} more; the JSON report lists all")
    for finding in report.findings:
        line = Text(f"{finding.severity} {finding.code} ", style=_COLOURS[finding.severity])
        line.append(f"{finding.place}: {finding.message}. ", "default").append(finding.advice, "dim")
        if finding.fix == "always":
            line.append(" [--fix]", "green")
        console.print(line)
        if places := _places(finding):
            console.print(Text(f"    at {places}", style="dim"))
    tally = {name: sum(finding.severity == name for finding in report.findings) for name in _COLOURS}
    counted = ", ".join(f"{number} {name}{'s' * (number != 1)}" for name, number in tally.items())
    unseen = "" if report.pixels_checked else " Pictures were not opened."
    console.print(f"{report.card}: {counted}.{unseen}")


def _places(finding: Finding) -> str:
    """The first places of a finding, by the names of the files; the JSON report has all, with the folders."""
    listed = list(dict.fromkeys((Path(one.file).name, one.entry or "") for one in finding.items if one.file))
    by_file: dict[str, list[str]] = {}
    for file, entry in listed[:_PLACES]:
        by_file.setdefault(file, []).append(entry)
    shown = "; ".join(f"{file} {', '.join(entries)}".strip() for file, entries in by_file.items())
    return shown + (f" and {len(listed) - _PLACES:,} more" if len(listed) > _PLACES else "")


def _figures(report: DoctorReport) -> Table:
    table = Table(title=Text(f"{report.title} ({report.card})"))
    table.add_column("")
    for name in report.splits:
        table.add_column(name, justify="right")

    def share(part: int | None, whole: int) -> str:
        return "" if part is None else f"{part:,} ({part / max(whole, 1):.1%})"

    def recall(values: dict[str, float] | None, *keys: str) -> str:
        return " / ".join(f"{values[key]:.2f}" for key in keys) if values else ""

    t2i = ("t2i_r1", "t2i_r5", "t2i_r10")
    splits = list(report.splits.values())
    rows = {
        "pictures": [f"{s.images:,}" for s in splits],
        "captions": [f"{s.captions:,}" for s in splits],
        "captions per picture": [", ".join(map(str, s.captions_per_image)) for s in splits],
        "distinct captions": [share(s.distinct_captions, s.captions) for s in splits],
        "captions of several pictures": [share(s.captions_of_several_images, s.captions) for s in splits],
        "captions also in train": [share(s.captions_in_train, s.captions) for s in splits],
        "pictures with repeated captions": [share(s.images_with_repeats, s.images) for s in splits],
        "pictures with one caption only, repeated": [share(s.images_one_caption_repeated, s.images) for s in splits],
        "words per caption, mean / max": [f"{s.words_mean:.1f} / {s.words_max}" for s in splits],
        "scene classes": [str(s.classes) for s in splits],
        "ceiling, text to image R@1/5/10": [recall(s.ceiling, *t2i) for s in splits],
        "class-only mR": [recall(s.class_oracle, "mR") for s in splits],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table
