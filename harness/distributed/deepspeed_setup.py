"""DeepSpeed as a trial needs it: quiet, in the trial's own process group, and without its traps."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def deepspeed_here() -> Any:
    """DeepSpeed with a process group: that of the trial's workers, or one of this process alone."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # The shared-memory collective of CPU nodes is compiled on first use (half a minute, and a compiler); gloo does as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        # Trials run side by side on one machine, so the default port 29500 would collide.
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())
        )
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    return deepspeed


@contextmanager
def own_broadcast(deepspeed: Any) -> Iterator[None]:
    """DeepSpeed broadcasts each parameter as bytes, which torch refuses for tensors without dimensions (CLIP's temperature)."""
    engine, init = deepspeed.DeepSpeedEngine, deepspeed.zero.Init
    theirs = engine._broadcast_model, init._zero_init_param

    def broadcast(self: Any) -> None:
        for parameter in self.module.parameters():
            if not hasattr(parameter, "ds_id"):  # ZeRO 3 has sent these already
                send(parameter)

    def divide(self: Any, parameter: Any) -> None:
        self._convert_to_deepspeed_param(parameter)
        send(parameter)
        parameter.partition()

    def send(parameter: torch.nn.Parameter) -> None:
        if torch.distributed.get_world_size() > 1:
            torch.distributed.broadcast(parameter.data, src=0)

    engine._broadcast_model, init._zero_init_param = broadcast, divide
    try:
        yield
    finally:
        engine._broadcast_model, init._zero_init_param = theirs


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def weights_only() -> Iterator[None]:
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
