"""Swin-T and BERT-base under two linear projections: the towers of PIR (Pan et al., ACM MM 2023)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import BackboneError, DualEncoder, Provenance, Tokens
from petlbench.methods.backbones.minilm import BertTokenizer, BertTower, build_bert
from petlbench.methods.backbones.open_clip_origin import CLIP_MEAN, CLIP_STD
from petlbench.methods.backbones.swin import SWIN_T, SwinTower, build_swin, check_side
from petlbench.methods.backbones.swin_bert_files import (
    BERT_BASE,
    load_bert_weights,
    load_swin_weights,
    locate_bert,
)
from petlbench.methods.backbones.tokenizers import HashingTokenizer

RESOLUTION = 224
EMBED_DIM = 512
CONTEXT_LENGTH = 47
TEMPERATURE = 0.07
DROPOUT = 0.1
"""Of BERT's states and attention, and the largest rate of Swin's stochastic depth; active in training mode only."""

_WAYS = (
    "it takes weights=FILE (Swin-T, ImageNet-22k, in Microsoft's or timm's layout) and text_weights=FOLDER or FILE (BERT-base, "
    "with or without the prefix `bert.`) together, or pretrained=random for untrained towers"
)


class ClassTokenBert(BertTower):
    """BERT read at its first token."""

    def pool(self, hidden: Any) -> Tensor:
        """(B, W) state of the class token."""
        return hidden.x[:, 0]


class SwinBertEncoder(DualEncoder):
    """A Swin image tower and a BERT text tower, each with one linear projection that serves every token.

    Module names: ``vision``, ``language``, ``vision_proj``, ``text_proj``, and the parameter ``temp``, a temperature that
    divides similarities. The projections and the temperature are new: every method trains them.

    Args:
        name: What the user calls the backbone.
        vision: ``timm``'s Swin transformer without classifier.
        language: ``transformers.BertModel``.
        tokenize: Maps strings to :class:`Tokens`.
        provenance: Origin of the towers' weights.
        seed: Seeds the projections.
        embed_dim: Width E of the joint space.
    """

    trims_text = True  # BERT's attention masks padding

    def __init__(
        self,
        name: str,
        vision: Any,
        language: Any,
        tokenize: Callable[[Sequence[str]], Tokens],
        provenance: Provenance,
        seed: int = 0,
        embed_dim: int = EMBED_DIM,
    ):
        super().__init__()
        self.name = name
        self.provenance = provenance
        self.vision = vision
        self.language = language
        self.tokenizer = tokenize
        self.image = SwinTower(vision)
        self.text = ClassTokenBert(language)
        self.embed_dim = embed_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.vision_proj = nn.Linear(self.image.pooled_width, embed_dim)
            self.text_proj = nn.Linear(self.text.pooled_width, embed_dim)
        self.temp = nn.Parameter(torch.tensor(TEMPERATURE))

    @property
    def logit_scale(self) -> Tensor:  # type: ignore[override]
        """-log of the temperature."""
        return -torch.log(self.temp)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """(len(texts), context length) tokens; captions that are too long are cut, keeping the end token."""
        return self.tokenizer(texts)

    def project_image(self, pooled: Tensor) -> Tensor:
        """(..., W) pooled output or tokens to (..., E)."""
        return self.vision_proj(pooled)

    def project_text(self, pooled: Tensor) -> Tensor:
        """(..., W) pooled output or tokens to (..., E)."""
        return self.text_proj(pooled)

    def new_parameters(self) -> Iterator[str]:
        """Names of the projections' parameters and of the temperature."""
        return iter(("temp", *(f"{side}_proj.{part}" for side in ("vision", "text") for part in ("weight", "bias"))))


def load_swin_bert(
    name: str = "swin-bert",
    *,
    weights: str | None = None,
    text_weights: str | None = None,
    pretrained: str | None = None,
    resolution: int | None = None,
    seed: int = 0,
) -> SwinBertEncoder:
    """Swin-T and BERT-base, both with their files, or both untrained where that is said.

    Args:
        name: Recorded name.
        weights: Swin-T file.
        text_weights: BERT folder (with its tokenizer), or a weight file in such a folder.
        pretrained: ``random`` for untrained towers, with a hashing tokenizer; nothing else.
        resolution: Input side in pixels, a multiple of 224; None means 224.
        seed: Seeds the projections, and the towers where they are random.

    Raises:
        BackboneError: Weights are missing, contradict each other or do not fit.
    """
    options = resolve_swin_bert(name, weights, text_weights, pretrained, resolution)
    side = options["resolution"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = build_swin(**SWIN_T, resolution=side, drop_path=DROPOUT)
        language = build_bert(BERT_BASE, dropout=DROPOUT)
    tokenizer: Callable[[Sequence[str]], Tokens]
    if options.get("pretrained") == "random":
        tokenizer = HashingTokenizer(BERT_BASE["vocab_size"], CONTEXT_LENGTH)
        state = {**vision.state_dict(prefix="vision."), **language.state_dict(prefix="language.")}
        source, sha256 = f"random initialisation, seed {seed}", weights_io.tensors_sha256(state)
        notes = "untrained towers, hashing tokenizer"
    else:
        image_path, (folder, text_path) = (
            weights_io.find_weights(options["weights"]),
            locate_bert(options["text_weights"]),
        )
        load_swin_weights(vision, image_path)
        load_bert_weights(language, text_path)
        tokenizer = BertTokenizer(folder, CONTEXT_LENGTH)
        hashes = [weights_io.file_sha256(path) for path in (image_path, text_path)]
        source = f"{image_path.name} + {folder.name}/{text_path.name}"
        sha256 = hashlib.sha256("".join(hashes).encode()).hexdigest()
        notes = f"sha256 is of the two files' hashes joined: image {hashes[0]}, text {hashes[1]}"
    provenance = Provenance(
        kind="swin_bert",
        architecture="Swin-T, window 7, patch 4; BERT 12 x 768",
        source=source,
        sha256=sha256,
        activation="gelu",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resolution=side,
        aligned=False,
        licence="Swin: MIT; BERT: Apache-2.0",
        notes=notes,
    )
    return SwinBertEncoder(name, vision, language, tokenizer, provenance, seed)


def resolve_swin_bert(
    name: str = "swin-bert",
    weights: str | None = None,
    text_weights: str | None = None,
    pretrained: str | None = None,
    resolution: int | None = None,
) -> dict[str, Any]:
    """The options of :func:`load_swin_bert` with found files and the resolution filled in.

    Raises:
        BackboneError: Weights are missing or contradict each other, or the resolution does not fit the windows.
    """
    side = RESOLUTION if resolution is None else resolution
    check_side(name, side, SWIN_T["depths"])
    if pretrained not in (None, "random"):
        raise BackboneError(f"{name}: pretrained={pretrained} is unknown; {_WAYS}")
    if pretrained is not None:
        if weights or text_weights:
            raise BackboneError(f"{name}: pretrained=random contradicts weights and text_weights; {_WAYS}")
        return {"pretrained": "random", "resolution": side}
    if not weights or not text_weights:
        absent = " and ".join(k for k, v in (("weights", weights), ("text_weights", text_weights)) if not v)
        raise BackboneError(f"{name}: {absent} not given, and untrained towers are never taken in silence; {_WAYS}")
    image = weights_io.find_weights(weights)
    locate_bert(text_weights)
    return {"weights": str(image), "text_weights": str(weights_io.find_weights(text_weights)), "resolution": side}
