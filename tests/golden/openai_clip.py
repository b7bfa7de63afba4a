"""An open_clip model with the sizes that a golden file gives in the words of OpenAI's `CLIP` constructor."""

from __future__ import annotations

from collections.abc import Mapping

import open_clip
from torch import Tensor

from petlbench.methods.backbones.base import Provenance, Tokens
from petlbench.methods.backbones.open_clip_model import OpenClipEncoder
from petlbench.methods.backbones.open_clip_origin import CLIP_MEAN, CLIP_STD


def encoder(sizes: Mapping[str, int], activation: str = "quick_gelu") -> OpenClipEncoder:
    """An untrained encoder; attention heads of the image tower are 64 wide, as in OpenAI's model."""
    clip = open_clip.CLIP(
        sizes["embed_dim"],
        open_clip.CLIPVisionCfg(
            layers=sizes["vision_layers"],
            width=sizes["vision_width"],
            head_width=64,
            patch_size=sizes["vision_patch_size"],
            image_size=sizes["image_resolution"],
        ),
        open_clip.CLIPTextCfg(
            context_length=sizes["context_length"],
            vocab_size=sizes["vocab_size"],
            width=sizes["transformer_width"],
            heads=sizes["transformer_heads"],
            layers=sizes["transformer_layers"],
        ),
        quick_gelu=activation == "quick_gelu",
    )
    provenance = Provenance(
        kind="open_clip",
        architecture="golden",
        source="golden",
        sha256="0" * 64,
        activation=activation,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resolution=sizes["image_resolution"],
        aligned=True,
    )
    return OpenClipEncoder("golden", clip, None, provenance).eval()


def tokens(ids: Tensor) -> Tokens:
    """Tokens whose end token has the largest id, as in CLIP."""
    end = ids.argmax(1, keepdim=True)
    return Tokens(ids, ids.new_tensor(range(ids.shape[1])) <= end)
