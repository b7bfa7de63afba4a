"""Learned tokens inside frozen towers: insertion, deep replacement, initialisation. Shared by the prompt methods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder, Hidden, Tokens, Tower
from petlbench.methods.backbones.dinov2 import PATCH
from petlbench.methods.backbones.minilm import BertTower
from petlbench.methods.backbones.open_clip_towers import OpenClipImageTower, OpenClipTextTower
from petlbench.methods.base import MethodError

Depth = PositiveInt | Literal["all"]
Positions = Literal["auto", "shifted", "kept"]
Init = Literal["uniform", "normal"]

NORMAL_STD = 0.02
ROOM = 4
"""``auto`` shifts the words where the prompts take at most one in ROOM positions of the text tower's table."""

POSITION_CHOICE = (
    "positions=auto: on a CLIP text tower the prompts take positions 1..n of the position table and push the words back, as "
    "in CoOp, unless n is more than a quarter of the table (small towers); then, and on BERT, prompts have no position and "
    "the words keep theirs, so that no caption has to be cut."
)
SGD_NOTE = (
    "The official trainers of CoOp, CoCoOp and MaPLe warm up for one epoch at the constant rate 1e-5 and step the cosine per "
    "epoch; here the warm-up is linear over the same share of steps and the cosine is per step."
)
CROP_NOTE = (
    "The share of the area that the official random resized crop keeps comes from a framework default that was not read; "
    "(0.08, 1.0), torchvision's, is used."
)
OFFICIAL_CROP = {"random_resized_crop": (0.08, 1.0), "horizontal_flip": 0.5}
IVLP_TRAIN: Mapping[str, Any] = {
    "optimizer": "sgd",
    "lr": 3.5e-3,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "decay": "all",
    "schedule": "cosine",
    "warmup": 1 / 5,
    "clip_norm": 0.0,
    "batch_size": 4,
    "epochs": 5,
    "augmentation": OFFICIAL_CROP,
}
"""The few-shot recipe of MaPLe and of IVLP, in the configurations of their common repository."""


class PromptedEncoder(nn.Module):
    """A backbone beside the prompts of its towers; a tower without prompts has None.

    Args:
        backbone: The towers.
        image: (D, n, W_image) start values, one set for each of the first D blocks.
        text: (D, n, W_text) likewise.
    """

    def __init__(self, backbone: DualEncoder, image: Tensor | None = None, text: Tensor | None = None):
        super().__init__()
        self.backbone = backbone
        self.image_prompts = None if image is None else nn.Parameter(image)
        self.text_prompts = None if text is None else nn.Parameter(text)


# --- forward passes ---


def pooled_image(tower: Tower, images: Tensor, sets: Iterable[Tensor], *, input_norm: bool = False) -> Tensor:
    """(B, P) pooled output of an image tower with prompts between the class token and the patches.

    Blocks of a vision transformer do not know the order of their tokens, so this also is what the CLIP ports compute that
    append the prompts at the end.

    Args:
        tower: Any image tower.
        images: (B, 3, H, W) pictures.
        sets: (n, W) or (B, n, W) prompts of block 0, 1, ...; each set replaces what the former has become. The blocks
            after the last set carry that set on.
        input_norm: Pass the first set through the norm between embedding and blocks (``ln_pre``), where there is one.
    """
    hidden = tower.embed(images)
    first, *deeper = sets
    if input_norm and isinstance(tower, OpenClipImageTower):
        first = tower.visual.ln_pre(first)
    start = hidden.prefix
    hidden = _inserted(hidden, first, start, prefix=start + first.shape[-2])
    return tower.pool(run_prompted(tower, hidden, deeper, start))


def pooled_text(tower: Tower, tokens: Tokens, sets: Iterable[Tensor], positions: Positions = "auto") -> Tensor:
    """(B, P) pooled output of a text tower with prompts before the words.

    On CLIP the prompts stand after the start token, and the end token that is pooled moves back by n. On BERT they stand
    first, which its blocks cannot tell from any other place, and are left out of the mean over the caption's own tokens.

    Args:
        tower: A CLIP or BERT text tower.
        tokens: Captions; where the words move back, those longer than the position table minus n are cut, keeping the
            end token.
        sets: (n, W) or (B, n, W) prompts of block 0, 1, ..., as for :func:`pooled_image`.
        positions: ``shifted``: prompts take positions 1..n of the table. ``kept``: they have none.
    """
    first, *deeper = sets
    length = first.shape[-2]
    if isinstance(tower, OpenClipTextTower):
        start = 1
        if shifts(tower, length, positions):
            table = tower.root.positional_embedding
            hidden = tower.embed(with_room(tokens, length, table.shape[0]))
            first = first + table[start : start + length]
            words = hidden.x[:, start + length :]
            hidden = hidden.with_x(torch.cat([hidden.x[:, :start], _rows(first, hidden), words], 1))
        else:
            hidden = _inserted(tower.embed(tokens), first, start, prefix=start + length)
    else:
        start = 0
        hidden = _inserted(tower.embed(tokens), first, start, prefix=length)
    return tower.pool(run_prompted(tower, hidden, deeper, start))


def run_prompted(tower: Tower, hidden: Hidden, deeper: Iterable[Tensor], start: int) -> Hidden:
    """All blocks; ``deeper`` holds the prompts that stand at ``start`` before block 1, 2, ... and replace the former."""
    left = iter(deeper)
    for index in range(tower.depth):
        fresh = next(left, None) if index else None
        if fresh is not None:
            stop = start + fresh.shape[-2]
            hidden = hidden.with_x(
                torch.cat([hidden.x[:, :start], _rows(fresh, hidden), hidden.x[:, stop:]], 1),
            )
        hidden = tower.run_block(index, hidden)
    return hidden


def with_room(tokens: Tokens, length: int, context: int) -> Tokens:
    """Captions with ``length`` placeholders (id 0) after the start token, within ``context`` positions.

    Captions that do not fit are cut, keeping the end token; padding that does not fit is dropped.
    """
    keep = min(tokens.ids.shape[1], context - length)
    ids, mask = tokens.ids[:, :keep].clone(), tokens.mask[:, :keep]
    lengths = tokens.mask.sum(1, keepdim=True)
    ends = tokens.ids.gather(1, (lengths - 1).clamp_min(0))
    ids[:, -1:] = torch.where(lengths > keep, ends, ids[:, -1:])
    room = ids.new_zeros(len(ids), length)
    return Tokens(
        torch.cat([ids[:, :1], room, ids[:, 1:]], 1),
        torch.cat([mask[:, :1], torch.ones_like(room, dtype=torch.bool), mask[:, 1:]], 1),
    )


def shifts(tower: Tower, length: int, positions: Positions) -> bool:
    """Whether ``length`` prompts take rows of the tower's position table and push the words back."""
    if not isinstance(tower, OpenClipTextTower) or positions == "kept":
        return False
    return positions == "shifted" or ROOM * length <= tower.root.positional_embedding.shape[0]


def _inserted(hidden: Hidden, prompts: Tensor, start: int, prefix: int) -> Hidden:
    """The sequence with prompts before token ``start``; mask and pooling position follow."""
    rows = _rows(prompts, hidden)
    mask, pool_at = hidden.mask, hidden.pool_at
    if mask is not None:
        mask = torch.cat([mask[:, :start], mask.new_ones(rows.shape[:2]), mask[:, start:]], 1)
    if pool_at is not None:
        pool_at = pool_at + rows.shape[1]
    x = torch.cat([hidden.x[:, :start], rows, hidden.x[:, start:]], 1)
    return Hidden(x, mask=mask, pool_at=pool_at, prefix=prefix)


def _rows(prompts: Tensor, hidden: Hidden) -> Tensor:
    return prompts.expand(hidden.x.shape[0], -1, -1)


# --- sizes and start values ---


def sets_for(tower: Tower, depth: Depth) -> int:
    """Number of prompt sets: ``depth``, but never more than the tower has blocks."""
    return tower.depth if depth == "all" else min(depth, tower.depth)


def normal(sets: int, length: int, width: int) -> Tensor:
    """(sets, length, width), normal of deviation 0.02."""
    return torch.empty(sets, length, width).normal_(std=NORMAL_STD)


def uniform_bound(tower: Tower) -> float:
    """sqrt(6 / (3 P^2 + W)) for patches of side P: the bound of VPT's start values (Jia et al. 2022, its code)."""
    side = int(tower.visual.patch_size[0]) if isinstance(tower, OpenClipImageTower) else PATCH
    return math.sqrt(6 / (3 * side * side + tower.width))


def image_start(tower: Tower, sets: int, length: int, init: Init) -> Tensor:
    """(sets, length, W) start values of visual prompts."""
    if init == "normal":
        return normal(sets, length, tower.width)
    bound = uniform_bound(tower)
    return torch.empty(sets, length, tower.width).uniform_(-bound, bound)


def text_start(backbone: DualEncoder, sets: int, length: int, words: str, method: str) -> Tensor:
    """(sets, length, W) start values of text prompts: normal, the first set from ``words`` where given.

    Raises:
        MethodError: The words are fewer than the prompts.
    """
    values = normal(sets, length, backbone.text.width)
    if words:
        vectors = word_vectors(backbone, words, length, method)
        if not vectors.is_meta:  # a backbone that is there in shape only has no words to start from
            values[0] = vectors
    return values


def word_vectors(backbone: DualEncoder, words: str, length: int, method: str) -> Tensor:
    """(length, W) vectors of the first ``length`` tokens of ``words``, as prompts that stand for them.

    On CLIP these are word embeddings without positions; on BERT, whose prompts enter behind the embedding's norm, the
    states in which the words enter the blocks.

    Raises:
        MethodError: The words are fewer than ``length`` tokens.
    """
    tokens = backbone.tokenize([words])
    found = int(tokens.mask.sum()) - 2
    if found < length:
        raise MethodError(
            f"method {method}: {length} prompts are to start from the words {words!r}, which are {found} tokens; set "
            f"fewer tokens, give more words, or start at random with method.{method}.words=''"
        )
    tower = backbone.text
    with torch.no_grad():
        if isinstance(tower, OpenClipTextTower):
            table = tower.root.token_embedding
            return table(tokens.ids[0, 1 : 1 + length].to(table.weight.device)).clone()
        assert isinstance(tower, BertTower)
        return tower.embed(tokens.to(next(tower.model.parameters()).device)).x[0, 1 : 1 + length].clone()


def refuse_text(
    method: str, backbone: DualEncoder, length: int, positions: Positions, key: str = "tokens"
) -> str | None:
    """The reason why a text tower has no room for the prompts and a caption, or None."""
    tower = backbone.text
    if not isinstance(tower, OpenClipTextTower) or not shifts(tower, length, positions):
        return None
    context = tower.root.positional_embedding.shape[0]
    if context - length >= 3:  # start token, one word, end token
        return None
    return (
        f"{length} prompts leave {max(0, context - length)} of {context} text positions of {backbone.name} for the caption; "
        f"set fewer method.{method}.{key}, or method.{method}.positions=kept"
    )


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """(D, n, W) fp32 from D official sets, (n, W) or (1, n, W) each."""
    return torch.cat([part.float().reshape(-1, *part.shape[-2:]) for part in parts])
