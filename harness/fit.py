"""The training loop: batches, steps, validation each epoch, the best weights kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.datasets.split import Split
from petlbench.harness import metrics
from petlbench.harness.checkpoint import Checkpoints, Progress
from petlbench.harness.data import SplitData, epoch_order, training_batches
from petlbench.harness.device import peak_memory, reset_peak_memory
from petlbench.harness.engine import Engine
from petlbench.harness.evaluate import MAIN_RULE
from petlbench.harness.false_captions import FalseCaptions
from petlbench.harness.kept import Kept
from petlbench.harness.metrics import Ranks
from petlbench.harness.spec import TrialSpec
from petlbench.methods.backbones.base import Backbone
from petlbench.methods.base import Method
from petlbench.methods.pair import PairMethod
from petlbench.methods.recipe import Recipe

Report = Callable[[dict[str, Any]], None]


def fit(
    spec: TrialSpec,
    recipe: Recipe,
    method: Method,
    model: nn.Module,
    backbone: Backbone,
    trainable: list[str],
    new_heads: set[str],
    train: SplitData,
    kept: Kept,
    validate: Callable[[], Ranks],
    checkpoints: Checkpoints,
    report: Report,
    device: torch.device,
) -> Progress:
    """Train; on return the model holds the selected weights.

    Args:
        spec: Gives seed, engine and selection rule.
        recipe: Optimiser, schedule, batch, epochs.
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

    Raises:
        TrainingError: The loss is not finite, or a checkpoint does not fit.
    """
    steps_per_epoch = len(epoch_order(train.split, recipe.sampling, recipe.batch_size, spec.seed, 1))
    engine = Engine(
        model=model,
        method=method,
        trainable=trainable,
        new_heads=new_heads,
        recipe=recipe,
        config=spec.engine,
        total_steps=steps_per_epoch * recipe.epochs,
        steps_per_epoch=steps_per_epoch,
        device=device,
    )
    try:
        resumed = checkpoints.restore(engine)
        progress, best = resumed if resumed else (Progress(), engine.trained_tensors())
        reset_peak_memory(device)
        for epoch in range(progress.epoch + 1, recipe.epochs + 1):
            # Dropout and anything else random depends on seed and epoch only, so a resumed trial repeats exactly.
            torch.manual_seed(spec.seed * 1_000_003 + epoch)
            line = _train_epoch(engine, model, method, spec, recipe, backbone, train, kept, epoch, device)
            progress.epoch, progress.steps = epoch, progress.steps + steps_per_epoch
            progress.train_s += line["seconds"]
            allocated, reserved = peak_memory(device)
            progress.peak_memory = max(progress.peak_memory, allocated)
            progress.peak_reserved = max(progress.peak_reserved, reserved)
            if epoch % spec.protocol.validate_every == 0 or epoch == recipe.epochs:
                started = time.perf_counter()
                line["val_mR"] = metrics.recalls(validate(), MAIN_RULE)["mR"]
                progress.eval_s += time.perf_counter() - started
                better = progress.best_mR is None or line["val_mR"] > progress.best_mR
                if better or spec.protocol.selection == "last":
                    progress.best_epoch, progress.best_mR = epoch, line["val_mR"]
                    best = engine.trained_tensors()
            progress.curve.append(line)
            checkpoints.save(engine, progress, best)
            report({**line, "epochs": recipe.epochs, "best_mR": progress.best_mR, "train_s": progress.train_s})
    finally:
        engine.close()
    load_trained(model, best)
    return progress


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


def _train_epoch(
    engine: Engine,
    model: nn.Module,
    method: Method,
    spec: TrialSpec,
    recipe: Recipe,
    backbone: Backbone,
    train: SplitData,
    kept: Kept,
    epoch: int,
    device: torch.device,
) -> dict[str, Any]:
    started = time.perf_counter()
    model.train()
    sums: dict[str, float] = {}
    steps = 0
    lr = engine.lr()
    false = false_captions(method, train.split, spec.seed, epoch)
    for batch in training_batches(train, backbone, recipe, spec.seed, epoch, device, kept, false):
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
