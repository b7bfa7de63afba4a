"""Faster kernels for a model that is evaluated many times with the same weights on a CPU."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SMALLEST = 2**16
"""Scalars of a weight from which packing gains anything: 256 x 256."""

_BATCH_HINT = 1024  # rows that oneDNN lays the weights out for; the result holds for any number


@contextmanager
def evaluation_kernels(model: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    """Within this block the model runs by :func:`packed_linears` and :func:`fused_attention`; arguments as of the former."""
    with packed_linears(model, precision, device), fused_attention(device):
        yield


@contextmanager
def fused_attention(device: torch.device) -> Iterator[None]:
    """Let torch use its fused attention on a CPU, which trials switch off since its backward pass is slow."""
    before = torch.backends.cuda.flash_sdp_enabled()  # despite its name the switch governs the CPU kernel too
    if device.type == "cpu":
        torch.backends.cuda.enable_flash_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_flash_sdp(before)


@contextmanager
def packed_linears(model: nn.Module, precision: str, device: torch.device) -> Iterator[int]:
    """Within this block large linear layers multiply by packed weights; yields how many do.

    oneDNN's product with packed weights runs at 110 GFLOP/s on one core of an EPYC of the fourth generation where torch's
    own product, whose library picks its kernels for other makers' processors, runs at 90 to 100; under bf16 the layers
    are also spared the cast of their weights in every call. The sums are the same up to rounding.

    Only ``nn.Linear`` modules that are called as modules change, and only on an x86 CPU with oneDNN; the model is as
    before afterwards. Not for training: gradients do not pass.

    Args:
        model: In evaluation mode, under inference mode, until the block ends; its weights must not change within.
        precision: ``bf16`` packs weights in bf16, for use under autocast.
        device: Where the model lies.
    """
    changed = []
    try:
        if usable(device):
            for module in model.modules():
                if _takes(module):
                    module.forward = _packed(module, precision == "bf16")  # type: ignore[method-assign, arg-type]
                    changed.append(module)
        yield len(changed)
    finally:
        for module in changed:
            del module.forward


def usable(device: torch.device) -> bool:
    """Whether packing helps here: an x86 CPU, and a torch that has oneDNN's operators."""
    return (
        device.type == "cpu"
        and platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)  # type: ignore[attr-defined]
        and all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    )


def _takes(module: nn.Module) -> bool:
    """Plain linear layers in fp32 that nobody else has changed."""
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.dtype == torch.float32
        and module.weight.numel() >= SMALLEST
    )


def _packed(layer: nn.Linear, bf16: bool) -> Callable[[Tensor], Tensor]:
    """A forward function with the layer's weights as they are now."""
    kind = torch.bfloat16 if bf16 else torch.float32
    plain, bias = layer.forward, None if layer.bias is None else layer.bias.detach().to(kind)
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(kind).clone(), _BATCH_HINT)

    def forward(x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu") != bf16 or not x.numel():  # a method may ask for fp32 within bf16
            return plain(x)
        return torch.ops.mkldnn._linear_pointwise(x.to(kind), weight, bias, "none", [], "")

    return forward
