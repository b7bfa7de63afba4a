"""Bottleneck adapters of which two modalities share a slice of the up-projection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petlbench.methods.backbones.base import BranchKind, BranchState, DualEncoder, Tower
from petlbench.methods.layers.bottleneck import ACTIVATIONS

Activation = Literal["relu", "gelu", "quick_gelu"]
Initialiser = Callable[[Tensor], object]


class AdapterShape(NamedTuple):
    """What all adapters of one model have in common."""

    bottleneck: int
    """Width r of the bottleneck."""
    shared: int
    """Width s of the shared slice: the last s output channels of both modalities."""
    activation: Activation
    dropout: float
    """On the bottleneck, while training."""
    reads: Literal["out", "residual"]
    """``out``: sequential, the adapter reads what the branch is about to add. ``residual``: parallel to the branch."""
    scale: float


class SharedSliceAdapter(nn.Module):
    """``out + scale * up(dropout(act(down(x))))`` for one modality of width W.

    The up-projection has W - s rows of its own and s rows that belong to another module as well (the last channels), as in
    Jiang et al., Cross-Modal Adapter, and in Yuan et al. 2023 (PE-RSITR). All linear maps have a bias.

    Args:
        width: Width W of the token states.
        shape: Bottleneck, activation, dropout and place.
        shared: The linear map r -> s that the modalities share; None where s is 0.
        down: Initialises the weight of the down-projection; biases start at 0.
        up: Initialises the weight of the modality's own up-projection.
    """

    def __init__(self, width: int, shape: AdapterShape, shared: nn.Linear | None, down: Initialiser, up: Initialiser):
        super().__init__()
        self.shape = shape
        self.down = linear(width, shape.bottleneck, down)
        own = width - (0 if shared is None else shared.out_features)
        # A tower as narrow as the slice has no channels of its own; an empty layer would be trained without a gradient.
        self.up = linear(shape.bottleneck, own, up) if own else None
        self.shared = shared

    def forward(self, state: BranchState) -> Tensor:
        """The branch's new contribution, (B, N, W)."""
        read = state.residual if self.shape.reads == "residual" else state.out
        inner = ACTIVATIONS[self.shape.activation](self.down(read))
        inner = F.dropout(inner, self.shape.dropout, self.training)
        layers = [layer for layer in (self.up, self.shared) if layer is not None]
        # Joining the rows of the weights costs less than joining the channels of all tokens.
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        return torch.add(state.out, F.linear(inner, weight, bias), alpha=self.shape.scale)


class Position(NamedTuple):
    """One place that has adapter weights of its own; both modalities meet there."""

    block: int
    """Counted from 0; 0 for adapters that serve every block."""
    kind: BranchKind


def linear(inputs: int, outputs: int, init: Initialiser) -> nn.Linear:
    """A linear layer with ``init`` applied to its weight and a zero bias."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    init(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def kaiming_uniform(weight: Tensor) -> None:
    """Uniform in +-1 / sqrt(fan in)."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


def slice_width(backbone: DualEncoder, shared: int) -> int:
    """Width of the shared slice on this backbone: ``shared``, cut to the width of the narrower tower."""
    return min(shared, backbone.image.width, backbone.text.width)


def attach_shared_slice(
    backbone: DualEncoder,
    shape: AdapterShape,
    kinds: Sequence[BranchKind],
    per_layer: bool,
    down: Initialiser,
    up: Initialiser,
) -> None:
    """Attach one adapter per modality and position, the shared slice being one module for both modalities.

    Args:
        backbone: Changed in place.
        shape: Its ``shared`` must not exceed the narrower tower (:func:`slice_width`).
        kinds: Branches that get an adapter.
        per_layer: True: each block and branch has its own, and image block i shares its slice with text block i; the blocks
            that the deeper tower has beyond the other keep their slice for themselves. False: one adapter per modality,
            and one slice, serve every block and branch.
        down: Initialises the weights of down-projections.
        up: Initialises the weights of up-projections, shared slices included.
    """
    slices: dict[Position, nn.Linear | None] = {}
    for tower in _towers(backbone):
        adapters: dict[Position, SharedSliceAdapter] = {}
        for index in range(tower.depth):
            for kind in kinds:
                position = Position(index, kind) if per_layer else Position(0, "mlp")
                if position not in slices:
                    slices[position] = linear(shape.bottleneck, shape.shared, up) if shape.shared else None
                if position not in adapters:
                    adapters[position] = SharedSliceAdapter(tower.width, shape, slices[position], down, up)
                tower.attach(index, kind, adapters[position])


def attached_adapter(tower: Tower, index: int, kind: BranchKind) -> SharedSliceAdapter:
    """The adapter that :func:`attach_shared_slice` put on a branch.

    Raises:
        LookupError: There is none.
    """
    for module in getattr(tower.blocks[index], f"attached_{kind}", ()):
        if isinstance(module, SharedSliceAdapter):
            return module
    raise LookupError(f"block {index} of the {tower.modality} tower has no shared-slice adapter on its {kind}")


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters' parameters, each once."""
    adapters = {id(p) for m in model.modules() if isinstance(m, SharedSliceAdapter) for p in m.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in adapters]


def trainable_count(backbone: DualEncoder, bottleneck: int, shared: int, branches: int, per_layer: bool) -> int:
    """Closed form of the number of scalars in the adapters.

    A modality's own part is r W + r + (r + 1) (W - s), a slice is (r + 1) s. With ``per_layer``, the former count times
    the tower's depth and the latter times the deeper tower's, and all of it times ``branches``.
    """
    own = [bottleneck * t.width + bottleneck + (bottleneck + 1) * (t.width - shared) for t in _towers(backbone)]
    depths = [t.depth for t in _towers(backbone)]
    one_slice = (bottleneck + 1) * shared
    if not per_layer:
        return sum(own) + one_slice
    return branches * (sum(n * d for n, d in zip(own, depths, strict=True)) + max(depths) * one_slice)


def _towers(backbone: DualEncoder) -> tuple[Tower, Tower]:
    return backbone.image, backbone.text
