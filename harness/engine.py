"""The DeepSpeed engine of one trial: optimiser, schedule, precision, step, and checkpoints of trained tensors only."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.harness.spec import EngineConfig
from petlbench.methods.base import Batch, Method
from petlbench.methods.recipe import Recipe


class TrainingError(RuntimeError):
    """Training cannot go on (the loss is not finite, a checkpoint does not fit)."""


class _LossModule(nn.Module):
    """What DeepSpeed calls: a batch in, named losses out."""

    def __init__(self, model: nn.Module, method: Method):
        super().__init__()
        self.model = model
        self._method = [method]  # in a list: a Method is not a module

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self._method[0].loss(self.model, batch)


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
    ):
        deepspeed = _deepspeed()
        self.device = device
        self.trainable = trainable
        self._model = model
        groups = parameter_groups(model, trainable, new_heads, recipe)
        parameters = [p for g in groups for p in g["params"]]
        # Without ZeRO, DeepSpeed's own clipping fails on tensors without dimensions and walks the frozen ones too.
        self._clip = parameters if recipe.clip_norm and not config.zero_stage else []
        self._clip_norm = recipe.clip_norm
        optimizer = _optimizer(groups, recipe, device)
        factor = learning_rate_factor(recipe, total_steps, steps_per_epoch)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        with _own_broadcast(deepspeed):
            self._engine, _, _, _ = deepspeed.initialize(
                model=_LossModule(model, method),
                model_parameters=parameters,
                optimizer=optimizer,
                lr_scheduler=scheduler,
                config={
                    "train_micro_batch_size_per_gpu": recipe.batch_size,
                    "gradient_accumulation_steps": 1,
                    "gradient_clipping": recipe.clip_norm if config.zero_stage else 0.0,
                    "steps_per_print": 2**31,
                    # bf16.enabled would cast the frozen trunk too; autocast keeps fp32 weights.
                    "torch_autocast": {"enabled": recipe.precision == "bf16", "dtype": "bfloat16"},
                    "zero_optimization": {"stage": config.zero_stage},
                    "zero_allow_untested_optimizer": True,
                    "zero_force_ds_cpu_optimizer": False,
                },
            )

        if torch.distributed.get_world_size() == 1 and not config.zero_stage:
            # DeepSpeed would copy all gradients into one buffer and back to average them with nobody: half as long again
            # as a whole step of full fine-tuning on ViT-B/32.
            self._engine.enable_backward_allreduce = False

    def step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step.

        Returns:
            The named losses before the step, and their sum as ``loss``.

        Raises:
            TrainingError: A loss is NaN or infinite; nothing was updated.
        """
        parts = self._engine(batch)
        total = sum(parts.values(), torch.zeros((), device=self.device))
        values = torch.stack([total, *parts.values()]).detach().float().tolist()
        if not all(math.isfinite(v) for v in values):
            named = ", ".join(f"{name}={value}" for name, value in zip(["loss", *parts], values, strict=True))
            raise TrainingError(
                f"the loss is not finite at step {self._engine.global_steps + 1} ({named}); lower train.lr, "
                "lengthen train.warmup, set train.clip_norm, or use train.precision=fp32"
            )
        self._engine.backward(total)
        if self._clip:
            nn.utils.clip_grad_norm_(self._clip, self._clip_norm)
        self._engine.step()
        return dict(zip(["loss", *parts], values, strict=True))

    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self._engine.get_lr()[0])

    def trained_tensors(self) -> dict[str, Tensor]:
        """Copies, on the CPU, of what is trained."""
        wanted = set(self.trainable)
        return {n: p.detach().to("cpu", copy=True) for n, p in self._model.named_parameters() if n in wanted}

    def save(self, folder: Path) -> None:
        """Write optimiser, schedule and trained tensors for :meth:`restore`."""
        self._engine.save_checkpoint(str(folder), tag="engine", exclude_frozen_parameters=True, save_latest=False)

    def restore(self, folder: Path) -> None:
        """Load what :meth:`save` wrote; unpickles plain tensors and numbers only.

        Raises:
            TrainingError: The checkpoint is damaged or belongs to another model.
        """
        with _weights_only():
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

    def close(self) -> None:
        """Give memory back: a worker process may run another trial."""
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


def _deepspeed() -> Any:
    """DeepSpeed, quiet, with a process group of its own for a trial of one process."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if not torch.distributed.is_initialized():
        # Trials run side by side on one machine, so the default port 29500 would collide.
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port())
        )
        # The shared-memory collective of CPU nodes is compiled on first use (half a minute, and a compiler); one process
        # has nobody to talk to.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    return deepspeed


@contextmanager
def _own_broadcast(deepspeed: Any) -> Iterator[None]:
    """DeepSpeed broadcasts each parameter as bytes, which torch refuses for tensors without dimensions (CLIP's temperature)."""
    engine = deepspeed.DeepSpeedEngine
    theirs = engine._broadcast_model

    def broadcast(self: Any) -> None:
        if torch.distributed.get_world_size() > 1:
            for parameter in self.module.parameters():
                torch.distributed.broadcast(parameter.data, src=0)

    engine._broadcast_model = broadcast
    try:
        yield
    finally:
        engine._broadcast_model = theirs


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _weights_only() -> Iterator[None]:
    """DeepSpeed asks torch.load for full unpickling; refuse that, a checkpoint folder may come from anywhere."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
