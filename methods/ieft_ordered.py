"""IEFT with its patches in raster order, which its convolutions and its position-wide layers need."""

from __future__ import annotations

from typing import ClassVar

from petlbench.methods.base import MethodConfig
from petlbench.methods.ieft import CutConfig, Ieft


class IeftOrdered(Ieft):
    """IEFT without the random order of patches that the released code takes over from ViLT's sampler.

    In raster order a convolution sees neighbours, and each of the P inputs of the blocks over channels is one place in the
    picture. Nothing else differs, so the pair of methods measures what the order is worth.
    """

    title = "IEFT, patches in raster order"
    Config: ClassVar[type[MethodConfig]] = CutConfig
    choices = (
        "The patches keep their raster order; the released code shuffles them, see ieft.",
        *(line for line in Ieft.choices if "order_seed" not in line),
    )
    shuffles: ClassVar[bool] = False
