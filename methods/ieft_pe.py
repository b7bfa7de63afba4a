"""IEFT-PE: IEFT's blocks over channels and narrow gated convolutions on a ViLT that stays frozen and whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import PositiveInt
from torch import nn

from petlbench.methods.backbones.vilt import ViltEncoder
from petlbench.methods.base import Domain, Preset, Variant, names_in, parameters_under
from petlbench.methods.ieft import ENHANCERS, EnhancerConfig
from petlbench.methods.ieft_ordered import IeftOrdered
from petlbench.methods.layers.vilt_pairs import ITM_CHOICE, MATCHED_RATE, FrozenViltConfig


class IeftPeConfig(FrozenViltConfig, EnhancerConfig):
    """Place and size of what is put before blocks of the frozen trunk."""

    gdfn_hidden: PositiveInt | None = 64
    """Channels behind the gate of the convolutions; None: 2.66 times the width, as in IEFT."""


class IeftPe(IeftOrdered):
    """All blocks of ViLT, frozen; before blocks 1, 2, 3 ``patches = GDFN(SE(patches))``, which starts as the identity.

    A parameter-efficient form of IEFT for this bench, not a published one. The trunk is not cut: without training, half a
    ViLT means nothing. The last projections of SE and GDFN start at zero, so step 0 is the untouched ViLT.
    """

    title = "IEFT-PE"
    Config = IeftPeConfig
    identity_start = True
    choices = (
        "A form of this project, to compare with other parameter-efficient methods: IEFT itself is full fine-tuning.",
        "The patches keep their raster order; all blocks run; the gated convolutions are 64 channels wide.",
        "There is no published recipe; preset `paper` is `matched`.",
        MATCHED_RATE,
        ITM_CHOICE,
    )
    variants = {
        "hidden64": Variant({}, 1_203_313, "3 x 250,704 of SE, 3 x 150,144 of GDFN, 769 of the ranking head"),
        "hidden128": Variant({"gdfn_hidden": 128}, 1_649_137, "the same with 3 x 298,752 of GDFN"),
        "full_width": Variant({"gdfn_hidden": None}, 14_982_061, "IEFT's own modules, and the ranking head"),
    }
    presets = {"matched": Preset(train={"lr": 1e-3}), "paper": Preset(train={"lr": 1e-3})}
    space = {
        "method.gdfn_hidden": Domain("choice", (32, 64, 128)),
        "train.lr": Domain("loguniform", (1e-4, 3e-3)),
    }

    zero_init: ClassVar[bool] = True

    def tuned(self, model: nn.Module) -> Iterable[str]:
        """SE and GDFN."""
        vilt = self.vilt(model)
        return names_in(model, vilt, parameters_under(vilt, ENHANCERS))

    def expected_tuned(self, vilt: ViltEncoder) -> int:
        """:meth:`enhancers_size`."""
        return self.enhancers_size(vilt)

    def depth(self, vilt: ViltEncoder) -> int:
        """All blocks."""
        return vilt.joint.depth
