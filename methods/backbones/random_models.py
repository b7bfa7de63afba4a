"""Small untrained backbones of every kind, built from configurations alone: for contract checks and tests."""

from __future__ import annotations

import torch

from petlbench.methods.backbones import weights_io
from petlbench.methods.backbones.base import Provenance
from petlbench.methods.backbones.dinov2 import IMAGENET_MEAN, IMAGENET_STD, PATCH, build_dinov2
from petlbench.methods.backbones.minilm import build_bert
from petlbench.methods.backbones.open_clip_model import OpenClipEncoder
from petlbench.methods.backbones.open_clip_origin import CLIP_MEAN, CLIP_STD
from petlbench.methods.backbones.swin import build_swin
from petlbench.methods.backbones.swin_bert import SwinBertEncoder
from petlbench.methods.backbones.tokenizers import HashingTokenizer
from petlbench.methods.backbones.two_tower import TwoTowerEncoder
from petlbench.methods.backbones.vilt import MEAN, STD, ViltEncoder
from petlbench.methods.backbones.vilt_tower import build_vilt

VOCAB = 512


def random_clip(
    seed: int = 0,
    *,
    blocks: int = 2,
    width: int = 32,
    text_blocks: int | None = None,
    text_width: int | None = None,
    embed_dim: int = 16,
    context_length: int = 16,
    resolution: int = 32,
    patch: int = 16,
    quick_gelu: bool = False,
    aligned: bool = True,
) -> OpenClipEncoder:
    """An untrained open_clip CLIP in evaluation mode.

    Args:
        seed: Seeds every weight.
        blocks: Blocks of the image tower, and of the text tower unless ``text_blocks`` is given.
        width: Width of the image tower, and of the text tower unless ``text_width`` is given; two heads each.
        text_blocks: Blocks of the text tower.
        text_width: Width of the text tower.
        embed_dim: Width E of the joint space.
        context_length: Text tokens.
        resolution: Input side, pixels.
        patch: Patch side, pixels.
        quick_gelu: Use OpenAI's activation.
        aligned: What the model claims to be; it stands in for a pretrained CLIP by default.
    """
    import open_clip

    text_width = width if text_width is None else text_width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = open_clip.CLIP(
            embed_dim,
            open_clip.CLIPVisionCfg(
                layers=blocks, width=width, head_width=width // 2, patch_size=patch, image_size=resolution
            ),
            open_clip.CLIPTextCfg(
                context_length=context_length,
                vocab_size=VOCAB,
                width=text_width,
                heads=2,
                layers=blocks if text_blocks is None else text_blocks,
            ),
            quick_gelu=quick_gelu,
        )
    provenance = Provenance(
        kind="open_clip",
        architecture=f"random-clip-{width}x{blocks}",
        source=f"random initialisation, seed {seed}",
        sha256=weights_io.tensors_sha256(clip.state_dict()),
        activation="quick_gelu" if quick_gelu else "gelu",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resolution=resolution,
        aligned=aligned,
    )
    return OpenClipEncoder("random-clip", clip, HashingTokenizer(VOCAB, context_length), provenance).eval()


def random_two_tower(
    seed: int = 0,
    *,
    blocks: int = 2,
    width: int = 32,
    embed_dim: int = 16,
    context_length: int = 16,
    resolution: int = 2 * PATCH,
    aligned: bool = False,
) -> TwoTowerEncoder:
    """An untrained DINOv2 and BERT under small joining heads, in evaluation mode.

    Args:
        seed: Seeds every weight.
        blocks: Blocks per tower.
        width: Width of both towers; two heads each.
        embed_dim: Width E of the joint space.
        context_length: Text tokens.
        resolution: Input side, pixels, a multiple of 14.
        aligned: Stand in for towers that an alignment has made one model, heads included.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = build_dinov2(width, 2, blocks, resolution // PATCH)
        language = build_bert(
            {
                "vocab_size": VOCAB,
                "hidden_size": width,
                "num_hidden_layers": blocks,
                "num_attention_heads": 2,
                "intermediate_size": 4 * width,
                "max_position_embeddings": 128,
            }
        )
    state = {**vision.state_dict(prefix="vision."), **language.state_dict(prefix="language.")}
    provenance = Provenance(
        kind="two_tower",
        architecture=f"random-two-tower-{width}x{blocks}",
        source=f"random initialisation, seed {seed}",
        sha256=weights_io.tensors_sha256(state),
        activation="gelu",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resolution=resolution,
        aligned=aligned,
    )
    tokenizer = HashingTokenizer(VOCAB, context_length)
    encoder = TwoTowerEncoder(
        "random-two-tower", vision, language, tokenizer, provenance, seed, hidden_dim=width, embed_dim=embed_dim
    )
    return encoder.eval()


def random_joint(seed: int = 0) -> TwoTowerEncoder:
    """:func:`random_two_tower` in the place of a joint model: its heads count as pretrained."""
    return random_two_tower(seed, aligned=True)


def random_swin_bert(
    seed: int = 0, *, width: int = 16, blocks: int = 2, embed_dim: int = 16, context_length: int = 16
) -> SwinBertEncoder:
    """An untrained Swin of two stages at 56 px and a BERT under linear projections, in evaluation mode.

    Args:
        seed: Seeds every weight.
        width: Width of Swin's first stage; its second and BERT have twice as much. Two heads each.
        blocks: Blocks per stage, and of BERT.
        embed_dim: Width E of the joint space.
        context_length: Text tokens.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = build_swin(width, (blocks, blocks), (2, 2), 56, drop_path=0.1)
        language = build_bert(
            {
                "vocab_size": VOCAB,
                "hidden_size": 2 * width,
                "num_hidden_layers": blocks,
                "num_attention_heads": 2,
                "intermediate_size": 8 * width,
                "max_position_embeddings": 128,
            },
            dropout=0.1,
        )
    state = {**vision.state_dict(prefix="vision."), **language.state_dict(prefix="language.")}
    provenance = Provenance(
        kind="swin_bert",
        architecture=f"random-swin-bert-{width}x{blocks}",
        source=f"random initialisation, seed {seed}",
        sha256=weights_io.tensors_sha256(state),
        activation="gelu",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resolution=56,
        aligned=False,
    )
    tokenizer = HashingTokenizer(VOCAB, context_length)
    return SwinBertEncoder("random-swin-bert", vision, language, tokenizer, provenance, seed, embed_dim).eval()


def random_vilt(
    seed: int = 0,
    *,
    blocks: int = 3,
    width: int = 32,
    resolution: int = 48,
    patch: int = 16,
    context_length: int = 16,
) -> ViltEncoder:
    """An untrained ViLT in evaluation mode, with a random matching head.

    Weights are drawn wider than ViLT's own (standard deviation 1 / sqrt(width)), so that scores differ between pairs.

    Args:
        seed: Seeds every weight.
        blocks: Blocks over words and patches.
        width: Width of the states; two heads.
        resolution: Input side, pixels, a multiple of ``patch``.
        patch: Patch side, pixels.
        context_length: Text tokens.
    """
    std = width**-0.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vilt = build_vilt(
            {
                "image_size": resolution,
                "patch_size": patch,
                "hidden_size": width,
                "num_hidden_layers": blocks,
                "num_attention_heads": 2,
                "intermediate_size": 4 * width,
                "vocab_size": VOCAB,
                "max_position_embeddings": context_length,
                "initializer_range": std,
            }
        )
        itm_head = torch.randn(2, width) * std, torch.randn(2) * std
    provenance = Provenance(
        kind="vilt",
        architecture=f"random-vilt-{width}x{blocks}",
        source=f"random initialisation, seed {seed}",
        sha256=weights_io.tensors_sha256(vilt.state_dict()),
        activation="gelu",
        mean=MEAN,
        std=STD,
        resolution=resolution,
        aligned=False,
    )
    tokenizer = HashingTokenizer(VOCAB, context_length)
    return ViltEncoder("random-vilt", vilt, tokenizer, provenance, itm_head, seed).eval()
