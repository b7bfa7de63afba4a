"""What a card, or a user on the command line, may tell a reader of files."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class FileOptions(BaseModel):
    """Options that every reader of picture files understands.

    Attributes:
        annotations: The annotation file (precomp: folder), absolute or relative to the root; in place of the card's
            ``files.annotations``.
        image_dir: Folder of the pictures, absolute or relative to the root; in place of the card's ``files.images``.
        extension: Extension the picture files really have (``jpg``), where it differs from the annotated names.
        blank: What to do with captions that hold no visible character: stop, leave them out, or keep them.
            Leaving them out also leaves out pictures that have no other caption.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    annotations: str | None = None
    image_dir: str | None = None
    extension: str | None = None
    blank: Literal["error", "drop", "keep"] = "error"


class KarpathyOptions(FileOptions):
    """Options of the Karpathy JSON reader.

    Attributes:
        labels: Where the scene class comes from: the ``class`` (or ``label``) key, the prefix of the file name,
            the UC Merced number, or nowhere.
        splits: What to do with further split names, e.g. ``{restval: train, extra: drop}``.
    """

    labels: Literal["class", "prefix", "ucm_number", "none"] = "class"
    splits: dict[str, Literal["train", "val", "test", "drop"]] = {"restval": "train"}


class PrecompOptions(FileOptions):
    """Options of the text-file reader.

    Attributes:
        labels: Where the scene class comes from: the prefix of the file name, the UC Merced number, or nowhere.
        captions_per_image: Consecutive caption lines per picture.
        val_share: Share of the ``train`` files cut off for validation; 0 leaves them whole and makes no ``val``.
        val_seed: Seed of the one shuffle that decides the cut.
        val_images: File with one picture name a line (absolute, or relative to the root) that lists the validation
            pictures instead of the seeded cut, e.g. the lists that PIR, HarMA and SWAN share.
    """

    labels: Literal["prefix", "ucm_number", "none"] = "prefix"
    captions_per_image: int = Field(default=5, ge=1)
    val_share: float = Field(default=0.2, ge=0, lt=1)
    val_seed: int = 2
    val_images: str | None = None


OPTIONS: dict[str, type[FileOptions]] = {"karpathy": KarpathyOptions, "precomp": PrecompOptions}
"""Options by format, for the formats that read files."""
