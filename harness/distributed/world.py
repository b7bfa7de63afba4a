"""The processes that train one trial together, and what they tell each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=30)
"""How long a worker waits for another. Workers wait while the first one validates, which takes hours where pairs are scored;
a worker that died is noticed by Ray, not by this."""


@dataclass(frozen=True)
class World:
    """The place of this process among the W that train a trial.

    Attributes:
        rank: 0 to W - 1; rank 0 validates, reports and writes.
        size: W; 1 is the usual case, in which nothing is communicated.
        waiting: A group over the network of the CPUs, on which waiting for hours costs nothing; None where W is 1.
    """

    rank: int = 0
    size: int = 1
    waiting: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def gathered(self, value: Tensor) -> Tensor:
        """(W B, ...) rows of all processes, in order of rank, of each one's (B, ...); outside the graph."""
        if self.size == 1:
            return value.detach()
        value = value.detach().contiguous()
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value)
        return torch.cat(parts)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over processes, outside the graph."""
        value = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def told(self, value: float | None) -> float | None:
        """What rank 0 says, a number or None; others wait for it, their own value is ignored."""
        if self.size == 1:
            return value
        said = torch.tensor([value is not None, value or 0.0], dtype=torch.float64)
        dist.broadcast(said, 0, group=self.waiting)
        return float(said[1]) if said[0] else None

    def told_text(self, text: str | None) -> str | None:
        """The same for a short text."""
        if self.size == 1:
            return text
        length = self.told(None if text is None else len(text.encode()))
        if length is None:
            return None
        coded = torch.zeros(int(length), dtype=torch.uint8)
        if self.first and text:
            coded = torch.tensor(list(text.encode()), dtype=torch.uint8)
        if len(coded):
            dist.broadcast(coded, 0, group=self.waiting)
        return bytes(coded.tolist()).decode()

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            dist.barrier(group=self.waiting)


ALONE = World()
_here = ALONE


def here() -> World:
    """The world of this process: itself alone, unless it :func:`join` ed others."""
    return _here


@contextmanager
def join() -> Iterator[World]:
    """Within this block the process is one of those of torch's process group, which must exist."""
    global _here
    waiting = dist.new_group(backend="gloo", timeout=PATIENCE)
    _here = World(dist.get_rank(), dist.get_world_size(), waiting)
    try:
        yield _here
    finally:
        _here = ALONE
