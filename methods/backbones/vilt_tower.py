"""The transformer of ViLT over words and patches: transformers' weights, fused attention, and a cheap last block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petlbench.methods.backbones.base import BranchKind, BranchState, Hidden, Tokens, Tower
from petlbench.methods.backbones.open_clip_towers import attended


class ViltTower(Tower):
    """``transformers.ViltModel`` as one tower over the words of a caption, then the class token and patches of a picture.

    Blocks are pre-norm, ``x = x + attention(norm(x))``, then ``x + mlp(norm(x))``. What is pooled is the caption's class
    token, the first after the prefix (inserted prompts).
    """

    modality = "joint"

    def __init__(self, model: Any, prefix: str = "vilt"):
        self.model = model
        self.prefix = prefix
        self.width = int(self.model.config.hidden_size)
        self.heads = int(self.model.config.num_attention_heads)
        self.pooled_width = self.width

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The ViLT layers."""
        return self.model.encoder.layer

    # --- embeddings ---

    def embed_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) pictures to (B, 1 + P, W): class token and patches in raster order, with positions and modality type.

        The table of positions is resized to the pictures' grid as in ViLT: bilinear, with aligned corners. ViLT's own code
        also permutes the patches at random, which its transformer does not see and which is left out here.
        """
        parts = self.model.embeddings
        grid = parts.patch_embeddings.projection(images)
        x = torch.cat([parts.cls_token.expand(grid.shape[0], -1, -1), grid.flatten(2).transpose(1, 2)], 1)
        x = parts.dropout(x + self._positions(grid.shape[2], grid.shape[3]))
        return x + parts.token_type_embeddings.weight[1]

    def embed_text(self, tokens: Tokens) -> Tensor:
        """(B, L, W): BERT's word, position and segment embeddings after their norm, with the modality type."""
        parts = self.model.embeddings
        return parts.text_embeddings(input_ids=tokens.ids) + parts.token_type_embeddings.weight[0]

    def join(self, text: Tensor, mask: Tensor | None, image: Tensor) -> Hidden:
        """The first block's input: words, then class token and patches.

        Args:
            text: (B, L, W) from :meth:`embed_text`.
            mask: (B, L) bool, True on real words; None where every word is real, which is cheaper.
            image: (B, 1 + P, W) from :meth:`embed_image`.
        """
        x = torch.cat([text, image], 1)
        if mask is None:
            return Hidden(x)
        return Hidden(x, mask=torch.cat([mask, mask.new_ones(image.shape[:2])], 1))

    def _embed(self, inputs: tuple[Tensor, Tokens]) -> Hidden:
        """(B, 3, H, W) pictures with their captions to the first block's input."""
        images, tokens = inputs
        return self.join(self.embed_text(tokens), tokens.mask, self.embed_image(images))

    def _positions(self, height: int, width: int) -> Tensor:
        """(1, 1 + height * width, W) table of positions for a grid."""
        table: Tensor = self.model.embeddings.position_embeddings
        side = round((table.shape[1] - 1) ** 0.5)
        if (height, width) == (side, side):
            return table
        grid = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        grid = F.interpolate(grid, (height, width), mode="bilinear", align_corners=True)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)

    # --- blocks ---

    def _block(self, index: int, hidden: Hidden) -> Tensor:
        return self._by_parts(index, hidden)

    def _normed(self, index: int, kind: BranchKind, x: Tensor) -> Tensor:
        block: Any = self.blocks[index]
        return (block.layernorm_before if kind == "attention" else block.layernorm_after)(x)

    def _contribution(self, index: int, kind: BranchKind, normed: Tensor, hidden: Hidden) -> Tensor:
        return self._attention(index, normed, normed, hidden.mask) if kind == "attention" else self._mlp(index, normed)

    def _joined(self, index: int, kind: BranchKind, x: Tensor, out: Tensor) -> Tensor:
        return x + out

    def _attention(self, index: int, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """(B, M, W) of M querying tokens over N tokens, (B, N, W), of which ``mask`` shows the real ones."""
        block: Any = self.blocks[index].attention
        part = block.attention
        visible = None if mask is None else mask[:, None, None]
        mixed = attended(part.query(queries), part.key(keys), part.value(keys), self.heads, visible)
        return block.output.dropout(block.output.dense(mixed))

    def _mlp(self, index: int, normed: Tensor) -> Tensor:
        block: Any = self.blocks[index]
        end = block.output
        inner = block.intermediate(normed)
        # ViLT drops inside the MLP too; transformers' layer leaves that out.
        inner = F.dropout(inner, end.dropout.p, end.dropout.training)
        return end.dropout(end.dense(inner))

    # --- output ---

    def run_pooled(self, hidden: Hidden, start: int = 0, stop: int | None = None) -> Hidden:
        """:meth:`run` up to the pooled token alone: the last block is computed for it only, over all keys and values.

        Exact, and cheaper forward and backward. Modules attached to the last block are called with the pooled token's
        states, so they must treat each token by itself and say so with an attribute ``per_token = True``; where one does
        not, that block is computed whole.

        Returns:
            Hidden with x (B, 1, W) and no prefix.
        """
        stop = self.depth if stop is None else stop
        if stop <= start:
            return self._first(hidden)
        hidden = self.run(hidden, start, stop - 1)
        modules = [module for kind in ("attention", "mlp") for module in self._attached(stop - 1, kind)]
        if not all(getattr(module, "per_token", False) for module in modules):
            return self._first(self.run_block(stop - 1, hidden))
        return self._pooled_block(stop - 1, hidden)

    def _pooled_block(self, index: int, hidden: Hidden) -> Hidden:
        first = self._first(hidden)
        keys = self._normed(index, "attention", hidden.x)
        normed = keys[:, hidden.prefix : hidden.prefix + 1]
        x = self._add(index, "attention", first, normed, self._attention(index, normed, keys, hidden.mask))
        normed = self._normed(index, "mlp", x)
        return first.with_x(self._add(index, "mlp", first.with_x(x), normed, self._mlp(index, normed)))

    def _add(self, index: int, kind: BranchKind, hidden: Hidden, normed: Tensor, out: Tensor) -> Tensor:
        """The residual stream after a branch and what is attached to it."""
        for module in self._attached(index, kind):
            out = module(BranchState(out, hidden.x, normed, hidden))
        return self._joined(index, kind, hidden.x, out)

    def _first(self, hidden: Hidden) -> Hidden:
        """The pooled token alone."""
        return Hidden(hidden.x[:, hidden.prefix : hidden.prefix + 1])

    def finish(self, hidden: Hidden) -> Tensor:
        """(B, N, W) after the final norm."""
        return self.model.layernorm(hidden.x)

    def pool(self, hidden: Hidden) -> Tensor:
        """(B, W) fp32: the pooled token after the final norm, the pooler's linear map and tanh.

        Not under autocast: rounded to bf16, most of a query's scores would tie.
        """
        x = self._first(hidden).x
        with torch.autocast(x.device.type, enabled=False):
            return self.model.pooler(self.model.layernorm(x.float()))

    def pooled(self, inputs: Any) -> Tensor:
        """(B, W) pooled output."""
        return self.pool(self.run_pooled(self.embed(inputs)))

    def linears(self, index: int, kind: BranchKind) -> list[str]:
        """Query, key, value and output projections, or the two layers of the MLP."""
        block = f"{self.prefix}.encoder.layer.{index}"
        if kind == "mlp":
            return [f"{block}.intermediate.dense", f"{block}.output.dense"]
        inner = [f"{block}.attention.attention.{part}" for part in ("query", "key", "value")]
        return [*inner, f"{block}.attention.output.dense"]


VILT_B32: dict[str, Any] = {
    "image_size": 384,
    "patch_size": 32,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 40,
}
"""Sizes of the published ViLT-B/32."""

DROPOUT = 0.1
"""Of states, in training mode only; attention weights are not dropped."""

TRUNK_EPS, TEXT_EPS = 1e-6, 1e-12
"""Of layer norms in ViLT's code; transformers' default is the second everywhere."""


def build_vilt(sizes: dict[str, Any], dropout: float = DROPOUT) -> Any:
    """An untrained ``transformers.ViltModel`` with the constants of ViLT's own code.

    Args:
        sizes: Entries of ``ViltConfig``, such as :data:`VILT_B32`.
        dropout: Of states.
    """
    from transformers import ViltConfig, ViltModel

    model: Any = ViltModel(
        ViltConfig(**sizes, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0, layer_norm_eps=TRUNK_EPS)
    )
    model.embeddings.text_embeddings.LayerNorm.eps = TEXT_EPS
    for table in (model.embeddings.cls_token, model.embeddings.position_embeddings):  # transformers leaves them at zero
        nn.init.trunc_normal_(table, std=model.config.initializer_range)
    return model
