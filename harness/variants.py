"""How large a method is, measured by building it on a backbone that has shapes but no values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from petlbench.methods.backbones.base import Backbone
from petlbench.methods.backbones.shapes import shape_only, untouched, vilt_shape_only
from petlbench.methods.base import Method, MethodError, count

REFERENCE = "ViT-B-32"
"""The backbone whose counts the papers print."""
REFERENCE_TOTAL = 151_277_313
"""Parameters of CLIP ViT-B/32, of which shares are given."""
VILT_TOTAL = 111_595_777
"""Parameters of ViLT-B/32 with its ranking head, the reference of methods that sit on nothing else."""


@dataclass(frozen=True)
class Size:
    """Scalars of a built model.

    Attributes:
        trainable: Trained, or None where the method cannot be built.
        total: Trained and frozen together.
        reason: Why it cannot be built.
    """

    trainable: int | None
    total: int | None
    reason: str | None = None


def on_vilt(cls: type[Method]) -> bool:
    """Whether a method is counted on ViLT-B/32, because it cannot sit on CLIP."""
    return tuple(cls.kinds) == ("vilt",)


def reference_name(cls: type[Method]) -> str:
    """What the backbone of :func:`reference` is called."""
    return "ViLT-B/32" if on_vilt(cls) else "ViT-B/32"


def reference(cls: type[Method]) -> Backbone:
    """CLIP ViT-B/32 or ViLT-B/32 in shape only; shared by all callers, so copy it before building on it."""
    return _reference(on_vilt(cls))


@cache
def _reference(vilt: bool) -> Backbone:
    return vilt_shape_only() if vilt else shape_only(REFERENCE)


def measure(cls: type[Method], options: Mapping[str, Any], backbone: Backbone) -> Size:
    """Build a method on a copy of a backbone and count.

    Args:
        cls: The method.
        options: Config values that differ from the defaults.
        backbone: From :func:`petlbench.methods.backbones.shapes.shape_only`; left as it is.
    """
    method = cls(cls.Config.model_validate(dict(options)))
    fresh = untouched(backbone)
    if reason := method.refuse(fresh):
        return Size(None, None, reason)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            try:
                model = method.build(fresh)
            except RuntimeError:  # what torch raises where a build reads weights, to start from them; others recur
                model = method.build(_with_values(untouched(backbone)))
        except MethodError as error:
            return Size(None, None, str(error))
    return Size(count(model, method.trainable(model)), sum(p.numel() for p in model.parameters()))


def _with_values(backbone: Backbone) -> Backbone:
    """The same with zeros on the CPU: more memory and time, but every operation works."""
    backbone.to_empty(device="cpu")
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        tensor.detach().zero_()
    return backbone


def declared(cls: type[Method], options: Mapping[str, Any], backbone: Backbone) -> Size:
    """The closed form of the trained count, without building; its total is not known."""
    method = cls(cls.Config.model_validate(dict(options)))
    if reason := method.refuse(backbone):
        return Size(None, None, reason)
    return Size(method.expected_trainable(backbone), None)


def share(trainable: int | None, cls: type[Method]) -> float | None:
    """Trained scalars in percent of the reference's size, as the field prints them."""
    return None if trainable is None else 100 * trainable / (VILT_TOTAL if on_vilt(cls) else REFERENCE_TOTAL)
