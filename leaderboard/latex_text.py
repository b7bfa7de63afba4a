"""Text and numbers for LaTeX: nothing that comes from data is a command."""

from __future__ import annotations

import unicodedata

from petlbench.leaderboard import text
from petlbench.leaderboard.explain import FEW_SEEDS, SEEDS_OVERLAP, WITHIN_NOISE
from petlbench.leaderboard.scoring import SHORTLISTED

MARKS = {
    WITHIN_NOISE: r"\ensuremath{\approx}",
    SEEDS_OVERLAP: r"\ensuremath{\circ}",
    SHORTLISTED: r"\textdaggerdbl{}",
    FEW_SEEDS: r"\textdagger{}",
}
"""Mark of a row to what sets it."""

_CHARACTERS = MARKS | {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "-": r"{-}",  # two in a row would become a dash
    "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}",
    "·": r"\textperiodcentered{}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "…": r"\textellipsis{}",
    "≤": r"\ensuremath{\leq}",
    "≥": r"\ensuremath{\geq}",
    "→": r"\ensuremath{\rightarrow}",
    "µ": r"\textmu{}",
    "²": r"\ensuremath{^2}",
    "³": r"\ensuremath{^3}",
}
_LATIN = 0x17F
"""Last character that T1 fonts have by themselves."""


def latex(value: object) -> str:
    """One line that LaTeX prints as it is; letters beyond Latin stay, for an engine whose fonts have them."""
    return "".join(_CHARACTERS.get(c, c) for c in text.plain(value))


def foreign(source: str) -> list[str]:
    """Characters of a document that pdfLaTeX's usual fonts lack, sorted."""
    return sorted({c for c in source if ord(c) > _LATIN or unicodedata.combining(c)})
