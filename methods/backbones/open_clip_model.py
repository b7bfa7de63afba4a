"""open_clip CLIP models with vision-transformer image towers, from a hub tag or a local file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import BackboneError, DualEncoder, Provenance, Tokens
from petlbench.methods.backbones.open_clip_origin import Activation, Origin, resolve
from petlbench.methods.backbones.open_clip_towers import OpenClipImageTower, OpenClipTextTower
from petlbench.methods.backbones.tokenizers import end_padded

STALE_BUFFERS = frozenset({"attn_mask", "text.attn_mask", "input_resolution", "context_length", "vocab_size"})
"""Buffers that older open_clip and OpenAI state dicts carry; today they are derived from the architecture."""


class OpenClipEncoder(DualEncoder):
    """An open_clip CLIP model behind the backbone contract; the model itself is ``clip``.

    Args:
        name: What the user calls the backbone.
        clip: ``open_clip.CLIP`` or ``CustomTextCLIP`` with transformer towers.
        tokenizer: Maps a list of strings to (B, L) int64 ids.
        provenance: Origin of the weights.

    Raises:
        BackboneError: A tower is not open_clip's own transformer, or pools in a way that has no attach points.
    """

    def __init__(self, name: str, clip: Any, tokenizer: Any, provenance: Provenance):
        super().__init__()
        _check_towers(name, clip)
        self.clip = clip
        self.name = name
        self.provenance = provenance
        self.tokenizer = tokenizer
        custom = hasattr(clip, "text")
        root = self.clip.text if custom else self.clip
        pool_type, eos_id = (root.pool_type, root.eos_id) if custom else (root.text_pool_type, root.text_eos_id)
        self.image = OpenClipImageTower(self.clip.visual)
        self.text = OpenClipTextTower(root, pool_type, eos_id, f"clip{'.text' if custom else ''}.transformer")
        self.embed_dim = int(self.clip.visual.proj.shape[1])
        # Causal attention and pooling at the end token: what follows the end token is never seen.
        self.trims_text = pool_type in ("argmax", "eos")

    @property
    def logit_scale(self) -> nn.Parameter:  # type: ignore[override]
        """Log of the inverse temperature (the model's own parameter)."""
        return self.clip.logit_scale

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """(len(texts), context length) tokens; captions that are too long are cut, keeping the end token."""
        ids = self.tokenizer(list(texts))
        if isinstance(ids, Tokens):
            return ids
        text: Any = self.text
        return end_padded(ids, text.eos_id if text.pool_type == "eos" else None)

    def project_image(self, pooled: Tensor) -> Tensor:
        """(B, P_image) @ (P_image, E)."""
        return pooled @ self.clip.visual.proj

    def project_text(self, pooled: Tensor) -> Tensor:
        """(B, P_text) @ (P_text, E); the projection has a bias in some custom-text models."""
        text: Any = self.text
        projection = text.root.text_projection
        return projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection


def load_open_clip(
    name: str,
    *,
    weights: str | None = None,
    pretrained: str | None = None,
    activation: Activation | None = None,
    resolution: int | None = None,
    seed: int = 0,
) -> OpenClipEncoder:
    """An open_clip model by architecture, with weights from a hub tag or from a local file.

    Args:
        name: ``ARCHITECTURE`` or ``ARCHITECTURE:TAG``.
        weights: Local state dict, ``.safetensors``, ``.pt``, ``.pth`` or ``.bin``.
        pretrained: Tag of ``open_clip.list_pretrained()``, or ``random`` for untrained weights.
        activation: ``gelu`` or ``quick_gelu``; needed for a local file that is not known, unless the architecture's
            name ends in ``-quickgelu``.
        resolution: Input side in pixels; the position table is interpolated where it differs from the weights'.
        seed: Seeds ``pretrained="random"`` only.

    Raises:
        BackboneError: Unknown names, contradicting options, unreachable or unfitting weights.
    """
    import open_clip

    origin = resolve(name, weights, pretrained, activation, resolution)
    path = origin.fetch()
    clip = build_clip(origin, seed)
    if path is None:
        source, sha256 = f"random initialisation, seed {seed}", weights_io.tensors_sha256(clip.state_dict())
    else:
        source, sha256 = origin.source, weights_io.file_sha256(path)
        load_clip_state(clip, weights_io.read_state_dict(path), source, resize=resolution is not None)
    provenance = Provenance(
        kind="open_clip",
        architecture=origin.architecture,
        source=source,
        sha256=sha256,
        activation=origin.activation,
        mean=origin.mean,
        std=origin.std,
        resolution=int(clip.visual.image_size[0]),
        aligned=origin.trained,
        notes=origin.notes,
    )
    return OpenClipEncoder(name, clip, open_clip.get_tokenizer(origin.architecture), provenance)


def load_clip_state(clip: Any, state: dict[str, Tensor], source: str, *, resize: bool = False) -> None:
    """Load a CLIP state dict strictly; with ``resize``, interpolate the image position table to the model's grid.

    Raises:
        BackboneError: Keys or shapes differ, or the position table is for another resolution and ``resize`` is off.
    """
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed

    if hasattr(clip, "text") and "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    key = "visual.positional_embedding"
    here, there = clip.visual.positional_embedding.shape, state[key].shape if key in state else None
    if there is not None and there != here and len(there) == 2 and there[1] == here[1]:
        side = round((there[0] - 1) ** 0.5)
        if side * side + 1 != there[0]:
            raise BackboneError(
                f"{source}: its position table has {there[0]} rows, not a square grid and a class token"
            )
        patch = clip.visual.patch_size[0]
        if not resize:
            raise BackboneError(
                f"{source} was made for {side * patch} px pictures ({side} x {side} patches), the architecture for "
                f"{clip.visual.image_size[0]} px; give resolution={side * patch} to use it as it is, or another "
                "resolution to have its position table interpolated"
            )
        state = {**state, key: state[key].float()}  # half precision is not interpolated on every device
        resize_pos_embed(state, clip)
    weights_io.load_strict(
        clip, state, source, ignored=STALE_BUFFERS, advice="Is this the architecture that the file was made for?"
    )


def _check_towers(name: str, clip: Any) -> None:
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer

    visual = clip.visual
    if not isinstance(visual, VisionTransformer):
        raise BackboneError(
            f"{name}: the image tower is a {type(visual).__name__}; only vision transformers of open_clip have the "
            "attach points that methods need. Choose a ViT architecture"
        )
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
        raise BackboneError(f"{name}: attentional pooling of the image tower is not supported")
    text: Any = getattr(clip, "text", clip)
    if text is not clip and (not isinstance(text, TextTransformer) or text.cls_emb is not None):
        raise BackboneError(f"{name}: the text tower is a {type(text).__name__} without CLIP's end-token pooling")
    pool_type = text.text_pool_type if text is clip else text.pool_type
    if text.attn_mask is None or pool_type not in ("argmax", "eos", "last"):
        raise BackboneError(f"{name}: text towers are causal and pool at the end token; this one pools {pool_type}")
    blocks = [*visual.transformer.resblocks, *text.transformer.resblocks]
    if not all(isinstance(block, ResidualAttentionBlock) for block in blocks):
        raise BackboneError(f"{name}: its blocks are not open_clip's standard residual attention blocks")


def build_clip(origin: Origin, seed: int) -> Any:
    """The open_clip model of an architecture with random weights; on the meta device where that is the default."""
    import open_clip

    vision = open_clip.CLIPVisionCfg(**origin.config["vision_cfg"])
    text = open_clip.CLIPTextCfg(**origin.config["text_cfg"])
    vision.patch_dropout = 0.0  # it would make a frozen tower random, and no checkpoint needs it
    vision.image_size = vision.image_size if origin.resolution is None else origin.resolution
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make = open_clip.CustomTextCLIP if origin.config.get("custom_text") else open_clip.CLIP
        return make(origin.config["embed_dim"], vision, text, quick_gelu=origin.activation == "quick_gelu")
