"""Memory that runs out: fewer pairs at a time where the gradient stays that of the whole batch, else advice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from petlbench.harness.distributed.shard import cannot_split, micro_size
from petlbench.harness.distributed.world import World
from petlbench.harness.engine import TrainingError
from petlbench.harness.spec import EngineConfig
from petlbench.methods.base import Method
from petlbench.methods.recipe import Recipe

_WORDS = (
    "can't allocate memory",  # torch's allocator of the CPU
    "not enough memory",  # the same, on some systems
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)


class OutOfMemory(TrainingError):
    """A trial does not fit into memory; the message says what was tried and what to lower."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def fewer_at_once(
    error: Exception, method: Method, recipe: Recipe, rows: int, config: EngineConfig, world: World
) -> int:
    """Pairs to put through the model at once after memory ran out in a training step: half as many as before.

    The batch stays, and its gradient: see :mod:`petlbench.harness.grad_cache`.

    Args:
        error: What the step raised.
        method: The method in training.
        recipe: As the step used it.
        rows: Pairs of a step in this process.
        config: DeepSpeed's settings.
        world: The processes of the trial.

    Raises:
        OutOfMemory: From ``error``: the batch cannot be cut, or is cut to single pairs already.
    """
    now = micro_size(recipe, rows)
    if now == 1:
        reason = "a single pair at a time is too much"
    elif world.size > 1:
        reason = "among several workers the batch is not cut by itself"
    elif config.zero_stage == 3:
        reason = "under ZeRO 3 the batch is not cut by itself"
    elif cannot := cannot_split(type(method), cut(recipe, now // 2), 1):
        reason = cannot
    else:
        return now // 2
    raise OutOfMemory(
        f"out of memory with {now} of {rows} pairs at a time, and {reason}. {_advice(recipe, now, world)} ({_first(error)})"
    ) from error


def cut(recipe: Recipe, micro: int) -> Recipe:
    """The recipe with another number of pairs at a time; the batch stays."""
    return recipe.model_copy(update={"accumulate": 1, "grad_cache": micro})


def halved_note(error: BaseException, before: int, after: int, rows: int, epoch: int) -> str:
    """What the record says of it."""
    return (
        f"out of memory in epoch {epoch} with {before} pairs at a time ({_first(error)}); from this epoch on {after} at a "
        f"time, with the gradient of the whole batch of {rows}: peak memory is that of {after} at a time"
    )


@contextmanager
def memory_advice(recipe: Recipe) -> Iterator[None]:
    """Within this block, memory that runs out outside of training steps is told with advice.

    Raises:
        OutOfMemory: From the allocator's error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        advice = _advice(recipe, 1, World())
        raise OutOfMemory(f"out of memory outside of the training steps. {advice} ({_first(error)})") from error


def _advice(recipe: Recipe, micro: int, world: World) -> str:
    """What to lower."""
    ways = []
    if micro > 1 and world.size > 1:
        ways.append(f"set train.grad_cache={micro // 2}")
    if micro > 1:
        ways.append(f"lower train.batch_size (now {recipe.batch_size}; another batch is another result)")
    if recipe.precision == "fp32":
        ways.append("set train.precision=bf16")
    ways.append("run fewer trials at a time (--jobs, --gpus-per-trial 1)")
    ways.append("take a smaller backbone or resolution")
    ways.append("divide weights and optimiser (engine.zero_stage, engine.offload)")
    return f"What can help: {'; '.join(ways)}."


def _first(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}" if text else type(error).__name__
