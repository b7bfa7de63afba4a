"""Captions as some papers clean them before the tokenizer sees them."""

from __future__ import annotations

from dataclasses import replace

from petlbench.datasets.split import DataError, Split

WORDS = 30
"""Words that are kept of a caption."""

_DELETED = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")


def clean(caption: str, words: int = WORDS) -> str:
    """A caption without case and most punctuation, cut to its first words.

    The rule of PIR and HarMA (``dataset/utils.py`` of seekerhuang/HarMA): lower case; ``, . ' ! ? " ( ) * # : ; ~`` are
    deleted, hyphens and slashes separate words, ``<person>`` becomes ``person``; white space of any length is one space.

    Args:
        caption: As published.
        words: Words to keep.

    Returns:
        The cleaned caption; empty where nothing is left.
    """
    text = caption.lower().translate(_DELETED).replace("<person>", "person")
    return " ".join(text.split()[:words])


def cleaned(split: Split, words: int = WORDS) -> Split:
    """The split with every caption cleaned; captions may become equal, and are then one string.

    Raises:
        DataError: Nothing is left of a caption.
    """
    captions = tuple(clean(caption, words) for caption in split.captions)
    if empty := [index for index, text in enumerate(captions) if not text]:
        named = ", ".join(f"{split.captions[i]!r} of {split.images[split.owner[i]].name}" for i in empty[:3])
        raise DataError(
            f"split {split.name}: cleaning leaves nothing of {len(empty)} caption{'s' if len(empty) > 1 else ''}: {named}. "
            "Remove them from the annotations, or set train.captions=raw"
        )
    return replace(split, captions=captions)
