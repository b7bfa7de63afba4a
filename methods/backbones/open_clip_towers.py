"""Views on the two transformers of an open_clip CLIP model; they own nothing, the model does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from petlbench.methods.backbones.base import Hidden, Slot, Tokens, Tower


class _OpenClipTower(Tower):
    """What both towers share: open_clip's pre-norm residual blocks.

    A block computes ``x = x + ls_1(attn(ln_1(x)))``, then ``x + ls_2(mlp(ln_2(x)))``. The branch slots are ``ls_1`` and
    ``ls_2``: the last modules that a branch passes (identity without layer scale).
    """

    transformer: Any
    prefix: str
    """Full name of ``transformer`` within the DualEncoder."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The residual attention blocks."""
        return self.transformer.resblocks

    def branch(self, index: int, kind: Literal["attention", "mlp"]) -> Slot:
        """``ls_1`` or ``ls_2`` of the block."""
        return Slot(self.blocks[index], "ls_1" if kind == "attention" else "ls_2")

    def linears(self, index: int, kind: Literal["attention", "mlp"]) -> list[str]:
        """The ``nn.MultiheadAttention`` module, or ``c_fc`` and ``c_proj``."""
        block = f"{self.prefix}.resblocks.{index}"
        return [f"{block}.attn"] if kind == "attention" else [f"{block}.mlp.c_fc", f"{block}.mlp.c_proj"]

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

    def embed(self, inputs: Tensor) -> Hidden:
        """(B, 3, R, R) pictures to class and patch tokens after ``ln_pre``."""
        visual = self.visual
        patches = visual.conv1(inputs).flatten(2).transpose(1, 2)
        first = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = torch.cat([first, patches], 1) + visual.positional_embedding.to(patches.dtype)
        return Hidden(visual.ln_pre(x), prefix=1)

    def run_block(self, index: int, hidden: Hidden) -> Hidden:
        """Apply block ``index``; a mask, where given, hides tokens."""
        mask = self._key_mask(hidden)
        if mask is not None:
            mask = mask.expand(-1, hidden.x.shape[1], -1)
        return hidden.with_x(self.blocks[index](hidden.x, attn_mask=mask))

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

    def embed(self, inputs: Tokens) -> Hidden:
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

    def run_block(self, index: int, hidden: Hidden) -> Hidden:
        """Apply block ``index`` under a causal mask of the sequence's length; a mask, where given, hides more."""
        mask = self.causal_mask(hidden.x.shape[1], hidden.x.device, hidden.x.dtype)
        keys = self._key_mask(hidden)
        return hidden.with_x(self.blocks[index](hidden.x, attn_mask=mask if keys is None else mask + keys))

    def finish(self, hidden: Hidden) -> Tensor:
        """(B, N, W) after ``ln_final``."""
        return self.root.ln_final(hidden.x)

    def pool(self, hidden: Hidden) -> Tensor:
        """(B, W): the state at ``pool_at`` after ``ln_final``."""
        assert hidden.pool_at is not None, "text states must say where the end token is"
        rows = torch.arange(hidden.x.shape[0], device=hidden.x.device)
        return self.root.ln_final(hidden.x[rows, hidden.pool_at])
