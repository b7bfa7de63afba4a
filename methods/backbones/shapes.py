"""Backbones in shape only: every width and depth, no values. For counting parameters in milliseconds."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch

from petlbench.methods.backbones.base import Backbone, Provenance
from petlbench.methods.backbones.open_clip_model import OpenClipEncoder, build_clip
from petlbench.methods.backbones.open_clip_origin import resolve
from petlbench.methods.backbones.tokenizers import HashingTokenizer
from petlbench.methods.backbones.vilt import MEAN, STD, ViltEncoder
from petlbench.methods.backbones.vilt_tower import VILT_B32, build_vilt

Encoder = TypeVar("Encoder", bound=Backbone)


def shape_only(architecture: str = "ViT-B-32", *, aligned: bool = True) -> OpenClipEncoder:
    """An open_clip model whose tensors lie on the meta device, so that they take neither memory nor time.

    Args:
        architecture: Any open_clip ViT, without a tag.
        aligned: What it claims to be; it stands in for the published weights by default.

    Raises:
        BackboneError: Unknown or unsupported architecture.
    """
    import open_clip

    origin = resolve(architecture, None, "random", None, None)
    with torch.device("meta"):
        clip = build_clip(origin, 0)
    provenance = Provenance(
        kind="open_clip",
        architecture=architecture,
        source="shape only",
        sha256="",
        activation=origin.activation,
        mean=origin.mean,
        std=origin.std,
        resolution=int(clip.visual.image_size[0]),
        aligned=aligned,
    )
    return OpenClipEncoder(architecture, clip, open_clip.get_tokenizer(architecture), provenance).eval()


def vilt_shape_only(*, blocks: int | None = None, aligned: bool = True) -> ViltEncoder:
    """ViLT-B/32 whose tensors lie on the meta device, with a hashing tokenizer.

    Args:
        blocks: Build this many blocks only; None builds all twelve.
        aligned: What it claims to be; it stands in for the published weights by default.
    """
    sizes = VILT_B32 if blocks is None else {**VILT_B32, "num_hidden_layers": blocks}
    provenance = Provenance(
        kind="vilt",
        architecture="ViLT-B/32",
        source="shape only",
        sha256="",
        activation="gelu",
        mean=MEAN,
        std=STD,
        resolution=sizes["image_size"],
        aligned=aligned,
    )
    tokenizer = HashingTokenizer(sizes["vocab_size"], sizes["max_position_embeddings"])
    with torch.device("meta"):
        vilt = build_vilt(sizes)
        itm_head = torch.empty(2, sizes["hidden_size"]), torch.empty(2)
        return ViltEncoder("vilt-b32", vilt, tokenizer, provenance, itm_head).eval()


def untouched(backbone: Encoder) -> Encoder:
    """A copy to build on; the tokenizer, which no method changes, is shared (its tables are most of the work)."""
    tokenizer: Any = backbone.tokenizer
    return copy.deepcopy(backbone, {id(tokenizer): tokenizer})
