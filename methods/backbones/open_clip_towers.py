"""Views on the two transformers of an open_clip CLIP model; they own nothing, the model does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petlbench.methods.backbones.base import BranchKind, Hidden, Tokens, Tower


class _OpenClipTower(Tower):
    """What both towers share: open_clip's pre-norm residual blocks.

    A block computes ``x = x + ls_1(attn(ln_1(x)))``, then ``x + ls_2(mlp(ln_2(x)))``; ``ls`` is the identity without
    layer scale.
    """

    transformer: Any
    prefix: str
    """Full name of ``transformer`` within the DualEncoder."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The residual attention blocks."""
        return self.transformer.resblocks

    def linears(self, index: int, kind: BranchKind) -> list[str]:
        """The ``nn.MultiheadAttention`` module, or ``c_fc`` and ``c_proj``."""
        block = f"{self.prefix}.resblocks.{index}"
        return [f"{block}.attn"] if kind == "attention" else [f"{block}.mlp.c_fc", f"{block}.mlp.c_proj"]

    @abstractmethod
    def _mask(self, hidden: Hidden) -> Tensor | None:
        """Additive attention mask that broadcasts over (B * heads, N, N), or None."""

    def _block(self, index: int, hidden: Hidden) -> Tensor:
        return self._by_parts(index, hidden)

    def _normed(self, index: int, kind: BranchKind, x: Tensor) -> Tensor:
        block: Any = self.blocks[index]
        return (block.ln_1 if kind == "attention" else block.ln_2)(x)

    def _contribution(self, index: int, kind: BranchKind, normed: Tensor, hidden: Hidden) -> Tensor:
        block: Any = self.blocks[index]
        if kind == "attention":
            mask = self._mask(hidden)
            if type(block.attn) is nn.MultiheadAttention:
                return block.ls_1(packed_attention(block.attn, normed, mask))
            return block.ls_1(block.attention(q_x=normed, attn_mask=mask))
        return block.ls_2(block.mlp(normed))

    def _joined(self, index: int, kind: BranchKind, x: Tensor, out: Tensor) -> Tensor:
        return x + out

    def _key_mask(self, hidden: Hidden) -> Tensor | None:
        """(B * heads, 1, N) additive mask of the keys, 0 or -inf, or None where every token may be attended to."""
        if hidden.mask is None:
            return None
        bias = torch.zeros(hidden.mask.shape, dtype=hidden.x.dtype, device=hidden.x.device)
        bias = bias.masked_fill(~hidden.mask, float("-inf"))
        return bias.repeat_interleave(self.heads, 0)[:, None]


class OpenClipImageTower(_OpenClipTower):
    """The vision transformer: patch convolution, class token, positions, ``ln_pre``; pooled after ``ln_post``."""

    modality = "image"

    def __init__(self, visual: Any, prefix: str = "clip.visual.transformer"):
        self.visual = visual
        self.transformer = self.visual.transformer
        self.prefix = prefix
        self.width = int(self.visual.conv1.out_channels)
        self.heads = int(self.transformer.resblocks[0].attn.num_heads)
        self.pooled_width = self.width

    def _embed(self, inputs: Tensor) -> Hidden:
        """(B, 3, R, R) pictures to class and patch tokens after ``ln_pre``."""
        visual = self.visual
        patches = visual.conv1(inputs).flatten(2).transpose(1, 2)
        first = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = torch.cat([first, patches], 1) + visual.positional_embedding.to(patches.dtype)
        return Hidden(visual.ln_pre(x), prefix=1)

    def _mask(self, hidden: Hidden) -> Tensor | None:
        mask = self._key_mask(hidden)
        return None if mask is None else mask.expand(-1, hidden.x.shape[1], -1)

    def finish(self, hidden: Hidden) -> Tensor:
        """(B, N, W) after ``ln_post``."""
        return self.visual.ln_post(hidden.x)

    def pool(self, hidden: Hidden) -> Tensor:
        """(B, W): the class token, or the mean of the patches, after ``ln_post``."""
        # The norm acts on each token alone, so for the class token it is taken of that token only.
        if self.visual.pool_type == "tok":
            return self.visual.ln_post(hidden.x[:, 0])
        patches = hidden.x[:, hidden.prefix :]
        if self.visual.final_ln_after_pool:
            return self.visual.ln_post(patches.mean(1))
        return self.visual.ln_post(patches).mean(1)


class OpenClipTextTower(_OpenClipTower):
    """The text transformer: causal, pooled at the end token after ``ln_final``.

    ``root`` is the module that owns the text parameters: the CLIP model itself, or its ``text`` for custom-text models.
    """

    modality = "text"

    def __init__(self, root: Any, pool_type: str, eos_id: int | None, prefix: str = "clip.transformer"):
        self.root = root
        self.transformer = self.root.transformer
        self.prefix = prefix
        self.pool_type = pool_type
        self.eos_id = eos_id
        self.width = int(self.root.token_embedding.embedding_dim)
        self.heads = int(self.transformer.resblocks[0].attn.num_heads)
        self.pooled_width = self.width
        self._masks: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    def _embed(self, inputs: Tokens) -> Hidden:
        """Tokens to word plus position embeddings, with the end token's position."""
        ids = inputs.ids
        x = self.root.token_embedding(ids) + self.root.positional_embedding[: ids.shape[1]]
        if self.pool_type == "argmax":
            pool_at = ids.argmax(1)
        elif self.pool_type == "eos":
            pool_at = ids.eq(-1 if self.eos_id is None else self.eos_id).int().argmax(1)
        else:
            pool_at = torch.full_like(ids[:, 0], ids.shape[1] - 1)
        return Hidden(x, pool_at=pool_at)

    def causal_mask(self, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(length, length) additive mask: 0 on and below the diagonal, -inf above."""
        key = (length, device, dtype)
        if key not in self._masks:
            # A mask first made while evaluating must stay usable by autograd later.
            with torch.inference_mode(False):
                self._masks[key] = torch.full((length, length), float("-inf"), device=device, dtype=dtype).triu_(1)
        return self._masks[key]

    def _mask(self, hidden: Hidden) -> Tensor:
        mask = self.causal_mask(hidden.x.shape[1], hidden.x.device, hidden.x.dtype)
        keys = self._key_mask(hidden)
        return mask if keys is None else mask + keys

    def finish(self, hidden: Hidden) -> Tensor:
        """(B, N, W) after ``ln_final``."""
        return self.root.ln_final(hidden.x)

    def pool(self, hidden: Hidden) -> Tensor:
        """(B, W): the state at ``pool_at`` after ``ln_final``."""
        assert hidden.pool_at is not None, "text states must say where the end token is"
        rows = torch.arange(hidden.x.shape[0], device=hidden.x.device)
        return self.root.ln_final(hidden.x[rows, hidden.pool_at])


def packed_attention(attention: nn.MultiheadAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Self-attention with the weights of ``attention``, (B, N, W) to (B, N, W).

    The module itself swaps batch and tokens first, after which PyTorch 2.15 projects with one small product per row of the
    batch: a tenth of a training step of CLIP ViT-B/32 on a CPU.

    Args:
        attention: Batch first, with bias, without dropout.
        x: The tokens.
        mask: Additive, (N, N) or (B * heads, N, N).
    """
    q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    joined = attended(q, k, v, attention.num_heads, mask)
    return F.linear(joined, attention.out_proj.weight, attention.out_proj.bias)


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Fused attention between the projections in and out: (B, N, W) each to the joined heads, (B, N, W).

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        heads: Number of heads.
        mask: Additive, (N, N) or (B * heads, N, N).
        dropout: Of the attention weights.
    """
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    if mask is not None and mask.ndim == 3:
        mask = mask.unflatten(0, (-1, heads))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)
