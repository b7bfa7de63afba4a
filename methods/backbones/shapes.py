"""open_clip backbones in shape only: every width and depth, no values. For counting parameters in milliseconds."""

from __future__ import annotations

import copy

import torch

from petlbench.methods.backbones.base import Provenance
from petlbench.methods.backbones.open_clip_model import OpenClipEncoder, build_clip
from petlbench.methods.backbones.open_clip_origin import resolve


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


def untouched(backbone: OpenClipEncoder) -> OpenClipEncoder:
    """A copy to build on; the tokenizer, which no method changes, is shared (its tables are most of the work)."""
    return copy.deepcopy(backbone, {id(backbone.tokenizer): backbone.tokenizer})
