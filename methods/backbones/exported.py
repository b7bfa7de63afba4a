"""What a weight file written by ``benchmark export-backbone`` says of itself: one JSON entry in its safetensors header."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from petlbench.methods.backbones.base import BackboneError, Provenance

ENTRY = "petlbench"
"""The only key of the header's metadata: several would come in any order, and equal exports would differ."""
MAKE = (
    "make one by training vits14-minilm with a method that leaves no modules behind, such as full_finetune, and "
    "`benchmark export-backbone RECORD --out FILE.safetensors`"
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class VisionShape(_Part):
    """Arguments of :func:`petlbench.methods.backbones.dinov2.build_dinov2`."""

    width: PositiveInt
    heads: PositiveInt
    blocks: PositiveInt
    grid: PositiveInt
    mlp_ratio: PositiveInt

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        return self


class LanguageShape(_Part):
    """Entries of a BERT's ``config.json``."""

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    type_vocab_size: PositiveInt
    layer_norm_eps: float = Field(gt=0)
    hidden_act: str

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"num_attention_heads={self.num_attention_heads} does not divide {self.hidden_size}")
        return self


class TwoTowerShape(_Part):
    """What the tensors of two joined towers do not show, and what they do."""

    vision: VisionShape
    language: LanguageShape
    hidden_dim: PositiveInt
    """Width of the hidden layer of the joining heads."""
    embed_dim: PositiveInt
    context_length: PositiveInt
    tokenizer: str = Field(pattern=r"^[0-9a-f]{64}$")
    """:meth:`petlbench.methods.backbones.minilm.BertTokenizer.fingerprint`."""


class Alignment(_Part):
    """The trial that trained the weights."""

    spec_id: str = Field(pattern=r"^[0-9a-f]{64}$")
    spec: dict[str, Any]
    """All resolved values of the trial."""
    method: str
    method_sha256: str
    """Of the method's source file."""
    dataset: str
    dataset_licence: str
    splits: dict[str, str]
    """Split to :attr:`petlbench.datasets.split.Split.sha256`."""
    selection: str
    """Rule by which the epoch was chosen."""
    epoch: int | None
    val_mR: float | None
    """Mean recall of the chosen epoch on validation, percent; None where it was chosen otherwise."""
    code: dict[str, Any]
    """Commit and package versions under which it was trained."""


class Exported(_Part):
    """The header."""

    format: Literal["petlbench-backbone"] = "petlbench-backbone"
    version: Literal[1] = 1
    name: str
    """What the backbone that was trained was called."""
    backbone: Provenance
    """Of the weights that training started from."""
    alignment: Alignment
    two_tower: TwoTowerShape | None = None
    """None for other kinds of backbone, whose shape their name says."""


def header_of(path: Path) -> Exported | None:
    """What a weight file says of itself if it was written by ``benchmark export-backbone``; None for any other file.

    Raises:
        BackboneError: The header is damaged, or of another version.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or path.is_dir():
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            told = ENTRY in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return None  # whoever reads the tensors says what is wrong with them
    return read_header(path) if told else None


def aligned_source(header: Exported) -> str:
    """The source of exported weights in one line: what training started from, and what it was trained on."""
    by = header.alignment
    return f"{header.backbone.source}, aligned on {by.dataset} by {by.method}, trial {by.spec_id[:8]}"


def read_header(path: Path) -> Exported:
    """What an exported file says of itself; no tensor is read.

    Raises:
        BackboneError: It is no safetensors file, has no such header, or one of another version.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or path.is_dir():
        raise BackboneError(f"{path.name}: a joint model is one .safetensors file; {MAKE}")
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(ENTRY)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path.name}: not a readable safetensors file ({error}); {MAKE}") from error
    if text is None:
        raise BackboneError(f"{path.name}: its header has no entry `{ENTRY}`, so this is no exported backbone; {MAKE}")
    try:
        return Exported.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "(all)"
        raise BackboneError(
            f"{path.name}: header entry `{ENTRY}`, key `{where}`: {first['msg']}; it was damaged or written by another "
            f"version: {MAKE}"
        ) from error
