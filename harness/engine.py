"""The DeepSpeed engine of one trial: optimiser, schedule, precision, step, and checkpoints of trained tensors only."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.harness.distributed.deepspeed_setup import deepspeed_here, own_broadcast, weights_only
from petlbench.harness.distributed.step import DividedStep, Work
from petlbench.harness.distributed.world import here
from petlbench.harness.distributed.zero3 import Division, forget_order, values_of, whole_model
from petlbench.harness.spec import EngineConfig
from petlbench.methods.base import Batch, Method
from petlbench.methods.recipe import Recipe


class TrainingError(RuntimeError):
    """Training cannot go on (the loss is not finite, a checkpoint does not fit)."""


class _Work(nn.Module):
    """What DeepSpeed calls. All that reads parameters happens within it, where ZeRO 3 has them at hand."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, work: Work, start: Callable[[], None] | None = None) -> Any:
        if start is not None:
            start()
        return work(self.model)


class Engine:
    """Trains the named parameters of a model; everything else is frozen already."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        trainable: list[str],
        new_heads: set[str],
        recipe: Recipe,
        config: EngineConfig,
        total_steps: int,
        steps_per_epoch: int,
        device: torch.device,
        rows: int | None = None,
        seed: int = 0,
    ):
        """Put model and optimiser into DeepSpeed's hands.

        Args:
            model: As the method built it.
            method: Gives the loss.
            trainable: Names of all trained parameters.
            new_heads: The joining heads among them.
            recipe: Optimiser, schedule, accumulation.
            config: ZeRO stage and offloading.
            total_steps: Of the schedule.
            steps_per_epoch: Likewise.
            device: Where the model lies.
            rows: Pairs per step in this process; None: the batch size divided by the number of processes.
            seed: Of what is random in the loss, where several processes compute it.
        """
        deepspeed = deepspeed_here()
        self.device = device
        self.trainable = trainable
        self.world = here()
        self._model = model
        self._method = method
        self._zero_stage = config.zero_stage
        rows = recipe.batch_size // self.world.size if rows is None else rows
        self._divided = DividedStep.of(method, trainable, recipe, rows, seed, self.world, device)
        groups = parameter_groups(model, trainable, new_heads, recipe)
        parameters = [p for g in groups for p in g["params"]]
        # Without ZeRO, DeepSpeed's own clipping fails on tensors without dimensions and walks the frozen ones too.
        self._clip = parameters if recipe.clip_norm and not config.zero_stage else []
        self._clip_norm = recipe.clip_norm
        optimizer = _optimizer(groups, recipe, device)
        factor = learning_rate_factor(recipe, total_steps, steps_per_epoch)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        self._optimizer, self._scheduler, self._factor = optimizer, scheduler, factor
        self._settings = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in optimizer.param_groups]
        self._division = Division(model) if config.zero_stage == 3 else None
        with own_broadcast(deepspeed):
            self._engine, _, _, _ = deepspeed.initialize(
                model=_Work(model),
                model_parameters=parameters,
                optimizer=optimizer,
                lr_scheduler=scheduler,
                config={
                    "train_micro_batch_size_per_gpu": self._divided.micro,
                    "gradient_accumulation_steps": self._divided.pieces,
                    "gradient_clipping": recipe.clip_norm if config.zero_stage else 0.0,
                    "steps_per_print": 2**31,
                    # bf16.enabled would cast the frozen trunk too; autocast keeps fp32 weights.
                    "torch_autocast": {"enabled": recipe.precision == "bf16", "dtype": "bfloat16"},
                    "zero_optimization": _zero(config),
                    "zero_allow_untested_optimizer": True,
                    "zero_force_ds_cpu_optimizer": False,
                },
            )

        if self.world.size == 1 and not config.zero_stage:
            # DeepSpeed would copy all gradients into one buffer and back to average them with nobody: half as long again
            # as a whole step of full fine-tuning on ViT-B/32.
            self._engine.enable_backward_allreduce = False

    def step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step.

        Args:
            batch: This process's rows of the step's batch.

        Returns:
            The named losses of the whole batch before the step, and their sum as ``loss``.

        Raises:
            TrainingError: A loss is NaN or infinite; nothing was updated.
        """
        if self._divided.divided:
            return self._divided(self, batch, self._engine.global_steps)
        parts = self.run(lambda model: self._method.loss(model, batch))
        values = self.checked(parts)
        self.backward(_total(parts), last=True)
        return values

    def run(self, work: Work, *, aside: bool = False) -> Any:
        """What ``work`` makes of the model; ``aside`` of the pass that DeepSpeed counts and whose gradients it takes."""
        many = self._divided.pieces > 1 and self._division is not None
        start = (lambda: forget_order(self._engine)) if many else None
        return (self._engine.module if aside else self._engine)(work, start)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Take gradients; with the ``last`` ones of a step, update."""
        self._engine.backward(loss)
        if last and self._clip:
            nn.utils.clip_grad_norm_(self._clip, self._clip_norm)
        self._engine.step()  # DeepSpeed counts; it updates after the last

    def checked(self, parts: dict[str, Tensor]) -> dict[str, float]:
        """The losses and their sum as numbers.

        Raises:
            TrainingError: One is NaN or infinite.
        """
        values = torch.stack([_total(parts), *parts.values()]).detach().float().tolist()
        found = dict(zip(["loss", *parts], values, strict=True))
        if not all(math.isfinite(v) for v in values):
            named = ", ".join(f"{name}={value}" for name, value in found.items())
            raise TrainingError(
                f"the loss is not finite at step {self._engine.global_steps + 1} ({named}); lower train.lr, "
                "lengthen train.warmup, set train.clip_norm, or use train.precision=fp32"
            )
        return found

    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self._engine.get_lr()[0])

    def trained_tensors(self) -> dict[str, Tensor]:
        """Copies, on the CPU, of what is trained."""
        wanted = set(self.trainable)
        parameters = {n: p for n, p in self._model.named_parameters() if n in wanted}
        if self._division is not None:
            return values_of(parameters)
        return {n: p.detach().to("cpu", copy=True) for n, p in parameters.items()}

    def whole_model(self) -> AbstractContextManager[None]:
        """Within this block the model may be used by one process without the others; all must enter it together."""
        return nullcontext() if self._division is None else whole_model(self._engine)

    @property
    def partitioned(self) -> bool:
        """Whether the optimiser's state is divided among processes."""
        return self._zero_stage > 0

    def save(self, folder: Path) -> None:
        """Write optimiser, schedule and trained tensors for :meth:`restore`; all processes together, into one folder."""
        self._engine.save_checkpoint(str(folder), tag="engine", exclude_frozen_parameters=True, save_latest=False)

    def restore(self, folder: Path) -> None:
        """Load what :meth:`save` wrote; unpickles plain tensors and numbers only.

        Learning rate, weight decay and the like are the recipe's, not the checkpoint's, which may come from another recipe.
        Buffers stay as the method built them here. None may change in training, which is audited; those that were computed,
        such as the statistics of a random prior, differ in their last digits between machines and numbers of threads.

        Raises:
            TrainingError: The checkpoint is damaged or belongs to another model.
        """
        own_buffers = {name: value.clone() for name, value in self._model.named_buffers()}
        with weights_only():
            try:
                found, _ = self._engine.load_checkpoint(str(folder), tag="engine", load_module_strict=False)
            except Exception as error:
                reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                raise TrainingError(
                    f"checkpoint {folder} cannot be restored ({type(error).__name__}: {reason}); delete the folder to start "
                    "the trial afresh"
                ) from error
        if found is None:
            raise TrainingError(f"checkpoint {folder} holds no engine state")
        for name, value in self._model.named_buffers():
            value.copy_(own_buffers[name])
        self._scheduler.base_lrs = [own["initial_lr"] for own in self._settings]
        factor = self._factor(self._scheduler.last_epoch)
        for group, own in zip(self._optimizer.param_groups, self._settings, strict=True):
            group.update(own, lr=own["initial_lr"] * factor)

    def close(self, *, whole: bool = False) -> None:
        """Give memory back: a worker process may run another trial.

        Args:
            whole: Also put together a model that ZeRO 3 has divided; all processes must do so together.
        """
        if self._engine is None:
            return
        if whole and self._division is not None:
            self._division.undo(self._engine, self.device)
        else:
            self._engine.destroy()
        self._engine = None


def parameter_groups(
    model: nn.Module, trainable: list[str], new_heads: set[str], recipe: Recipe
) -> list[dict[str, Any]]:
    """Optimiser groups: {method, new joining heads} x {with, without weight decay}.

    By default biases, norms, scalars and other one-dimensional tensors are exempt from decay, as in open_clip's training.
    """

    def decays(name: str, parameter: nn.Parameter) -> bool:
        if recipe.decay == "matrices":
            return parameter.ndim >= 2
        return recipe.decay == "all" or not name.endswith("bias")

    parameters = dict(model.named_parameters())
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name in trainable:
        parameter = parameters[name]
        groups.setdefault((name in new_heads, decays(name, parameter)), []).append(parameter)
    return [
        {
            "params": members,
            "lr": (recipe.new_lr or recipe.lr) if new else recipe.lr,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (new, decayed), members in sorted(groups.items())
    ]


def learning_rate_factor(recipe: Recipe, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Multiplier of the learning rate at step s, counted from 0."""
    warmup = round(recipe.warmup * total_steps)
    floor = recipe.final_lr / recipe.lr

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if recipe.schedule == "step":
            epoch = step // max(1, steps_per_epoch) + 1
            return recipe.step_factor ** sum(epoch >= milestone for milestone in recipe.milestones)
        if recipe.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        left = 1 - progress if recipe.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return floor + (1 - floor) * left

    return factor


def _optimizer(groups: list[dict[str, Any]], recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    # fused: one kernel for all tensors, on CPU as on GPU
    return kind(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True)


def _zero(config: EngineConfig) -> dict[str, Any]:
    """DeepSpeed's section ``zero_optimization``."""
    found: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload == "cpu":
        found["offload_optimizer"] = {"device": "cpu"}
        if config.zero_stage == 3:
            found["offload_param"] = {"device": "cpu"}
    return found


def _total(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.float() for value in parts.values()]).sum()
