"""A small transformer over the tokens of a picture and of a caption, read at a token of its own: a ViLT in miniature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petlbench.methods.backbones.open_clip_towers import attended
from petlbench.methods.base import States

MLP_RATIO = 4
INIT_STD = 0.02
"""Deviation of the learnt embeddings, as in ViLT. Matrices start by Xavier's rule: with ViLT's 0.02, meant for width 768,
narrow heads hardly learn."""


class FusionLayer(nn.Module):
    """A pre-norm transformer layer, taken apart so that what a token contributes alone is computed for that token once."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)
        self.dropout = nn.Dropout(dropout)

    def packed(self, x: Tensor) -> Tensor:
        """(..., w) tokens to their queries, keys and values, (..., 3 w)."""
        return self.qkv(self.norm_1(x))

    def queries(self, x: Tensor) -> Tensor:
        """(..., w) tokens to their queries, (..., w)."""
        width = x.shape[-1]
        return F.linear(self.norm_1(x), self.qkv.weight[:width], self.qkv.bias[:width])

    def keys_values(self, x: Tensor) -> Tensor:
        """(..., w) tokens to their keys and values, (..., 2 w)."""
        width = x.shape[-1]
        return F.linear(self.norm_1(x), self.qkv.weight[width:], self.qkv.bias[width:])

    def mixed(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, w) states of N tokens after the layer.

        Args:
            x: (B, N, w) their states before it.
            q: (B, N, w) their queries.
            k: (B, M, w) keys of all tokens.
            v: (B, M, w) values of all tokens.
            mask: (B, M) bool, True on tokens that may be attended to; None means all.
        """
        keys = None if mask is None else mask[:, None, None]
        x = x + self.dropout(self.out(attended(q, k, v, self.heads, keys)))
        return x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm_2(x)))))


class FusionHead(nn.Module):
    """Projections, modality types, a learnt class token, layers, final norm, and one number read at the class token.

    There are no positions: the tokens that come in carry theirs. What a token says alone is computed by :meth:`image_tokens`
    and :meth:`text_tokens`, once per picture and per caption: its state and, as the first layer's norm and projections act
    on each token, its queries, keys and values there. :meth:`forward` does the rest for each pair; its last layer is
    computed for the class token only, since nothing else is read. With one layer, hardly anything is left to do per pair.

    Args:
        image_width: Width of the picture tokens that come in.
        text_width: Width of the caption tokens.
        width: Width w of the layers.
        layers: Their number n.
        heads: Attention heads; a divisor of w.
        dropout: On what each branch adds to the residual stream, while training.
        zero_output: Start the output layer at zero, so that every score is 0 at first.
    """

    def __init__(
        self,
        image_width: int,
        text_width: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        zero_output: bool,
    ):
        super().__init__()
        self.image_in = nn.Linear(image_width, width)
        self.text_in = nn.Linear(text_width, width)
        self.types = nn.Parameter(torch.empty(2, width))
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.layers = nn.ModuleList(FusionLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.rank_output = nn.Linear(width, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.types, std=INIT_STD)
        nn.init.normal_(self.cls, std=INIT_STD)
        if zero_output:
            nn.init.zeros_(self.rank_output.weight)

    def image_tokens(self, tokens: Tensor) -> dict[str, Tensor]:
        """(B, N, W) tokens of pictures to what :meth:`forward` needs of them."""
        return self._alone(self.image_in(tokens) + self.types[1])

    def text_tokens(self, tokens: Tensor) -> dict[str, Tensor]:
        """(B, L, W) tokens of captions to what :meth:`forward` needs of them."""
        return self._alone(self.text_in(tokens) + self.types[0])

    def forward(self, image: States, text: States) -> Tensor:
        """(B,) fp32 scores of B pictures, each with its own caption.

        Args:
            image: ``first`` and, with several layers, ``stream``, of :meth:`image_tokens`.
            text: The same of :meth:`text_tokens`, and the captions' (B, L) bool ``mask``.
        """
        mask, rows = self._mask(image, text), len(text["first"])
        alone = {name: value.expand(rows, -1, -1) for name, value in self._alone(self.cls).items()}
        read = torch.cat([alone["first"], text["first"], image["first"]], 1)
        *before, last = self._layers()
        if before:
            x = torch.cat([alone["stream"], text["stream"], image["stream"]], 1)
            for index, layer in enumerate(before):
                q, k, v = (layer.packed(x) if index else read).chunk(3, -1)
                x = layer.mixed(x, q, k, v, mask)
            cls, read = x[:, :1], last.keys_values(x)
        else:
            cls = self.cls.expand(rows, -1, -1)
        k, v = read.chunk(2, -1)
        cls = last.mixed(cls, last.queries(cls), k, v, mask)
        with torch.autocast(cls.device.type, enabled=False):  # bf16 would make ties of close scores
            return self.rank_output(self.norm(cls[:, 0].float())).squeeze(-1)

    def _alone(self, x: Tensor) -> dict[str, Tensor]:
        """What the first layer reads of each token, and the token's state where a later layer reads that too."""
        first = self._layers()[0]
        if len(self.layers) == 1:
            return {"first": first.keys_values(x)}
        return {"first": first.packed(x), "stream": x}

    def _mask(self, image: States, text: States) -> Tensor | None:
        mask = text["mask"]
        if mask.all():
            return None
        rows, patches = image["first"].shape[:2]
        return torch.cat([mask.new_ones(rows, 1), mask, mask.new_ones(rows, patches)], 1)

    def _layers(self) -> list[FusionLayer]:
        return list(self.layers)  # type: ignore[arg-type]


def fusion_size(image_width: int, text_width: int, width: int, layers: int) -> int:
    """Scalars of a :class:`FusionHead` of width w between towers of widths P.

    w (P_image + P_text + 2) for the projections, 3 w for types and class token, 12 w^2 + 13 w per layer, 3 w + 1 for the last
    norm and the output.
    """
    ends = width * (image_width + text_width + 2) + 3 * width + 3 * width + 1
    return ends + layers * (12 * width * width + 13 * width)
