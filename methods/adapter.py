"""Adapter: serial bottlenecks behind the branches of every block (Houlsby et al.), or behind the MLP only (Pfeiffer)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal

from pydantic import Field, PositiveInt, model_validator
from torch import nn

from petlbench.methods.backbones.base import BRANCHES, BranchKind, DualEncoder
from petlbench.methods.base import (
    PE_RSITR,
    Domain,
    Method,
    MethodConfig,
    Preset,
    Published,
    Variant,
    count,
    names_in,
)
from petlbench.methods.layers.bottleneck import (
    Activation,
    BottleneckAdapter,
    Sharing,
    Towers,
    attach_to,
    attached_names,
    bottleneck_size,
    chosen_towers,
    modules_in,
    start_as_lora,
)
from petlbench.methods.recipe import PE_RSITR_TRAIN, LossConfig

NEAR_IDENTITY = 1e-3
"""Deviation of both matrices in google-research/adapter-bert, normal cut at two deviations."""


class AdapterConfig(MethodConfig):
    """Size, place and start of the bottlenecks."""

    bottleneck: PositiveInt = 64
    sharing: Sharing = "all"
    """``all``: one bottleneck per tower serves every block and branch, the size of the published table. ``layer``: each
    branch of each block has its own, the original."""
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    """``houlsby``: behind attention and MLP. ``pfeiffer``: behind the MLP only."""
    activation: Activation = "gelu_tanh"
    """The original's is GELU by its tanh formula."""
    dropout: float = Field(0.0, ge=0, lt=1)
    init: Literal["zero_up", "near_identity"] = "zero_up"
    """``zero_up``: adds exactly nothing at step 0. ``near_identity``: both matrices are drawn very small, the original."""
    layer_norms: bool = False
    """Also train the scale and shift of every layer norm of the backbone, as the original does."""
    towers: Towers = "both"

    @model_validator(mode="after")
    def _norms_of_both_towers(self) -> AdapterConfig:
        if self.layer_norms and self.towers != "both":
            raise ValueError(
                f"layer_norms trains those of both towers, but towers is {self.towers}; set towers=both or layer_norms=false"
            )
        return self


class Adapter(Method):
    """``out + up(act(down(out)))`` on what a branch adds to the residual stream (Houlsby et al. 2019).

    The adapter acts on the output of the branch before the residual sum, with a skip connection of its own. The published
    retrieval rows print 0.17 M parameters: one bottleneck of 64 per tower for all blocks (165,248), not the original's two
    per block (3,965,952).
    """

    title = "Adapter"
    paper = "Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019"
    code = "google-research/adapter-bert"
    licence = "Apache-2.0"
    family = "adapter"
    Config = AdapterConfig
    identity_start = True
    choices = (
        "The published retrieval rows do not say how their 0.17 M parameters are placed: one bottleneck of 64 per tower, "
        "used behind attention and MLP of every block, has that size, and so has the same bottleneck behind the MLP only.",
        "The original's two layer norms per block follow the residual sum; CLIP's precede the branches, so `layer_norms` "
        "trains those of the adapted towers, at their ends included, as the original trains every layer norm of BERT.",
        "Up-projections start at zero, so that step 0 is the untouched backbone; the original draws both matrices with "
        "deviation 1e-3 (init=near_identity, used by the preset `official`).",
        "Preset `official` takes optimiser, rate, schedule, batch and epochs of the original's published GLUE command; its "
        "Adam lacks bias correction and ours has it.",
        "Preset `paper`: loss and learning rate of the published rows are unknown; those of PE-RSITR's own method stand in.",
        "The learning rate of `matched` is ours.",
    )
    variants = {
        "shared": Variant({}, 165_248, "size of PE-RSITR Tab. I; one bottleneck per tower"),
        "shared_pfeiffer": Variant({"placement": "pfeiffer"}, 165_248, "the same behind the MLP only"),
        "houlsby": Variant({"sharing": "layer"}, 3_965_952, "original form: two per block"),
        "houlsby_norms": Variant(
            {"sharing": "layer", "layer_norms": True}, 4_031_488, "original form with its 65,536 layer norm scalars"
        ),
        "pfeiffer": Variant({"sharing": "layer", "placement": "pfeiffer"}, 1_982_976, "one per block, behind the MLP"),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(train=PE_RSITR_TRAIN),
        "official": Preset(
            method={"sharing": "layer", "init": "near_identity", "layer_norms": True},
            train={
                "optimizer": "adamw",
                "lr": 3e-4,
                "weight_decay": 0.01,
                "eps": 1e-6,
                "schedule": "linear",
                "warmup": 0.1,
                "clip_norm": 1.0,
                "batch_size": 32,
                "epochs": 5,
            },
        ),
    }
    space = {
        "method.bottleneck": Domain("choice", (8, 16, 32, 64, 128)),
        "train.lr": Domain("loguniform", (1e-4, 3e-3)),
    }
    published = (
        Published("rsicd", PE_RSITR.format("I"), (8.73, 24.73, 37.81, 8.43, 26.02, 43.33), "0.17M", "unknown"),
        Published("rsitmd", PE_RSITR.format("II"), (13.75, 27.64, 39.96, 12.89, 40.09, 59.91), "0.17M", "unknown"),
        Published("ucm", PE_RSITR.format("III"), (10.17, 49.73, 80.08, 18.20, 62.47, 95.77), "0.17M", "unknown"),
    )

    def __init__(self, config: MethodConfig | None = None, loss: LossConfig | None = None):
        super().__init__(config, loss)
        if self._config().init == "near_identity":
            self.identity_start = False  # type: ignore[misc]  # the promise depends on the start

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with its adapters attached."""
        for tower in chosen_towers(backbone, self._config().towers):
            attach_to(tower, self._kinds(), self._config().sharing, partial(self._adapter, tower.width))
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The adapters, and the layer norms where they are asked for."""
        names = attached_names(model)
        if self._config().layer_norms:
            backbone = self._dual(model)
            names += names_in(model, backbone, _norms(backbone))
        return names

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """2 W r + r + W per adapter, and 2 W per layer norm where these are trained."""
        config, branches = self._config(), len(self._kinds())
        total = sum(
            modules_in(tower, branches, config.sharing) * bottleneck_size(tower.width, config.bottleneck)
            for tower in chosen_towers(backbone, config.towers)
        )
        return total + (count(backbone, _norms(backbone)) if config.layer_norms else 0)

    def _adapter(self, width: int) -> BottleneckAdapter:
        config = self._config()
        adapter = BottleneckAdapter(
            width, config.bottleneck, reads="out", activation=config.activation, dropout=config.dropout
        )
        start_as_lora(adapter.down, adapter.up)
        if config.init == "near_identity":
            for layer in (adapter.down, adapter.up):
                assert isinstance(layer, nn.Linear)
                nn.init.trunc_normal_(layer.weight, std=NEAR_IDENTITY, a=-2 * NEAR_IDENTITY, b=2 * NEAR_IDENTITY)
        return adapter

    def _kinds(self) -> tuple[BranchKind, ...]:
        return BRANCHES if self._config().placement == "houlsby" else ("mlp",)

    def _config(self) -> AdapterConfig:
        assert isinstance(self.config, AdapterConfig)
        return self.config


def _norms(backbone: DualEncoder) -> list[str]:
    """Names of the scales and shifts of the towers' layer norms; joining heads are trained anyway."""
    new = set(backbone.new_parameters())
    names = (
        f"{path}.{name}"
        for path, module in backbone.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters()
    )
    return [name for name in names if name not in new]
