"""ZeRO 3 divides the weights of a model among processes; here they are put together again, for a while or for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def whole_model(engine: Any) -> Iterator[None]:
    """Within this block each process holds the whole model, and may use it without the others.

    All processes must enter and leave it together.
    """
    from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

    with unwrap_model_for_generation(engine):  # not only for generation: it gathers all and takes the hooks off
        yield


def forget_order(engine: Any) -> None:
    """Let DeepSpeed fetch weights as they are asked for; to be called within the forward pass.

    It remembers in which order modules ran and takes an error where the next pass differs, as it does where a step has
    several passes of different kinds.
    """
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()


def values_of(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copies, on the CPU, of parameters that are divided; all processes must ask together."""
    from deepspeed import zero

    found = {}
    for name, parameter in parameters.items():  # one by one: together they may not fit
        with zero.GatheredParameters([parameter]):
            found[name] = parameter.detach().to("cpu", copy=True)
    return found


class Division:
    """Remembers a model as it was before ZeRO 3 took it apart."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._attributes = {id(p): set(vars(p)) for p in model.parameters()}

    def undo(self, engine: Any, device: torch.device) -> None:
        """Make the model an ordinary one again, with its present weights; ends the engine.

        All processes must call it together.
        """
        from deepspeed.runtime.zero import parameter_offload

        parameters = dict(self._model.named_parameters())
        values = values_of(parameters)
        engine.destroy()
        parameter_offload.FWD_MODULE_STACK.clear()  # DeepSpeed's own list would keep the model in memory for ever
        for module in [engine.module, *self._model.modules()]:
            module._parameters = dict(module._parameters.items())
        for name, parameter in parameters.items():
            parameter.data = values[name].to(device)
            for extra in set(vars(parameter)) - self._attributes[id(parameter)]:
                delattr(parameter, extra)
