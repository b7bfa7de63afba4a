"""One optimiser step whose batch is divided: among processes, among pieces that go through the model in turn, or both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from petlbench.harness.distributed.gather import gathered_ids
from petlbench.harness.distributed.shard import micro_size, rows_of
from petlbench.harness.distributed.world import World
from petlbench.harness.grad_cache import Judged, RandomState, Views, judge, same_chance, surrogate
from petlbench.methods.base import Batch, Method
from petlbench.methods.recipe import Recipe

Work = Callable[[nn.Module], Any]


class Passes(Protocol):
    """What a step needs of the engine."""

    def run(self, work: Work, *, aside: bool = False) -> Any:
        """What ``work`` makes of the model; ``aside`` of the passes whose gradients are taken."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Take gradients; with the ``last`` ones of a step, update."""

    def checked(self, parts: dict[str, Tensor]) -> dict[str, float]:
        """The losses and their sum ``loss`` as numbers; raises where one is not finite."""


@dataclass(frozen=True)
class DividedStep:
    """How a step is divided, and what it computes.

    Attributes:
        method: Gives views and loss.
        trainable: Names of what is trained.
        world: The processes.
        device: Where the model lies.
        rows: Pairs per step in this process.
        micro: Pairs that go through the model at once.
        seed: Of what is random in the loss.
        bf16: Whether passes aside of the engine's own need autocasting.
    """

    method: Method
    trainable: list[str]
    world: World
    device: torch.device
    rows: int
    micro: int
    seed: int
    bf16: bool

    @classmethod
    def of(
        cls,
        method: Method,
        trainable: list[str],
        recipe: Recipe,
        rows: int,
        seed: int,
        world: World,
        device: torch.device,
    ) -> DividedStep:
        """As the recipe asks."""
        bf16 = recipe.precision == "bf16"
        return cls(method, trainable, world, device, rows, micro_size(recipe, rows), seed, bf16)

    @property
    def pieces(self) -> int:
        """Times that the model is run per step in this process."""
        return math.ceil(self.rows / self.micro)

    @property
    def divided(self) -> bool:
        """False where there is one process and one piece."""
        return self.world.size > 1 or self.pieces > 1

    def __call__(self, engine: Passes, batch: Batch, step: int) -> dict[str, float]:
        """Gradients and update of step number ``step``, of which ``batch`` is this process's part.

        Returns:
            The losses of the whole batch, and their sum as ``loss``.
        """
        assert len(batch) == self.rows, f"a step has {self.rows} pairs per process, found {len(batch)}"
        cuts = [(start, min(start + self.micro, self.rows)) for start in range(0, self.rows, self.micro)]
        whole = self._by_row if self.method.splits_by_row else self._all_against_all
        return whole(engine, batch, cuts, step)

    def _by_row(self, engine: Passes, batch: Batch, cuts: list[tuple[int, int]], step: int) -> dict[str, float]:
        """The loss is a mean over rows: each piece has its share of it, and DeepSpeed takes the mean over pieces."""
        sums: dict[str, Tensor] = {}
        values: dict[str, float] = {}
        for index, cut in enumerate(cuts):
            piece, part = rows_of(batch, *cut), (cut[1] - cut[0]) / self.rows
            parts = engine.run(partial(self.method.loss, batch=piece))
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + part * value.detach().float()
            if last := index + 1 == len(cuts):
                values = engine.checked({name: self.world.mean(value) for name, value in sums.items()})
            engine.backward(len(cuts) * part * torch.stack([v.float() for v in parts.values()]).sum(), last=last)
        return values

    def _all_against_all(
        self, engine: Passes, batch: Batch, cuts: list[tuple[int, int]], step: int
    ) -> dict[str, float]:
        """The loss compares all rows of all processes: views first, then the loss, then gradients through the views."""
        states: list[RandomState] = []
        if len(cuts) > 1:
            views: list[Views] = []
            for cut in cuts:
                states.append(RandomState.of(self.device))
                with torch.no_grad(), self._autocast():
                    views.append(engine.run(partial(self.method.views, batch=rows_of(batch, *cut)), aside=True))
            whole = tuple(torch.cat(parts) for parts in zip(*views, strict=True))
            judged = engine.run(lambda model: self._judged(model, batch, whole, step), aside=True)
            after = RandomState.of(self.device)
        # DeepSpeed takes the mean over processes and pieces, but the loss sums over what each contributes.
        weight, mine = self.world.size * len(cuts), self.world.rank * self.rows
        values: dict[str, float] = {}
        for index, cut in enumerate(cuts):

            def work(model: nn.Module, cut: tuple[int, int] = cut) -> tuple[Judged, Tensor]:
                views = self.method.views(model, rows_of(batch, *cut))
                said = judged if states else self._judged(model, batch, views, step)
                gradients = [g[mine + cut[0] : mine + cut[1]] for g in said.of_views]
                return said, surrogate(model, views, gradients, weight, said.of_parameters)

            if states:
                states[index].restore()
            said, stand_in = engine.run(work)
            values = values or engine.checked(said.parts)
            engine.backward(stand_in, last=index + 1 == len(cuts))
        if states:
            after.restore()
        return values

    def _judged(self, model: nn.Module, batch: Batch, views: Views, step: int) -> Judged:
        """The loss of the whole batch, of which ``batch`` and ``views`` are this process's rows."""
        named = dict(model.named_parameters())
        # Where the loss itself draws (CUP), every process must draw the same.
        seed = None if self.world.size == 1 else self.seed * 1_000_003 + step
        with same_chance(seed, self.device), self._autocast():
            return judge(
                self.method,
                model,
                gathered_ids(batch, self.world),
                [self.world.gathered(view) for view in views],
                {name: named[name] for name in self.trainable},
            )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
