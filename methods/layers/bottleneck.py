"""Bottleneck adapters, and where they are attached: at every block, or one for all blocks of a tower."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petlbench.methods.backbones.base import BranchKind, BranchState, DualEncoder, Tower

Activation = Literal["relu", "gelu", "gelu_tanh", "quick_gelu", "silu"]
Sharing = Literal["all", "layer"]
Towers = Literal["image", "text", "both"]


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's sigmoid approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}


class BottleneckAdapter(nn.Module):
    """``out + scale * up(dropout(act(down(norm(read)))))`` on states of width W; all linear maps have a bias.

    Args:
        width: Width W of the token states.
        bottleneck: Width r between the two maps.
        reads: ``out``: serial, it reads what the branch is about to add. ``residual``: parallel to the branch.
        activation: Between the two maps.
        dropout: On the bottleneck, while training.
        scale: Constant factor of what is added.
        down: The down-projection W -> r, where it is shared with another adapter; None makes one.
        norm: Applied to what is read; None reads it as it is.

    The layers keep torch's initial values; the method sets its own.
    """

    per_token = True
    """What it adds to a token depends on that token only, so a tower may call it with some of them."""

    def __init__(
        self,
        width: int,
        bottleneck: int,
        *,
        reads: Literal["out", "residual"],
        activation: Activation = "relu",
        dropout: float = 0.0,
        scale: float = 1.0,
        down: nn.Module | None = None,
        norm: nn.Module | None = None,
    ):
        super().__init__()
        self.reads = reads
        self.activation: Activation = activation
        self.dropout = dropout
        self.scale = scale
        self.norm = norm
        self.down = nn.Linear(width, bottleneck) if down is None else down
        self.up = nn.Linear(bottleneck, width)

    def forward(self, state: BranchState) -> Tensor:
        """The branch's new contribution, (B, N, W)."""
        read = state.out if self.reads == "out" else state.residual
        if self.norm is not None:
            read = self.norm(read)
        inner = ACTIVATIONS[self.activation](self.down(read))
        inner = F.dropout(inner, self.dropout, self.training)
        return torch.add(state.out, self.up(inner), alpha=self.scale)


def start_as_lora(down: nn.Module, up: nn.Linear) -> None:
    """Down uniform in +-1 / sqrt(fan in), up and biases zero: adds nothing at first, and only ``up`` learns in step 1."""
    assert isinstance(down, nn.Linear)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    for zero in (down.bias, up.weight, up.bias):
        nn.init.zeros_(zero)


def chosen_towers(backbone: DualEncoder, towers: Towers) -> list[Tower]:
    """The towers that a setting names, image first."""
    return [t for t in (backbone.image, backbone.text) if towers in (t.modality, "both")]


def attach_to(tower: Tower, kinds: Iterable[BranchKind], sharing: Sharing, make: Callable[[], nn.Module]) -> None:
    """Attach a module to the given branches of every block.

    Args:
        tower: Changed in place.
        kinds: Branches that get one.
        sharing: ``layer``: each branch of each block its own. ``all``: one module in all these places.
        make: Makes one.
    """
    kinds = tuple(kinds)
    common = make() if sharing == "all" else None
    for index in range(tower.depth):
        for kind in kinds:
            tower.attach(index, kind, make() if common is None else common)


def modules_in(tower: Tower, kinds: int, sharing: Sharing) -> int:
    """How many modules :func:`attach_to` makes for ``kinds`` branches per block."""
    return 1 if sharing == "all" else kinds * tower.depth


def attached_names(model: nn.Module) -> list[str]:
    """Names of all parameters that were attached to blocks."""
    return [name for name, _ in model.named_parameters() if ".attached_" in f".{name}"]


def attached_paths(model: nn.Module, tower: Tower, kind: BranchKind) -> list[str]:
    """Name in ``model`` of the first module attached to a branch, block by block; a shared module has one name only."""
    names = {module: name for name, module in model.named_modules()}
    return [names[next(block.get_submodule(f"attached_{kind}").children())] for block in tower.blocks]


def bottleneck_size(width: int, bottleneck: int) -> int:
    """Scalars of a pair of linear maps with bias, W -> r -> W: 2 W r + r + W."""
    return 2 * width * bottleneck + bottleneck + width
