"""When captions and picture names do not fit together: telling where they go out of step."""

from __future__ import annotations

from itertools import groupby, pairwise
from pathlib import Path

import numpy as np


def explain_mismatch(caps: Path, captions: list[str], filenames: Path, lines: list[str], per: int) -> str:
    """An error message for a caption file and a name file whose lengths do not fit.

    Args:
        caps: The caption file.
        captions: Its lines.
        filenames: The file of picture names.
        lines: Its lines, one or ``per`` for each picture.
        per: Captions per picture.
    """
    repeats = any(first == second for first, second in pairwise(lines))
    wanted = len(lines) if repeats else per * len(lines)
    found = f"{caps.name} has {len(captions)} lines and {filenames.name} has {len(lines)}"
    if not repeats:
        expected = f"expected {per} captions for each name ({wanted})"
        return f"{caps}: {found}; {expected}. {_where(captions, lines, per, caps, filenames)}"
    expected = f"expected as many lines in both, each name on {per} consecutive lines"
    start, names = 0, []
    for name, group in groupby(lines):
        run = len(list(group))
        if run != per:
            return (
                f"{filenames}:{start + 1}: {found}; {expected}. The name {name!r} stands on {run} consecutive "
                f"line{'s' * (run != 1)} (lines {start + 1} to {start + run}); add or remove lines there."
            )
        names.append(name)
        start += run
    return f"{caps}: {found}; {expected}. {_where(captions, names, per, caps, filenames)}"


def _where(captions: list[str], names: list[str], per: int, caps: Path, filenames: Path) -> str:
    surplus = len(captions) - per * len(names)
    what = f"{abs(surplus)} caption line{'s' * (abs(surplus) != 1)} {'too many' if surplus > 0 else 'missing'}"
    for number, caption in enumerate(captions, 1):
        if not caption:
            return f"There are {what}; look at the blank line {caps.name}:{number} first."
    if surplus % per == 0:
        way = "a name is missing" if surplus > 0 else "a name is too many, or the caption file is cut off"
        return (
            f"There are {what}, a whole number of pictures: either that, or {way} in {filenames.name}. "
            "The text does not tell where; compare both files with their source."
        )
    if abs(surplus) < per:
        index = locate(captions, len(names), per)
        first = per * index + 1
        return (
            f"There are {what}. Judged by which neighbouring captions resemble each other, they go out of step near "
            f"{caps.name}:{first}, the captions of {names[index]} ({filenames.name}, picture {index + 1})."
        )
    return f"There are {what}; compare both files with their source."


def locate(captions: list[str], n_images: int, per: int) -> int:
    """The picture whose captions most likely lack or exceed ``per`` lines, judged by the text alone.

    Captions of one picture share more words than captions of neighbours, so the resemblance of consecutive lines dips
    between pictures. If picture g is the faulty one, those dips lie at multiples of ``per`` up to g and are shifted
    after it; the g with the least resemblance at its dips is returned. Two cumulative sums make this linear.

    Args:
        captions: All M lines.
        n_images: Number of pictures N, with 0 < abs(M - N * per) < per.
        per: Captions per picture.

    Returns:
        Index of the picture, 0 to N - 1.
    """
    words = [frozenset(caption.lower().split()) for caption in captions]
    # alike[j]: share of words that lines j and j + 1 have in common
    alike = np.array([len(a & b) / max(len(a | b), 1) for a, b in pairwise(words)])
    shift = len(captions) - n_images * per
    cuts = per * np.arange(1, n_images) - 1  # cuts[i]: between pictures i and i + 1
    before = np.concatenate([[0.0], np.cumsum(alike[cuts.clip(max=len(alike) - 1)])])
    after = np.concatenate([np.cumsum(alike[(cuts + shift).clip(0, len(alike) - 1)][::-1])[::-1], [0.0]])
    return int(np.argmin(before + after))
