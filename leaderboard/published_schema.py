"""The schema of a file of published rows: what a table prints, and where and how it was read."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Selection = Literal["val", "test", "last", "none", "unknown"]
"""On which split the evaluated epoch was chosen; ``none`` where nothing was trained."""
Mark = Literal["seen", "recalled"]
"""``seen``: read in the source that the file names. ``recalled``: from memory, not checked; never cite it."""
Percent = Annotated[float, Field(ge=0, le=100)]
Recalls = tuple[Percent, Percent, Percent]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedBackbone(_Part):
    """What is known of a backbone that a table names; None where it is not stated.

    Attributes:
        architecture: As in a record's provenance.
        weights: Common name of the pretrained weights.
        sources: Patterns of the ``source`` that a record has where it started from these weights.
        activation: ``gelu`` or ``quick_gelu``.
        resolution: Side of the input pictures, pixels.
    """

    architecture: str | None = None
    weights: str | None = None
    sources: tuple[str, ...] = ()
    activation: Literal["gelu", "quick_gelu"] | None = None
    resolution: int | None = None


class PublishedSplit(_Part):
    """Which pictures and captions a table was measured on.

    Attributes:
        cards: Our cards that read the very files.
        test_images: Pictures of test.
        test_captions: Captions of test; None where it is not known how many were scored.
        train_images: Pictures trained on; None where it is not stated.
        val_images: Pictures of validation; None likewise.
    """

    cards: tuple[str, ...] = ()
    test_images: int
    test_captions: int | None = None
    train_images: int | None = None
    val_images: int | None = None


class TableRow(_Part):
    """One printed row; see :class:`PublishedRow` for what it inherits from its table and file.

    Attributes:
        method: As printed.
        ours: Registered name of the same method here; None where there is none.
        variant: The form of ours that has the printed size.
        backbone: As printed.
        params: Trained parameters as printed.
        counted: Trained parameters counted on released code or taken from elsewhere, where the table prints none.
        tuned_on: What it was trained on, where that is not just the table's data set.
        i2t: Image-to-text R@1, 5, 10, percent.
        t2i: Text-to-image R@1, 5, 10, percent.
        mR: As printed, percent.
        mR_sd: Printed standard deviation over seeds, points.
        about: The source says "about".
        quoted: The source repeats another's result, so that nothing of how the source itself measures holds for it: cut of
            train, ties, seeds and choice of the epoch are unknown unless the row says them.
        seeds: Overrides that of the file.
        selection: Overrides that of the file.
        selection_note: Likewise.
        mark: Overrides that of the file.
        note: Anything to know before using it.
    """

    method: str
    ours: str | None = None
    variant: str | None = None
    backbone: str | None = None
    params: str | None = None
    counted: str | None = None
    tuned_on: str | None = None
    i2t: Recalls | None = None
    t2i: Recalls | None = None
    mR: Percent | None = None
    mR_sd: float | None = Field(None, ge=0)
    about: bool = False
    quoted: bool = False
    seeds: int | None = Field(None, ge=1)
    selection: Selection | None = None
    selection_note: str | None = None
    mark: Mark | None = None
    note: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.i2t is None) != (self.t2i is None):
            raise ValueError(f"row {self.method!r} gives one direction without the other")
        if self.i2t is None and self.mR is None:
            raise ValueError(f"row {self.method!r} gives neither recalls nor mR")
        if self.variant and not self.ours:
            raise ValueError(f"row {self.method!r} names a variant of no method")
        for name, values in (("i2t", self.i2t), ("t2i", self.t2i)):
            if values is not None and list(values) != sorted(values):
                raise ValueError(f"row {self.method!r}: {name} R@1, 5, 10 must not fall, found {values}; mistyped?")
        return self


class PublishedTable(_Part):
    """The rows of one table on one data set."""

    table: str
    dataset: str
    split: PublishedSplit
    rows: list[TableRow] = Field(min_length=1)


class PublishedFile(_Part):
    """One source.

    Attributes:
        title: Short name.
        paper: Citation.
        url: Where it is to be had.
        read_in: In what the numbers were read.
        mark: Of its rows, unless a row says otherwise.
        selection: Likewise.
        selection_note: How that is known.
        ties: How ties were broken; None where unknown.
        seeds: Runs averaged; None where unknown.
        notes: Facts of the source that a reader of its numbers should know.
        backbones: What is known of the backbones that its rows name.
        tables: The tables.
    """

    title: str
    paper: str
    url: str | None = None
    read_in: str
    mark: Mark
    selection: Selection
    selection_note: str
    ties: str | None
    seeds: int | None = Field(ge=1)
    notes: tuple[str, ...] = ()
    backbones: dict[str, PublishedBackbone] = Field(default_factory=dict)
    tables: list[PublishedTable] = Field(min_length=1)
