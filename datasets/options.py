"""What a card, or a user on the command line, may tell a reader of files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

SplitName = Literal["train", "val", "test"]


def from_home(path: str) -> str:
    """The path with the user's home folder for a leading ``~``; as it is where that home is not known."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # no such user: the file is not found under the name as given, and the reader says so
        return path


class SplitOptions(BaseModel):
    """How a set is cut, where the published splits are not what is wanted; see :mod:`petlbench.datasets.splits`.

    Attributes:
        val_list: File with one picture name a line (absolute, or relative to the root): these pictures of train and val
            validate, the others of them train. The lists that PIR, HarMA and SWAN share have this form.
        val_share: Share of train and val together that validates, drawn by one shuffle; 0 leaves both as they are.
        val_seed: Seed of that shuffle.
        test_share: Share that is tested, for sets without a test split; drawn by the same shuffle. Without ``val_share`` it is
            a share of train, and val stays.
        fold: ``K/N``, e.g. ``2/5``: of N parts of all pictures, part K is tested, the next one validates, the rest trains.
        fold_seed: Seed of the shuffle that deals the parts.
        groups: What must not be torn apart by a random cut: nothing, pictures that share a caption (with their
            neighbours' neighbours), pictures with the same file content, or both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    val_list: str | None = None
    val_share: float = Field(default=0, ge=0, lt=1)
    val_seed: int = 2
    test_share: float = Field(default=0, ge=0, lt=1)
    fold: str | None = None
    fold_seed: int = 0
    groups: Literal["none", "caption", "picture", "both"] = "none"

    _later: ClassVar[tuple[str, ...]] = ()
    """Options of a reader that are younger than its first records: told only where they are not the default."""

    @field_validator("val_list", "val_images", "annotations", "image_dir", "karpathy_json", check_fields=False)
    @classmethod
    def _home(cls, path: str | None) -> str | None:
        return None if path is None else from_home(path)

    @field_validator("fold")
    @classmethod
    def _part_of_parts(cls, fold: str | None) -> str | None:
        if fold is None:
            return None
        match = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", fold.replace(" ", ""))
        if match is None or int(match[2]) < 3 or int(match[1]) > int(match[2]):
            raise ValueError("expected K/N with 1 <= K <= N and N at least 3 (train, val and test), e.g. 2/5")
        return match[0]

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        asked = [name for name, given in self._rules().items() if given]
        if len(asked) > 1 and asked != ["val_share", "test_share"]:
            raise ValueError(f"{' and '.join(asked)} cut the set in different ways; give one of them")
        if self.groups != "none" and not set(asked) & {"fold", "val_share", "test_share"}:
            raise ValueError("groups is heeded by fold, val_share and test_share; give one of them too")
        if self.val_share + self.test_share >= 1:
            raise ValueError("val_share and test_share leave nothing to train on; expected a sum below 1")
        return self

    def _rules(self) -> dict[str, bool]:
        """The rules by option, and whether each is asked for."""
        return {
            "val_list": self.val_list is not None,
            "val_share": self.val_share > 0,
            "test_share": self.test_share > 0,
            "fold": self.fold is not None,
        }

    @property
    def recut(self) -> bool:
        """Whether anything but the published splits is asked for."""
        return any(self._rules().values())

    @model_serializer(mode="wrap")
    def _only_if_asked(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Trials of published splits keep the identity that they had before these options existed.
        values: dict[str, Any] = handler(self)
        own = type(self).__annotations__  # a reader that declares one of them anew always tells it
        fields = {**type(self).model_fields, **SplitOptions.model_fields}
        quiet = {*SplitOptions.model_fields} - {*own} | {*self._later}
        return {k: v for k, v in values.items() if k not in quiet or v != fields[k].default}


class FileOptions(SplitOptions):
    """Options that every reader of picture files understands.

    Attributes:
        annotations: The annotation file (precomp: folder), absolute or relative to the root; in place of the card's
            ``files.annotations``.
        image_dir: Folder of the pictures, absolute or relative to the root; in place of the card's ``files.images``.
        extension: Extension the picture files really have (``jpg``), where it differs from the annotated names.
        blank: What to do with captions that hold no visible character: stop, leave them out, or keep them.
            Leaving them out also leaves out pictures that have no other caption.
    """

    annotations: str | None = None
    image_dir: str | None = None
    extension: str | None = None
    blank: Literal["error", "drop", "keep"] = "error"


class KarpathyOptions(FileOptions):
    """Options of the Karpathy JSON reader.

    Attributes:
        labels: Where the scene class comes from: the ``class`` (or ``label``) key, the prefix of the file name,
            the number of UC Merced or of Sydney-Captions, or nowhere.
        splits: What to do with further split names, e.g. ``{restval: train, extra: drop}``.
    """

    labels: Literal["class", "prefix", "ucm_number", "sydney_number", "none"] = "class"
    splits: dict[str, Literal["train", "val", "test", "drop"]] = {"restval": "train"}


class PrecompOptions(FileOptions):
    """Options of the text-file reader, whose ``train`` files hold train and validation pictures.

    Attributes:
        labels: Where the scene class comes from: the prefix of the file name, the UC Merced number, or nowhere.
        captions_per_image: Consecutive caption lines per picture.
        val_share: Share of the ``train`` files cut off for validation; 0 leaves them whole and makes no ``val``. Not
            heeded beside ``val_list``, ``test_share`` alone or ``fold``.
        val_seed: Seed of the one shuffle that decides the cut.
        val_images: As ``val_list``, by its older name.
        val_files: Whether files that say what validates are heeded where they lie there; another share or seed, or a list,
            goes before them. False makes the cut of ``val_share`` and ``val_seed``.
    """

    labels: Literal["prefix", "ucm_number", "none"] = "prefix"
    captions_per_image: int = Field(default=5, ge=1)
    val_share: float = Field(default=0.2, ge=0, lt=1)
    val_seed: int = 2
    val_images: str | None = None
    val_files: bool = True

    _later: ClassVar[tuple[str, ...]] = ("val_files",)

    @property
    def cuts(self) -> bool:
        """Whether the train files are cut by a rule that the user gave, whatever files say."""
        fields = type(self).model_fields
        other = any(getattr(self, name) != fields[name].default for name in ("val_share", "val_seed"))
        return self.val_images is not None or other or not self.val_files

    def _rules(self) -> dict[str, bool]:
        # The share is a default here, so that it gives way; the reader itself sees to it and to lists.
        listed = self.val_list is not None or self.val_images is not None
        return {**super()._rules(), "val_list": listed, "val_share": False}

    @property
    def recut(self) -> bool:
        """Whether anything but the reader's own cut is asked for."""
        return self.fold is not None or self.test_share > 0


class PirJsonOptions(FileOptions):
    """Options of the reader of PIR's and HarMA's JSON files.

    Attributes:
        stem: What the file names begin with, e.g. ``rsitmd`` of ``rsitmd_train.json``; found by itself where the folder
            holds files of one stem only.
        labels: Where the scene class comes from: the prefix of the file name, the keys ``label_name`` or ``label`` (which
            the published test files lack), the UC Merced number, or nowhere.
    """

    stem: str | None = None
    labels: Literal["prefix", "field", "ucm_number", "none"] = "prefix"


class NwpuJsonOptions(FileOptions):
    """Options of the reader of NWPU-Captions' JSON.

    Attributes:
        labels: Whether the key that a picture stands under is its scene class.
    """

    labels: Literal["class", "none"] = "class"


class ColumnOptions(SplitOptions):
    """Which columns hold what, for formats that name them freely; a column with a usual name is found by itself.

    Attributes:
        image_column: Name of the picture file (in Hugging Face data sets: the picture itself).
        caption_columns: One or more columns of captions; a cell may also hold a list.
        split_column: ``train``, ``val`` or ``test`` of a row; ``none`` looks at no column.
        class_column: Scene class; ``none`` looks at no column.
        labels: Where the scene class comes from: the column, the prefix of the file name, the UC Merced number, or nowhere.
        splits: What other split names mean, e.g. ``{extra: drop}``; ``validation``, ``valid`` and ``dev`` are known.
        blank: What to do with captions that hold no visible character: stop, leave them out, or keep them.
    """

    image_column: str | None = None
    caption_columns: str | list[str] | None = None
    split_column: str | None = None
    class_column: str | None = None
    labels: Literal["column", "prefix", "ucm_number", "none"] = "column"
    splits: dict[str, Literal["train", "val", "test", "drop"]] = {}
    blank: Literal["error", "drop", "keep"] = "error"

    @field_validator("caption_columns")
    @classmethod
    def _some(cls, columns: str | list[str] | None) -> str | list[str] | None:
        if columns is not None and (not columns or len(set(columns)) < len(columns)) and isinstance(columns, list):
            raise ValueError("expected the names of one or more columns, each once")
        return columns

    @property
    def captions_in(self) -> list[str] | None:
        """The caption columns as a list; None where they are to be found."""
        return [self.caption_columns] if isinstance(self.caption_columns, str) else self.caption_columns


class TableOptions(ColumnOptions):
    """Options of the reader of CSV, TSV, Parquet, JSON and JSON-lines tables.

    Attributes:
        annotations: As for other readers: the table, or the folder of one table per split.
        image_dir: As for other readers: the folder of the pictures.
        extension: As for other readers: the extension that the picture files really have.
        delimiter: What separates the cells of a text table; found by itself: a tab, comma or semicolon.
    """

    annotations: str | None = None
    image_dir: str | None = None
    extension: str | None = None
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)


class HuggingFaceOptions(ColumnOptions):
    """Options of the reader of Hugging Face data sets.

    Attributes:
        annotations: Folder that ``save_to_disk`` wrote, or a folder of Parquet files or pictures with metadata.
        repo: Name of a data set on the hub, ``OWNER/NAME``, in place of a folder.
        config: Its configuration, where it has several.
        revision: Its commit, tag or branch; give a commit where others shall repeat a result.
        name_column: Column with the name of the picture; found by itself, else the name of the file inside, else the row.
    """

    annotations: str | None = None
    repo: str | None = Field(default=None, pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")
    config: str | None = None
    revision: str | None = None
    name_column: str | None = None


class WebDatasetOptions(SplitOptions):
    """Options of the reader of webdataset tar files.

    Attributes:
        annotations: Folder of the ``.tar`` files, or one of them.
        captions: Extension of the members that hold captions, ``txt`` (a caption a line) or ``json``; found by itself.
        caption_keys: Keys of the captions in ``.json`` members; found by themselves.
        labels: Where the scene class comes from: a ``.cls`` member or the key ``class`` or ``label`` of the JSON; the prefix of
            the name, the UC Merced number, or nowhere.
        parts: Which split a file belongs to where its name does not say so, by beginning: ``{shard-00: train}``.
        splits: What split names in the JSON or in file names mean, e.g. ``{extra: drop}``.
        blank: What to do with captions that hold no visible character: stop, leave them out, or keep them.
    """

    annotations: str | None = None
    captions: Literal["txt", "json"] | None = None
    caption_keys: str | list[str] | None = None
    labels: Literal["member", "prefix", "ucm_number", "none"] = "member"
    parts: dict[str, SplitName] = {}
    splits: dict[str, Literal["train", "val", "test", "drop"]] = {}
    blank: Literal["error", "drop", "keep"] = "error"


OPTIONS: dict[str, type[SplitOptions]] = {
    "auto": FileOptions,
    "karpathy": KarpathyOptions,
    "precomp": PrecompOptions,
    "pir-json": PirJsonOptions,
    "nwpu-json": NwpuJsonOptions,
    "table": TableOptions,
    "huggingface": HuggingFaceOptions,
    "webdataset": WebDatasetOptions,
}
"""Options by format, for the formats that read files; of ``vilt-arrow`` beside its reader."""
