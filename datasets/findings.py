"""What the doctor can find: every code with its severity and its remedy, and a finding as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel

from petlbench.datasets.split import DataError
from petlbench.datasets.validation import suggest

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Worst first."""

Fix = Literal["always", "asked", "never"]
"""Whether ``--fix`` mends a finding: always, where ``--select`` names its code, or never."""


class Code(NamedTuple):
    """What a code stands for.

    Attributes:
        severity: Its usual severity.
        says: What it says.
        fix: Whether ``--fix`` mends it.
        remedy: What ``--fix`` does, or what else to do.
        needs: What must be looked at: the ``text`` alone, the ``pixels``, or another set (``other``).
    """

    severity: Severity
    says: str
    fix: Fix
    remedy: str
    needs: Literal["text", "pixels", "other"] = "text"


CODES: dict[str, Code] = {
    "D001": Code("error", "pictures are missing", "always", "leaves them out", "pixels"),
    "D002": Code("error", "pictures cannot be decoded", "always", "leaves them out", "pixels"),
    "D003": Code("error", "the counts differ from the card", "never", "compare with the source"),
    "D004": Code(
        "warning", "captions, names or their order differ from the published ones", "never", "compare with the source"
    ),
    "D005": Code("error", "captions are blank (a warning where the card leaves them out)", "always", "leaves them out"),
    "D006": Code("error", "pictures have no caption", "always", "leaves them out"),
    "D007": Code(
        "error",
        "a picture name occurs in two splits (a warning where the options join them)",
        "asked",
        "keeps it in the last of its splits only",
    ),
    "D008": Code("error", "pictures are cut off", "always", "leaves them out", "pixels"),
    "D009": Code("warning", "captions have lost letters (U+FFFD)", "never", "fetch them again in the right encoding"),
    "D010": Code("note", "pictures carry different numbers of captions, or not five", "never", "nothing to do"),
    "D011": Code("note", "pictures carry the same caption more than once", "asked", "keeps each string once"),
    "D012": Code(
        "warning", "a caption belongs to several pictures of the split", "never", "train with mask_duplicates"
    ),
    "D013": Code(
        "warning", "captions of an evaluation split also occur in train", "never", "say it beside the results"
    ),
    "D014": Code("note", "captions hold characters outside ASCII", "never", "harmless if meant"),
    "D015": Code("warning", "captions are too long for CLIP's 77 tokens", "never", "shorten them"),
    "D016": Code("warning", "captions were decoded wrongly, or hold HTML references", "always", "decodes them rightly"),
    "D017": Code(
        "warning", "captions hold invisible characters, or are not in Unicode form NFC", "always", "removes them; NFC"
    ),
    "D018": Code("warning", "captions hold no word", "always", "leaves them out"),
    "D019": Code("note", "captions hold irregular white space", "always", "makes it one space"),
    "D020": Code(
        "warning",
        "the same picture is in two splits",
        "always",
        "keeps it in the last of its splits only",
        "pixels",
    ),
    "D021": Code("warning", "the same picture is twice in one split", "asked", "keeps the first", "pixels"),
    "D022": Code(
        "warning",
        "nearly the same picture is in two splits",
        "asked",
        "keeps it in the last of its splits only",
        "pixels",
    ),
    "D023": Code("note", "nearly the same picture is twice in one split", "asked", "keeps the first", "pixels"),
    "D024": Code(
        "warning",
        "pictures are in another set too (a note unless one is trained on and the other evaluated)",
        "asked",
        "leaves them out",
        "other",
    ),
    "D025": Code(
        "warning",
        "pictures have all their captions from one picture of another set (a note likewise)",
        "asked",
        "leaves them out",
        "other",
    ),
    "D026": Code("warning", "pictures are of one colour", "asked", "leaves them out", "pixels"),
    "D027": Code("note", "captions also occur in another set", "never", "nothing to do", "other"),
    "D030": Code("warning", "duplicate captions cap text-to-image recall", "never", "read duplicate-aware recall"),
    "D031": Code("note", "recall that the scene class alone gives", "never", "read results against it"),
    "D032": Code("note", "pictures have no scene class", "never", "nothing to do"),
    "D040": Code(
        "note", "captions are equal but for case and punctuation", "never", "train with train.captions=cleaned"
    ),
    "D041": Code("note", "captions share four fifths of their words", "never", "nothing to do"),
}
"""Every code. Codes keep their meaning from version to version."""


class Item(BaseModel):
    """One picture or caption that a finding is about.

    Attributes:
        split: Its split.
        picture: Name of the picture.
        caption: Which of its captions, from 0; None where the picture itself is meant.
        text: The caption.
        twin: What it is equal or near to: ``SPLIT/NAME``, of another set ``SET:SPLIT/NAME``.
        twin_text: The caption there, where it differs.
        told: Anything more: why a picture cannot be read, how near a twin is.
        file: Annotation file (or picture file) that it stands in, where known.
        entry: Line or entry there, where known.
    """

    split: str
    picture: str | None = None
    caption: int | None = None
    text: str | None = None
    twin: str | None = None
    twin_text: str | None = None
    told: str | None = None
    file: str | None = None
    entry: str | None = None


class Finding(BaseModel):
    """One thing to know.

    Attributes:
        code: Key of :data:`CODES`.
        severity: ``error``: results would be wrong or the run fails; ``warning``: look at it; ``note``: for information.
        place: The split, or the splits, separated by a comma.
        message: What was found.
        advice: What to do, or what it means for results.
        fix: Whether ``--fix`` mends it.
        items: Every picture or caption concerned; equal captions once. Empty where the finding is about the whole.
    """

    code: str
    severity: Severity
    place: str
    message: str
    advice: str
    fix: Fix
    items: list[Item] = []


def finding(
    code: str,
    place: str,
    message: str,
    advice: str,
    items: Iterable[Item] = (),
    severity: Severity | None = None,
) -> Finding:
    """A finding with what its code says of it."""
    about = CODES[code]
    return Finding(
        code=code,
        severity=severity or about.severity,
        place=place,
        message=message,
        advice=advice,
        fix=about.fix,
        items=list(items),
    )


def chosen_codes(select: Sequence[str] = (), ignore: Sequence[str] = ()) -> frozenset[str]:
    """Codes to report.

    Args:
        select: Codes or beginnings of codes, ``D02`` for all from D020 to D029; none selects all.
        ignore: Likewise; wins over ``select``.

    Raises:
        DataError: One fits no code.
    """
    wanted = set().union(*map(_fitting, select)) if select else set(CODES)
    return frozenset(wanted.difference(*map(_fitting, ignore)))


def need_pictures(codes: Iterable[str]) -> bool:
    """Whether pictures must be looked at for some codes."""
    return any(CODES[code].needs != "text" for code in codes)


def _fitting(text: str) -> set[str]:
    prefix = text.strip().upper()
    found = {code for code in CODES if prefix and code.startswith(prefix)}
    if not found:
        raise DataError(f"code {text!r} fits none; {suggest(prefix, CODES)}")
    return found


def codes_table() -> str:
    """All codes as a Markdown table, as in ``docs/data_doctor.md``."""
    mends = {"always": "`--fix`: ", "asked": "`--fix` with `--select`: ", "never": ""}
    rows = [f"| {code} | {c.severity} | {c.says} | {mends[c.fix]}{c.remedy} |" for code, c in CODES.items()]
    return "\n".join(["| code | severity | says | remedy |", "| --- | --- | --- | --- |", *rows])


def count(number: int, thing: str) -> str:
    """``1 caption``, ``1,200 captions``."""
    return f"{number:,} {thing}{'s' * (number != 1)}"
