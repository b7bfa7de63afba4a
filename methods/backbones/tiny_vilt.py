"""tiny-vilt: a ViLT small enough to ship and to score every pair of a split on two cores, pretrained on synthetic scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import Provenance, Tokens
from petlbench.methods.backbones.tokenizers import cut_clip_tokenizer, end_padded
from petlbench.methods.backbones.vilt import MEAN, STD, ViltEncoder
from petlbench.methods.backbones.vilt_files import load_vilt_weights
from petlbench.methods.backbones.vilt_tower import build_vilt

WEIGHTS = Path(__file__).parent / "weights" / "tiny_vilt.safetensors"

RESOLUTION = 64
CONTEXT_LENGTH = 40
VOCAB_SIZE = 4096
WIDTH = 64
SIZES: dict[str, Any] = {
    "image_size": RESOLUTION,
    "patch_size": 16,
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 4 * WIDTH,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": CONTEXT_LENGTH,
}
DROPOUT = 0.0
"""Small as it is, it learns more without; ViLT drops a tenth."""


class StartedTokenizer:
    """CLIP's byte-pair encoder, cut; the start token is what ViLT pools, the class token."""

    def __init__(self, vocab_size: int = VOCAB_SIZE, context_length: int = CONTEXT_LENGTH):
        self.encoder = cut_clip_tokenizer(vocab_size, context_length)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """(len(texts), context_length) tokens; captions that are too long are cut, keeping the end token."""
        return end_padded(self.encoder(list(texts)))


def load_tiny_vilt(weights: str | None = None) -> ViltEncoder:
    """tiny-vilt with the shipped weights, or with those of another run of the pretraining script.

    Args:
        weights: A file written by ``scripts/pretrain_tiny_vilt.py``; None takes the shipped one.

    Raises:
        BackboneError: The file is missing, damaged or of another architecture.
    """
    path = weights_io.find_weights(weights or WEIGHTS)
    encoder = _encoder(0, path.name, weights_io.file_sha256(path), aligned=True)
    load_vilt_weights(encoder, path, advice="Is it a tiny-vilt file?")
    return encoder


def untrained_tiny_vilt(seed: int = 0) -> ViltEncoder:
    """tiny-vilt before pretraining."""
    return _encoder(seed, f"random initialisation, seed {seed}", "", aligned=False)


def _encoder(seed: int, source: str, sha256: str, *, aligned: bool) -> ViltEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vilt = build_vilt(SIZES, DROPOUT)
    provenance = Provenance(
        kind="vilt",
        architecture="tiny-vilt",
        source=source,
        sha256=sha256 or weights_io.tensors_sha256(vilt.state_dict()),
        activation="gelu",
        mean=MEAN,
        std=STD,
        resolution=RESOLUTION,
        aligned=aligned,
        licence="Apache-2.0",
        notes="knows synthetic scenes only; compares with no published number",
    )
    return ViltEncoder("tiny-vilt", vilt, StartedTokenizer(), provenance, seed=seed)
