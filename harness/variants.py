"""How large a method is, measured by building it on a backbone that has shapes but no values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from petlbench.methods.backbones.open_clip_model import OpenClipEncoder
from petlbench.methods.backbones.shapes import untouched
from petlbench.methods.base import Method, MethodError, count

REFERENCE = "ViT-B-32"
"""The backbone whose counts the papers print."""


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

    @property
    def percent(self) -> float | None:
        """Trained share of the untouched CLIP's size, as the papers print it, is ``trainable / REFERENCE_TOTAL``."""
        return None if self.trainable is None else 100 * self.trainable / REFERENCE_TOTAL


REFERENCE_TOTAL = 151_277_313
"""Parameters of CLIP ViT-B/32."""


def measure(cls: type[Method], options: Mapping[str, Any], backbone: OpenClipEncoder) -> Size:
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
            model = method.build(fresh)
        except MethodError as error:
            return Size(None, None, str(error))
    return Size(count(model, method.trainable(model)), sum(p.numel() for p in model.parameters()))


def declared(cls: type[Method], backbone: OpenClipEncoder) -> int | None:
    """The closed form with default options, without building; None where there is none or the method refuses."""
    method = cls()
    return None if method.refuse(backbone) else method.expected_trainable(backbone)
