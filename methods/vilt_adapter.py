"""Adapters on a frozen ViLT: one bottleneck in every joint block, behind or beside the MLP, or two (Houlsby et al.)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from petlbench.methods.backbones.base import BRANCHES, BranchKind
from petlbench.methods.backbones.vilt import ViltEncoder
from petlbench.methods.base import Domain, Preset, Variant
from petlbench.methods.layers.bottleneck import (
    Activation,
    BottleneckAdapter,
    attach_to,
    attached_names,
    bottleneck_size,
    modules_in,
    start_as_lora,
)
from petlbench.methods.layers.vilt_pairs import ITM_CHOICE, MATCHED_RATE, FrozenViltConfig, ViltMethod

Placement = Literal["pfeiffer", "adaptformer", "houlsby"]


class ViltAdapterConfig(FrozenViltConfig):
    """Size and place of the bottlenecks."""

    bottleneck: PositiveInt = 64
    placement: Placement = "pfeiffer"
    """``pfeiffer``: behind the MLP, on what it adds. ``adaptformer``: beside the MLP. ``houlsby``: behind attention and MLP."""
    activation: Activation = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the bottleneck."""
    scale: PositiveFloat = 1.0
    """Of what is added; AdaptFormer has 0.1."""


class ViltAdapter(ViltMethod):
    """``out + s up(act(down(read)))`` in every joint block, where both modalities are already mixed.

    Serial adapters read what the branch is about to add, the parallel one (``adaptformer``) reads the residual stream. Each
    block has its own, and its up-projection starts at zero.
    """

    title = "ViLT + Adapter"
    paper = "Srinivasan et al., CLiMB: A Continual Learning Benchmark for Vision-and-Language Tasks, NeurIPS 2022"
    code = "GLAMOR-USC/CLiMB"
    licence = "MIT"
    Config = ViltAdapterConfig
    identity_start = True
    choices = (
        "No published row of adapters on a ViLT for retrieval was found: CLiMB's are trained for VQA, NLVR2, SNLI-VE and VCR.",
        "Preset `paper` is CLiMB's: Houlsby, reduction 16, the settings of its VQA task; its classifiers over new layers are "
        "replaced by ViLT's ranking head.",
        "CLiMB's adapter matrices start at deviation 0.02; ours add nothing at the start.",
        "`pfeiffer` reads what the MLP adds, as this project's `adapter` does; the library under CLiMB adds the residual "
        "stream to what it reads.",
        ITM_CHOICE,
        MATCHED_RATE,
    )
    variants = {
        "r64": Variant({}, 1_190_401, "one per block; 1,189,632 and the head of 769, as in every row"),
        "r16": Variant({"bottleneck": 16}, 305_089, "one per block; 304,320 without the head"),
        "adaptformer": Variant(
            {"placement": "adaptformer", "scale": 0.1, "dropout": 0.1},
            1_190_401,
            "beside the MLP, AdaptFormer's values",
        ),
        "houlsby": Variant(
            {"placement": "houlsby", "bottleneck": 48},
            1_789_825,
            "two per block, reduction 16; 1,789,056 without the head",
        ),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(
            method={"placement": "houlsby", "bottleneck": 48, "activation": "silu"},
            train={
                "optimizer": "adamw",
                "lr": 1e-4,
                "weight_decay": 0.01,
                "betas": (0.9, 0.98),
                "schedule": "linear",
                "warmup": 0.1,
                "clip_norm": 0.0,
                "batch_size": 64,
                "epochs": 10,
            },
        ),
    }
    space = {
        "method.bottleneck": Domain("choice", (8, 16, 32, 64, 128)),
        "method.placement": Domain("choice", ("pfeiffer", "adaptformer", "houlsby")),
        "train.lr": Domain("loguniform", (1e-4, 3e-3)),
    }

    def extend(self, vilt: ViltEncoder) -> nn.Module:
        """The ViLT with its adapters attached."""
        attach_to(vilt.joint, self._kinds(), "layer", lambda: self._adapter(vilt.width))
        return vilt

    def tuned(self, model: nn.Module) -> Iterable[str]:
        """The adapters."""
        return attached_names(model)

    def expected_tuned(self, vilt: ViltEncoder) -> int:
        """2 W r + r + W per adapter."""
        each = bottleneck_size(vilt.width, self._config().bottleneck)
        return modules_in(vilt.joint, len(self._kinds()), "layer") * each

    def _adapter(self, width: int) -> BottleneckAdapter:
        config = self._config()
        adapter: Any = BottleneckAdapter(
            width,
            config.bottleneck,
            reads="residual" if config.placement == "adaptformer" else "out",
            activation=config.activation,
            dropout=config.dropout,
            scale=config.scale,
        )
        start_as_lora(adapter.down, adapter.up)
        return adapter

    def _kinds(self) -> tuple[BranchKind, ...]:
        return BRANCHES if self._config().placement == "houlsby" else ("mlp",)

    def _config(self) -> ViltAdapterConfig:
        assert isinstance(self.config, ViltAdapterConfig)
        return self.config
