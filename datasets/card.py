"""A data set's card: what it is, whose it is, where its files lie and what to expect of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Format = Literal["karpathy", "precomp", "vilt-arrow", "scenes"]
SplitName = Literal["train", "val", "test"]


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
        annotations: The JSON file (Karpathy) or the folder of the files (precomp, vilt-arrow; ``.`` for the root).
        images: Folder of the pictures; None where the annotation files hold them (vilt-arrow).
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
        files: Where they lie; None for generated sets.
        expected: Counts per split.
        options: Options of the reader that suit this set.
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
    expected: dict[SplitName, Expected] = {}
    options: dict[str, Any] = {}
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _files_where_needed(self) -> Self:
        if (self.files is None) != (self.format == "scenes"):
            keys = "`annotations`" if self.format == "vilt-arrow" else "`annotations` and `images`"
            need = "no `files`" if self.format == "scenes" else f"the key `files` with {keys}"
            raise ValueError(f"format {self.format} needs {need}")
        inside = self.format == "vilt-arrow"
        if self.files is not None and (self.files.images is None) != inside:
            need = "no `files.images`: its files hold them" if inside else "`files.images`, the folder of the pictures"
            raise ValueError(f"format {self.format} needs {need}")
        return self
