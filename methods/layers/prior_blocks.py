"""The attention blocks of PIR (Pan et al., ACM MM 2023): tokens filtered and queried by a prior, words read in cycles.

Both heads return what is added to a pooled embedding before it is normalised; widths, steps and sharing are free, so that
the same blocks serve the original form and small heads on a frozen encoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Multi-head attention with biased projections; keys and values are projected in one product.

    Args:
        width: Width d of queries, keys, values and output.
        heads: Number of heads; must divide ``width``.
        dropout: Of the attention weights, in training.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}; choose a divisor")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.merge = nn.Linear(width, width)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, Q, d) queries over (B, N, d) memory to (B, Q, d).

        Args:
            query: What asks.
            memory: What is asked.
            mask: (B, N) bool, True where memory may be attended to; None means everywhere.
        """
        q = self.query(query).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        visible = None if mask is None else mask[:, None, None]
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)
        return self.merge(mixed.transpose(1, 2).flatten(2))


class PostNormBlock(nn.Module):
    """``x = norm(x + attention(query, memory))``, then ``norm(x + ffn(x))``: 8 d^2 + 15 d parameters.

    The feed-forward part widens two-fold and has a norm of its own before the activation. In PIR's cross-attention the
    conditioning signal gives the queries only; residual stream, keys and values are the sequence itself.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention = CrossAttention(width, heads, dropout)
        self.ffn = nn.Sequential(
            nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, query: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, Q, d) residual stream to (B, Q, d).

        Args:
            x: Residual stream.
            query: (B, Q, d), or (B, 1, d) for one query that all Q rows share.
            memory: (B, N, d) keys and values.
            mask: (B, N) bool over the memory.
        """
        x = self.norm1(x + self.dropout(self.attention(query, memory, mask).expand_as(x)))
        return self.norm2(x + self.dropout(self.ffn(x)))


class _Step(nn.Module):
    """Self-attention, then cross-attention queried by a mapped signal: 17 d^2 + 31 d parameters."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.mapping = nn.Linear(width, width)
        self.own = PostNormBlock(width, heads, dropout)
        self.cross = PostNormBlock(width, heads, dropout)


class _ResidualHead(nn.Module):
    """What both heads share: steps, and the way into a narrower width and back."""

    def __init__(
        self, width: int, steps: int, heads: int, dropout: float, bottleneck: int | None, share: bool, zero: bool
    ):
        super().__init__()
        inner = width if bottleneck is None else bottleneck
        self.down = nn.Identity() if bottleneck is None else nn.Linear(width, inner)
        self.steps = nn.ModuleList([_Step(inner, heads, dropout) for _ in range(1 if share else steps)])
        self.head = nn.Linear(inner, width)
        self.cycles = steps
        self.inner = inner
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def step(self, index: int) -> _Step:
        """The step of a cycle; every cycle has the same one where steps are shared."""
        found = self.steps[index % len(self.steps)]
        assert isinstance(found, _Step)
        return found


class PriorReadout(_ResidualHead):
    """VIR, or Spatial-PAE: the tokens that a prior believes in, attended to under its guidance.

    Tokens are ordered by their product with the prior and the first share of them is kept. In each step they attend to
    each other, then one query made from the prior attends over them and its answer is added to all of them. What is read
    out is the token with the highest belief. No gradient flows through the order.

    Args:
        width: Width W of the tokens.
        prior_width: Width P of the prior.
        steps: Number of steps.
        heads: Attention heads.
        dropout: In attention and residual branches.
        keep: Share of the tokens that is kept (40 of 50 in PIR).
        bottleneck: Width d of the blocks; None works at W, without projections down and up.
        share: Use one step's weights for all steps.
        zero: Start the output head at zero, so that nothing is added at first.
        belief: ``dot``: plain products, as in PIR. ``cosine``: long tokens get no advantage.
    """

    def __init__(
        self,
        width: int,
        prior_width: int,
        steps: int = 2,
        heads: int = 8,
        dropout: float = 0.2,
        keep: float = 0.8,
        bottleneck: int | None = None,
        share: bool = False,
        zero: bool = False,
        belief: str = "dot",
    ):
        super().__init__(width, steps, heads, dropout, bottleneck, share, zero)
        self.prior = nn.Linear(prior_width, self.inner)
        self.keep = keep
        self.belief = belief

    def forward(self, tokens: Tensor, prior: Tensor) -> Tensor:
        """(B, N, W) tokens and the (B, P) prior to (B, W), to be added to the pooled embedding."""
        tokens, prior = self.down(tokens), self.prior(prior)[:, None]
        x = torch.gather(tokens, 1, self.order(tokens, prior)[..., None].expand(-1, -1, tokens.shape[-1]))
        for index in range(self.cycles):
            step = self.step(index)
            y = step.own(x, x, x)
            last = index == self.cycles - 1  # nothing reads the other tokens after it
            x = step.cross(y[:, :1] if last else y, step.mapping(prior), y)
        return self.head(x[:, 0])

    @torch.no_grad()
    def order(self, tokens: Tensor, prior: Tensor) -> Tensor:
        """(B, K) positions of the tokens that are kept, highest belief first.

        The softmax of the paper keeps the order, so it is not taken: where it would underflow, tokens would tie.
        """
        if self.belief == "cosine":
            tokens = F.normalize(tokens, dim=-1)
        scores = (tokens * prior).sum(-1)
        return scores.topk(max(1, round(self.keep * scores.shape[1])), dim=1).indices


class CyclicReadout(_ResidualHead):
    """LCA, or Temporal-PAE: in each cycle the state before self-attention queries the state after it.

    Args:
        width: Width W of the tokens.
        steps: Number of cycles.
        heads: Attention heads.
        dropout: In attention and residual branches.
        bottleneck: Width d of the blocks; None works at W.
        share: Use one cycle's weights for all.
        zero: Start the output head at zero.
    """

    def __init__(
        self,
        width: int,
        steps: int = 3,
        heads: int = 8,
        dropout: float = 0.2,
        bottleneck: int | None = None,
        share: bool = False,
        zero: bool = False,
    ):
        super().__init__(width, steps, heads, dropout, bottleneck, share, zero)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, read_at: Tensor | None = None) -> Tensor:
        """(B, N, W) tokens to (B, W), to be added to the pooled embedding.

        Args:
            tokens: Token states.
            mask: (B, N) bool, True on real tokens; None attends to padding too, as the released code does.
            read_at: (B,) position that is read out; None reads the first.
        """
        x = self.down(tokens)
        for index in range(self.cycles):
            step = self.step(index)
            y = step.own(x, x, x, mask)
            if index < self.cycles - 1:
                x = step.cross(y, step.mapping(x), y, mask)
            else:
                x = step.cross(_row(y, read_at), step.mapping(_row(x, read_at)), y, mask)
        return self.head(x[:, 0])


def _row(x: Tensor, at: Tensor | None) -> Tensor:
    """(B, N, d) to the (B, 1, d) state at a position of each row."""
    return x[:, :1] if at is None else x[torch.arange(len(x), device=x.device), at][:, None]


def step_size(width: int) -> int:
    """Parameters of one step at inner width d: 17 d^2 + 31 d."""
    return 17 * width * width + 31 * width


def head_size(width: int, steps: int, bottleneck: int | None = None, share: bool = False, prior_width: int = 0) -> int:
    """Parameters of :class:`CyclicReadout`, or with a prior's width of :class:`PriorReadout`."""
    inner = width if bottleneck is None else bottleneck
    down = 0 if bottleneck is None else width * inner + inner
    prior = prior_width * inner + inner if prior_width else 0
    return (1 if share else steps) * step_size(inner) + down + prior + inner * width + width
