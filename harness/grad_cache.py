"""Large contrastive batches in small pieces, with the gradient of the whole (GradCache, Gao et al. 2021).

The gradient of a loss L(v(x_1), ..., v(x_B)) of row-wise views v is sum_i <dL/dv_i, dv_i/dp>: once the B vectors dL/dv_i are
known, each piece of the batch can go through the model by itself. So a step has three parts: views of every piece without a
graph, the loss on all of them, and every piece again with a graph, under the same random numbers. The same cut serves
several processes: each computes the views of its own rows, all know the views of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from petlbench.methods.base import Batch, Method

Views = tuple[Tensor, ...]


@dataclass(frozen=True)
class Judged:
    """What the loss of a whole batch says.

    Attributes:
        parts: The named terms, outside the graph.
        of_views: (B, ...) gradients of their sum with respect to each of the views.
        of_parameters: By name, gradients of what :meth:`Method.compare` itself reads, such as the temperature.
    """

    parts: dict[str, Tensor]
    of_views: Views
    of_parameters: dict[str, Tensor]


def judge(
    method: Method, model: nn.Module, batch: Batch, views: Sequence[Tensor], parameters: Mapping[str, Tensor]
) -> Judged:
    """The loss of a whole batch and its gradients.

    Args:
        method: Gives the loss.
        model: What it reads its temperature from.
        batch: Ids and labels of the B rows.
        views: As :meth:`Method.views` gives them, for all B rows; no graph is needed.
        parameters: By name, all that is trained.
    """
    with torch.enable_grad():
        leaves = [view.detach().requires_grad_() for view in views]
        parts = method.compare(model, batch, *leaves)
        total = torch.stack([value.float() for value in parts.values()]).sum()
        found = torch.autograd.grad(total, [*leaves, *parameters.values()], allow_unused=True)
    of_views = tuple(
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, found[: len(leaves)], strict=True)
    )
    read = {name: g for name, g in zip(parameters, found[len(leaves) :], strict=True) if g is not None}
    return Judged({name: value.detach() for name, value in parts.items()}, of_views, read)


def surrogate(
    model: nn.Module,
    views: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weight: float,
    of_parameters: Mapping[str, Tensor],
) -> Tensor:
    """A scalar whose gradient is that of the whole batch's loss through these views, and through the temperature.

    Args:
        model: Holds the parameters that :attr:`Judged.of_parameters` names.
        views: Of a piece of the batch, with their graph.
        gradients: dL/dv of the same rows.
        weight: Of the views' part; undoes a mean over pieces or processes, where the loss sums over them.
        of_parameters: They are the same for every piece, so a mean leaves them as they are.
    """
    terms = [weight * (view.float() * g.float()).sum() for view, g in zip(views, gradients, strict=True)]
    terms += [(model.get_parameter(name) * g).sum() for name, g in of_parameters.items()]
    return torch.stack(terms).sum()


@dataclass(frozen=True)
class RandomState:
    """The state of torch's generators on the CPU and on a device, from which a forward pass can be repeated."""

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @classmethod
    def of(cls, device: torch.device) -> RandomState:
        """The present one."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, device)

    def restore(self) -> None:
        """Go back to it."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


@contextmanager
def same_chance(seed: int | None, device: torch.device) -> Iterator[None]:
    """Within this block chance depends on ``seed`` alone, so that all processes draw alike; None changes nothing."""
    if seed is None:
        yield
        return
    before = RandomState.of(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        before.restore()
