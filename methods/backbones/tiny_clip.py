"""tiny-clip: a CLIP small enough to ship and to tune on a laptop, pretrained on synthetic scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import Provenance
from petlbench.methods.backbones.open_clip_model import OpenClipEncoder
from petlbench.methods.backbones.open_clip_origin import CLIP_MEAN, CLIP_STD
from petlbench.methods.backbones.tokenizers import cut_clip_tokenizer

WEIGHTS = Path(__file__).parent / "weights" / "tiny_clip.safetensors"

RESOLUTION = 64
PATCH = 8
WIDTH = 160
TEXT_WIDTH = 128
BLOCKS = 4
TEXT_BLOCKS = 3
EMBED_DIM = 128
CONTEXT_LENGTH = 40
VOCAB_SIZE = 4096


def build_tiny_clip(seed: int = 0) -> Any:
    """The untrained ``open_clip.CLIP`` of tiny-clip's architecture, with GELU."""
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CLIP(
            EMBED_DIM,
            open_clip.CLIPVisionCfg(
                layers=BLOCKS, width=WIDTH, head_width=WIDTH // 4, patch_size=PATCH, image_size=RESOLUTION
            ),
            open_clip.CLIPTextCfg(
                context_length=CONTEXT_LENGTH, vocab_size=VOCAB_SIZE, width=TEXT_WIDTH, heads=4, layers=TEXT_BLOCKS
            ),
        )


def load_tiny_clip(weights: str | None = None) -> OpenClipEncoder:
    """tiny-clip with the shipped weights, or with those of another run of the pretraining script.

    Args:
        weights: A file written by ``scripts/pretrain_tiny_clip.py``; None takes the shipped one.

    Raises:
        BackboneError: The file is missing, damaged or of another architecture.
    """
    path = weights_io.find_weights(weights or WEIGHTS)
    clip = build_tiny_clip()
    weights_io.load_strict(clip, weights_io.read_state_dict(path), path.name, advice="Is it a tiny-clip file?")
    return _encoder(clip, path.name, weights_io.file_sha256(path), aligned=True)


def untrained_tiny_clip(seed: int = 0) -> OpenClipEncoder:
    """tiny-clip before pretraining."""
    clip = build_tiny_clip(seed)
    source = f"random initialisation, seed {seed}"
    return _encoder(clip, source, weights_io.tensors_sha256(clip.state_dict()), aligned=False)


def _encoder(clip: Any, source: str, sha256: str, *, aligned: bool) -> OpenClipEncoder:
    provenance = Provenance(
        kind="open_clip",
        architecture="tiny-clip",
        source=source,
        sha256=sha256,
        activation="gelu",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resolution=RESOLUTION,
        aligned=aligned,
        licence="Apache-2.0",
        notes="knows synthetic scenes only; compares with no published number",
    )
    return OpenClipEncoder("tiny-clip", clip, cut_clip_tokenizer(VOCAB_SIZE, CONTEXT_LENGTH), provenance)
