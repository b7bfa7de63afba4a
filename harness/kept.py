"""What frozen modules say of a whole split, computed once and used in place of pixels and words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder

if TYPE_CHECKING:
    from petlbench.harness.data import SplitData
    from petlbench.harness.features import Pooled
    from petlbench.harness.kept_states import KeptStates
    from petlbench.harness.parts import Parts


@dataclass(frozen=True)
class Kept:
    """At most one of ``pooled`` and ``states`` is there; nothing at all is the usual case.

    Attributes:
        pooled: Outputs of frozen towers, for methods that train heads only.
        side: (N, S) outputs of a frozen network (:meth:`Method.side_features`), one row per picture.
        states: States of pictures and captions, for methods that score pairs of them.
    """

    pooled: Pooled | None = None
    side: Tensor | None = None
    states: KeptStates | None = None


NOTHING = Kept()


def keep(parts: Parts, model: nn.Module, data: SplitData, device: torch.device, *, training: bool = False) -> Kept:
    """Compute, or find, what may be kept of a split for a built method.

    Args:
        parts: Of the trial.
        model: What the method built.
        data: The split.
        device: Where the model lies.
        training: Whether the split is trained on: then nothing is kept of pictures that an augmentation changes.
    """
    from petlbench.harness.features import pooled_features, side_features
    from petlbench.harness.kept_states import kept_states
    from petlbench.methods.pair import PairMethod

    method, backbone, precision = parts.method, parts.backbone, parts.recipe.precision
    if training and not parts.same_pictures:
        return NOTHING
    if method.head_only:
        assert isinstance(backbone, DualEncoder)
        return Kept(pooled=pooled_features(data, backbone, precision, device))
    if isinstance(method, PairMethod):
        states = kept_states(method, model, backbone, data, precision, device) if method.keeps_states else None
        return Kept(states=states)
    return Kept(side=side_features(data, method, model, backbone, precision, device))
