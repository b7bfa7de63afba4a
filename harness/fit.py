"""The training loop: batches, steps, validation each epoch, the best weights kept, fewer pairs at a time where memory ends."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.datasets.split import Split
from petlbench.harness import metrics
from petlbench.harness.checkpoint import Checkpoints, Progress
from petlbench.harness.data import SplitData, epoch_order, training_batches
from petlbench.harness.device import peak_memory, reset_peak_memory
from petlbench.harness.distributed.shard import micro_size, share
from petlbench.harness.distributed.world import here
from petlbench.harness.engine import Engine
from petlbench.harness.evaluate import MAIN_RULE
from petlbench.harness.false_captions import FalseCaptions
from petlbench.harness.kept import Kept
from petlbench.harness.metrics import Ranks
from petlbench.harness.oom import cut, fewer_at_once, halved_note, is_out_of_memory
from petlbench.harness.spec import TrialSpec
from petlbench.methods.backbones.base import Backbone
from petlbench.methods.base import Method
from petlbench.methods.pair import PairMethod
from petlbench.methods.recipe import Recipe

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Task:
    """What is trained, on what, and who hears of it.

    Attributes:
        spec: Gives seed, engine and selection rule.
        method: Gives the loss and the encoders.
        model: What ``method.build`` returned, frozen except for ``trainable``.
        backbone: The backbone that gives resolution, normalisation and trimming.
        trainable: Names of all trained parameters, new joining heads included.
        new_heads: The joining heads among them.
        train: The training split.
        kept: Outputs of frozen modules for it, which augmentation does not change.
        validate: Ranks the split that selects, with the model as it is. The test split never comes here.
        checkpoints: Where epochs are saved; training goes on from the newest one there.
        report: Called after every epoch.
        device: Where the model lies.
    """

    spec: TrialSpec
    method: Method
    model: nn.Module
    backbone: Backbone
    trainable: list[str]
    new_heads: set[str]
    train: SplitData
    kept: Kept
    validate: Callable[[], Ranks]
    checkpoints: Checkpoints
    report: Report
    device: torch.device


def fit(task: Task, recipe: Recipe) -> Progress:
    """Train; on return the model holds the selected weights.

    Args:
        task: What to train.
        recipe: Optimiser, schedule, batch, epochs.

    Raises:
        TrainingError: The loss is not finite, or a checkpoint does not fit.
        OutOfMemory: A step does not fit into memory, however few pairs go through the model at once.
    """
    model = task.model
    initial = _copies(model, task.trainable)
    if here().size == 1 and (earlier := task.checkpoints.progress()) is not None and earlier.workers == 1:
        recipe = _cut_to(recipe, earlier.micro_batch)
    while True:
        try:
            return _epochs(task, recipe, initial)
        except _TooMuch as told:
            recipe = told.recipe
        # Outside of the except clause: the error's frames hold the tensors of the failed step.
        gc.collect()
        if task.device.type == "cuda":
            torch.cuda.empty_cache()
        load_trained(model, initial)  # where there is no checkpoint yet


class _TooMuch(Exception):
    """A step ran out of memory; ``recipe`` has fewer pairs at a time."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe = recipe


def _epochs(task: Task, recipe: Recipe, initial: dict[str, Tensor]) -> Progress:
    """The epochs that are left, from the newest checkpoint on.

    ``initial`` holds what is trained, before training; it is emptied as soon as there is a checkpoint to go back to.

    Raises:
        _TooMuch: Memory ran out in a step.
    """
    spec, model, checkpoints, device = task.spec, task.model, task.checkpoints, task.device
    batches = epoch_order(task.train.split, recipe.sampling, recipe.batch_size, spec.seed, 1)
    steps_per_epoch, pairs = len(batches), sum(map(len, batches))
    world = here()
    first, last = share(len(batches[0]), world)
    rows = last - first
    engine = Engine(
        model=model,
        method=task.method,
        trainable=task.trainable,
        new_heads=task.new_heads,
        recipe=recipe,
        config=spec.engine,
        total_steps=steps_per_epoch * recipe.epochs,
        steps_per_epoch=steps_per_epoch,
        device=device,
        rows=rows,
        seed=spec.seed,
    )
    try:
        resumed = checkpoints.restore(engine)
        progress, best = resumed if resumed else (Progress(), dict(initial))
        if progress.micro_batch not in (None, micro_size(recipe, rows)):
            progress.peak_memory = progress.peak_reserved = 0  # of a larger number of pairs at a time
        progress.micro_batch = micro_size(recipe, rows)
        reset_peak_memory(device)
        for epoch in range(progress.epoch + 1, recipe.epochs + 1):
            # Dropout and anything else random depends on seed and epoch only, so a resumed trial repeats exactly; and on the
            # process, whose rows are others than its neighbour's.
            torch.manual_seed(spec.seed * 1_000_003 + epoch + (world.rank << 52))
            began = time.process_time()
            try:
                line = _train_epoch(engine, task, recipe, epoch)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                fewer = fewer_at_once(error, task.method, recipe, rows, spec.engine, world)
                checkpoints.note(halved_note(error, micro_size(recipe, rows), fewer, rows, epoch))
                raise _TooMuch(cut(recipe, fewer)) from None
            progress.epoch, progress.steps = epoch, progress.steps + steps_per_epoch
            progress.train_s += line["seconds"]
            progress.train_cpu_s += time.process_time() - began
            allocated, reserved = peak_memory(device)
            progress.peak_memory = max(progress.peak_memory, allocated)
            progress.peak_reserved = max(progress.peak_reserved, reserved)
            if epoch % spec.protocol.validate_every == 0 or epoch == recipe.epochs:
                started = time.perf_counter()
                with engine.whole_model():
                    measured = metrics.recalls(task.validate(), MAIN_RULE)["mR"] if world.first else None
                    line["val_mR"] = world.told(measured)
                progress.eval_s += time.perf_counter() - started
                better = progress.best_mR is None or line["val_mR"] > progress.best_mR
                if better or spec.protocol.selection == "last":
                    progress.best_epoch, progress.best_mR = epoch, line["val_mR"]
                    best = engine.trained_tensors()
            progress.curve.append(line)
            checkpoints.save(engine, progress, best)
            initial.clear()
            totals = {"best_mR": progress.best_mR, "train_s": progress.train_s, "pairs": epoch * pairs}
            task.report({**line, "epochs": recipe.epochs, **totals})
        engine.close(whole=True)
    finally:
        engine.close()
    load_trained(model, best)
    return progress


def _cut_to(recipe: Recipe, micro: int | None) -> Recipe:
    """The recipe as a checkpoint was trained with: what did not fit then is not tried again."""
    return recipe if micro is None or micro >= micro_size(recipe, recipe.batch_size) else cut(recipe, micro)


def _copies(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().to("cpu", copy=True) for name in names}


def false_captions(method: Method, split: Split, seed: int, epoch: int) -> FalseCaptions | None:
    """What draws the false captions of an epoch; None for methods that do not score pairs."""
    if not isinstance(method, PairMethod):
        return None
    return FalseCaptions(split, method.config.false_captions, method.config.own_as_false, seed, epoch)


def load_trained(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy trained tensors into the model by name."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in tensors.items():
            parameters[name].copy_(value)


def _train_epoch(engine: Engine, task: Task, recipe: Recipe, epoch: int) -> dict[str, Any]:
    started = time.perf_counter()
    task.model.train()
    sums: dict[str, float] = {}
    steps = 0
    lr = engine.lr()
    seed = task.spec.seed
    false = false_captions(task.method, task.train.split, seed, epoch)
    for batch in training_batches(task.train, task.backbone, recipe, seed, epoch, task.device, task.kept, false):
        lr = engine.lr()
        for name, value in engine.step(batch).items():
            sums[name] = sums.get(name, 0.0) + value
        steps += 1
    means = {name: total / steps for name, total in sums.items()}
    return {
        "epoch": epoch,
        "loss": means.pop("loss"),
        "parts": means,
        "lr": lr,
        "val_mR": None,
        "seconds": time.perf_counter() - started,
    }
