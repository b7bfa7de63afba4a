"""Which rows of a batch a process computes, and what cannot be divided."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petlbench.harness.distributed.world import World
    from petlbench.methods.base import Batch, Method
    from petlbench.methods.recipe import Recipe


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """Rows ``start`` to ``stop``; a field with n rows per pair (candidates of a picture) gives n times as many."""
    size = len(batch)

    def cut(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Mapping):
            return {name: cut(inner) for name, inner in value.items()}
        each = len(value) // size
        return value[start * each : stop * each]

    return type(batch)(**{f.name: cut(getattr(batch, f.name)) for f in fields(batch)})


def share(count: int, world: World) -> tuple[int, int]:
    """First and last but one of the rows of this process: blocks of equal size, in order of rank.

    Raises:
        ValueError: W does not divide the rows.
    """
    if count % world.size:
        raise ValueError(f"a batch of {count} pairs cannot be divided among {world.size} workers")
    each = count // world.size
    return world.rank * each, (world.rank + 1) * each


def own_rows(make: Callable[[Any], Batch], rows: Any, *, drawn: bool, world: World) -> Batch:
    """This process's part of a batch.

    Args:
        make: Gathers the pairs of given captions.
        rows: Captions of the whole batch.
        drawn: Whether ``make`` draws anything (augmentation, false captions). Then it gathers the whole batch, of which a part
            is taken, so that what befalls a pair does not depend on the number of processes.
        world: Of the trial.
    """
    if world.size == 1:
        return make(rows)
    first, last = share(len(rows), world)
    return rows_of(make(rows), first, last) if drawn else make(rows[first:last])


def micro_size(recipe: Recipe, rows: int) -> int:
    """Rows that go through the model at once, of the ``rows`` that a process has per step."""
    if recipe.grad_cache is not None:
        return min(rows, recipe.grad_cache)
    return math.ceil(rows / recipe.accumulate)


def indivisible(recipe: Recipe, pairs: int, workers: int) -> str | None:
    """Why a batch cannot be divided in equal parts, with the way out; None where it can.

    Args:
        recipe: Gives batch size and accumulation.
        pairs: What an epoch visits; fewer than the batch size make one small batch.
        workers: Processes per trial.
    """
    size = min(recipe.batch_size, pairs)
    pieces = workers * recipe.accumulate
    if size % pieces == 0:
        return None
    named = f"{workers} workers" if workers > 1 else ""
    if recipe.accumulate > 1:
        named += f"{' x ' if named else ''}train.accumulate={recipe.accumulate}"
    small = f" (an epoch has only {pairs:,})" if pairs < recipe.batch_size else ""
    better = max(pieces, size // pieces * pieces)
    return (
        f"a batch of {size:,} pairs{small} cannot be divided by {named}; the gradient would not be that of the whole batch. "
        f"Set train.batch_size to a multiple of {pieces}, such as {better}"
    )


def cannot_split(method: type[Method], recipe: Recipe, workers: int) -> str | None:
    """Why a method trains in one process and in one piece only; None where it need not."""
    from petlbench.methods.base import Method

    if workers == 1 and recipe.accumulate == 1 and recipe.grad_cache is None:
        return None
    if not method.trains or method.splits_by_row or method.loss is Method.loss:
        return None
    asked = f"resources.workers_per_trial={workers}" if workers > 1 else "train.accumulate and train.grad_cache"
    return (
        f"its loss() compares the rows of a batch in its own way, so that a batch cannot be divided ({asked}); write it as "
        "views() and compare(), or declare splits_by_row where no row looks at another"
    )
