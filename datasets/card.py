"""A data set's card: what it is, whose it is, where its files lie and what to expect of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from petlbench.datasets.options import SplitName

Format = Literal[
    "karpathy", "precomp", "pir-json", "nwpu-json", "table", "huggingface", "webdataset", "vilt-arrow", "scenes", "auto"
]
"""Which reader understands the files; ``auto``: the one that the files are found to be for."""

SELF_CONTAINED = ("huggingface", "webdataset", "vilt-arrow")
"""Formats whose files hold the pictures."""

WITHOUT_FILES = ("scenes", "auto")
"""Formats of cards that name no files."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """Where something that the card speaks of can be had.

    Attributes:
        what: What lies there.
        url: Its address.
        note: Anything to know before taking it from there.
    """

    what: str
    url: str
    note: str = ""


class Files(_Part):
    """Where the files lie, relative to the root folder that the user gives.

    Attributes:
        annotations: The file (Karpathy, NWPU, table) or the folder of the files (``.`` for the root).
        images: Folder of the pictures; None where the annotation files hold them (Hugging Face, webdataset, vilt-arrow).
    """

    annotations: str
    images: str | None = None


class Expected(_Part):
    """What a complete copy of a split holds, blank captions and pictures left without a caption not counted.

    Attributes:
        images: Pictures.
        captions: Captions.
        sha256: :attr:`petlbench.datasets.split.Split.sha256` of the split as this card reads it, or None.
    """

    images: int = Field(ge=0)
    captions: int = Field(ge=0)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class Layout(_Part):
    """Another form in which the files of a set are in circulation.

    Attributes:
        files: Where they lie, relative to the root.
        expected: Counts per split.
        options: Options of the reader that suit this form.
        note: What differs from the card's first form.
    """

    files: Files
    expected: dict[SplitName, Expected] = {}
    options: dict[str, Any] = {}
    note: str = ""


class Card(_Part):
    """Everything petlbench knows of a data set before it has seen a file of it.

    Attributes:
        name: Short name, used in experiments, folders of results and ``PETLBENCH_DATA/NAME``.
        title: Name as the field writes it.
        version: Version or year of publication of this form of the set.
        licence: Terms of pictures and captions, in words.
        citation: The paper to cite.
        sources: Where to get the set.
        format: Which reader understands the files.
        files: Where they lie; None for generated sets, for ``auto``, and for Hugging Face sets that come from the hub.
        root: Folder of the files where none is given, absolute or relative to the card's own file.
        expected: Counts per split.
        options: Options of the reader that suit this set.
        layouts: Other formats that the set is found in; taken by the option ``format``, or where only their files are there.
        notes: What to know before trusting a number measured on it.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    title: str
    version: Annotated[str, Field(coerce_numbers_to_str=True)]
    licence: str
    citation: str
    sources: tuple[Source, ...] = ()
    format: Format
    files: Files | None = None
    root: str | None = None
    expected: dict[SplitName, Expected] = {}
    options: dict[str, Any] = {}
    layouts: dict[Format, Layout] = {}
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _files_where_needed(self) -> Self:
        hub = self.format == "huggingface" and "repo" in self.options
        if (self.files is None) != (self.format in WITHOUT_FILES or hub):
            keys = "`annotations`" if self.format in SELF_CONTAINED else "`annotations` and `images`"
            need = f"the key `files` with {keys}"
            if self.files is not None:
                need = "no `files`" if not hub else "either `files` or the option `repo`"
            raise ValueError(f"format {self.format} needs {need}")
        _fitting(self.format, self.files)
        for name, layout in self.layouts.items():
            if name == self.format or name in WITHOUT_FILES:
                raise ValueError(f"layout {name}: expected a format of files other than the card's own")
            _fitting(name, layout.files)
        return self


def _fitting(format_name: str, files: Files | None) -> None:
    inside = format_name in SELF_CONTAINED
    if files is not None and (files.images is None) != inside:
        need = "no `files.images`: its files hold them" if inside else "`files.images`, the folder of the pictures"
        raise ValueError(f"format {format_name} needs {need}")
