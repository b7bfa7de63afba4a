"""The two unimodal towers after an alignment: one joint model, from one file that ``benchmark export-backbone`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import BackboneError, Provenance
from petlbench.methods.backbones.dinov2 import build_dinov2
from petlbench.methods.backbones.exported import (
    MAKE,
    Exported,
    LanguageShape,
    TwoTowerShape,
    VisionShape,
    aligned_source,
    read_header,
)
from petlbench.methods.backbones.minilm import BertTokenizer, build_bert, locate_minilm, resolve_minilm
from petlbench.methods.backbones.two_tower import TwoTowerEncoder, checked_side

NAME = "vits14-minilm-joint"
WEIGHTS_FILE = f"{NAME}.safetensors"
TOKENIZER = ("tokenizer.json",)
"""All that is needed of the text tower's folder: its weights are in the file."""


def load_joint(
    name: str = NAME, *, weights: str | None = None, text_weights: str | None = None, resolution: int | None = None
) -> TwoTowerEncoder:
    """An aligned two-tower model, whose heads are pretrained like its towers.

    Args:
        name: Recorded name.
        weights: A file of ``benchmark export-backbone``; None looks for ``vits14-minilm-joint.safetensors`` in
            PETLBENCH_WEIGHTS.
        text_weights: Folder or hub name of the tokenizer, found as that of ``vits14-minilm``.
        resolution: Input side in pixels, a multiple of 14; None takes that of the alignment.

    Raises:
        BackboneError: The file is missing, no export of two towers, or does not hold exactly the model that its header
            describes; the tokenizer is another one; or the resolution is not a multiple of 14.
    """
    path, header, shape, side = _looked_into(name, weights, resolution)
    folder, _ = locate_minilm(text_weights, TOKENIZER)
    tokenizer = BertTokenizer(folder, shape.context_length)
    if (found := tokenizer.fingerprint()) != shape.tokenizer:
        raise BackboneError(
            f"{path.name} was trained on the words of another tokenizer ({shape.tokenizer[:12]}) than that of {folder} "
            f"({found[:12]}); give the one of the alignment by text_weights=FOLDER"
        )
    sha256 = weights_io.file_sha256(path)
    encoder = TwoTowerEncoder(
        name,
        build_dinov2(**shape.vision.model_dump()),
        build_bert(shape.language.model_dump()),
        tokenizer,
        _provenance(header, sha256, side),
        hidden_dim=shape.hidden_dim,
        embed_dim=shape.embed_dim,
    )
    weights_io.load_strict(
        encoder, weights_io.read_state_dict(path), path.name, advice=f"The file contradicts its own header; {MAKE}."
    )
    return encoder


def resolve_joint(
    name: str = NAME, weights: str | None = None, text_weights: str | None = None, resolution: int | None = None
) -> dict[str, Any]:
    """The options of :func:`load_joint` with found files and the resolution filled in; hub names stay names.

    Raises:
        BackboneError: The file is missing or no export of two towers, or the resolution is not a multiple of 14.
    """
    path, _, _, side = _looked_into(name, weights, resolution)
    return {"weights": str(path), "text_weights": resolve_minilm(text_weights, TOKENIZER), "resolution": side}


def locate_joint(name: str, weights: str | None) -> Path:
    """The weight file: the option's, or the one in PETLBENCH_WEIGHTS.

    Raises:
        BackboneError: Nothing was found; the message says how to make such a file.
    """
    try:
        return weights_io.find_weights(weights or WEIGHTS_FILE)
    except BackboneError as error:
        raise BackboneError(
            f"{name}: {error}. The joint model comes from (1) weights=FILE or (2) a file {WEIGHTS_FILE} in the folder named by "
            f"{weights_io.WEIGHTS_ENV}; none is shipped, {MAKE}"
        ) from error


def describe_towers(encoder: TwoTowerEncoder) -> TwoTowerShape:
    """What :func:`load_joint` needs to know beside the tensors.

    Raises:
        BackboneError: The tokenizer is not a BERT's, as in the untrained stand-ins of contract checks.
    """
    vision, language, tokenizer = encoder.vision.config, encoder.language.config, encoder.tokenizer
    if not isinstance(tokenizer, BertTokenizer):
        raise BackboneError(f"{encoder.name}: its tokenizer is a {type(tokenizer).__name__}, expected that of a BERT")
    hidden: Any = encoder.image_head[0]
    return TwoTowerShape(
        vision=VisionShape(
            width=vision.hidden_size,
            heads=vision.num_attention_heads,
            blocks=vision.num_hidden_layers,
            grid=vision.image_size // vision.patch_size,
            mlp_ratio=vision.mlp_ratio,
        ),
        language=LanguageShape(**{key: getattr(language, key) for key in LanguageShape.model_fields}),
        hidden_dim=hidden.out_features,
        embed_dim=encoder.embed_dim,
        context_length=tokenizer.context_length,
        tokenizer=tokenizer.fingerprint(),
    )


def _looked_into(name: str, weights: str | None, resolution: int | None) -> tuple[Path, Exported, TwoTowerShape, int]:
    """The file, what it says of itself and of the towers, and the input side."""
    path = locate_joint(name, weights)
    header = read_header(path)
    if header.two_tower is None:
        raise BackboneError(
            f"{path.name}: exported from {header.name}, a backbone of kind {header.backbone.kind}; it is read by "
            f"that backbone's own option `weights`, not by {NAME}"
        )
    return path, header, header.two_tower, checked_side(name, resolution, header.backbone.resolution)


def _provenance(header: Exported, sha256: str, side: int) -> Provenance:
    base, by = header.backbone, header.alignment
    score = "" if by.val_mR is None else f", validation mR {by.val_mR:.2f}"
    return base.model_copy(
        update={
            "source": aligned_source(header),
            "sha256": sha256,
            "resolution": side,
            "aligned": True,
            "licence": f"{base.licence} (before the alignment)",
            "notes": f"aligned at {base.resolution} px, seed {by.spec.get('seed')}, selection {by.selection}{score}; "
            f"licence of {by.dataset}: {by.dataset_licence}; it never stands beside published rows of CLIP",
        }
    )
