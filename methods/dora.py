"""DoRA: LoRA on the direction of a weight matrix, with the magnitude of its rows trained apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import PositiveFloat, PositiveInt
from torch import nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import Domain, Method, MethodConfig, PeftFormat, Preset, Variant
from petlbench.methods.layers.bottleneck import Towers, chosen_towers
from petlbench.methods.layers.low_rank import (
    Projections,
    Targets,
    inject_low_rank,
    low_rank_names,
    low_rank_peft,
    low_rank_places,
    low_rank_size,
)
from petlbench.methods.layers.packed_lora import PackedDora
from petlbench.methods.layers.places import packed_parts


class DoraConfig(MethodConfig):
    """Rank, scale and place of the updates."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank."""
    targets: Targets = "attention"
    towers: Towers = "both"
    projections: Projections = "qkvo"
    """Which attention projections are updated; each is a matrix of its own."""


class Dora(Method):
    """m (W + (alpha / rank) B A) / |W + (alpha / rank) B A|, with m and the norms per output row (Liu et al. 2024).

    peft refuses nn.MultiheadAttention with use_dora, and a wrapped `out_proj` inside it would never be called, so packed
    attention has a module of its own with peft's parametrisation; linear layers are peft's.
    """

    title = "DoRA"
    paper = "Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, ICML 2024"
    code = "huggingface/peft"
    licence = "Apache-2.0"
    family = "reparameterisation"
    Config = DoraConfig
    identity_start = True
    choices = (
        "No retrieval paper of the field has a DoRA row; rank, alpha, place and learning rate of `matched` follow our "
        "LoRA.",
        "Preset `paper` is the authors' image-text setting: VL-BART on VQA, GQA, NLVR2 and COCO captions, from NVlabs/DoRA's "
        "image_video_text_understanding/VL-T5/scripts/image/dora.sh and the defaults behind it; rank 128 with scale 1.",
        "The paper's Table 9 places that setting on q and k, its code on q and v; the code is followed, in both towers. The "
        "script trains biases and layer norms besides, here they stay frozen.",
        "Inside packed attention q, k and v are decomposed one by one, which peft does not support; the input of the update "
        "has no dropout.",
    )
    variants = {
        "r8_qkvo": Variant({}, 1_044_480, "122,880 r for the updates and 61,440 magnitudes"),
        "r2_qkv": Variant({"rank": 2, "projections": "qkv"}, 230_400, "LoRA's 184,320 and 46,080 magnitudes"),
        "r8_mlp": Variant({"targets": "mlp"}, 1_305_600, "153,600 r for the updates and 76,800 magnitudes"),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(
            method={"rank": 128, "alpha": 128.0, "projections": "qv"},
            train={
                "optimizer": "adamw",
                "lr": 1e-3,
                "eps": 1e-6,
                "weight_decay": 0.01,
                "decay": "not_bias",
                "schedule": "linear",
                "warmup": 0.1,
                "clip_norm": 5.0,
                "batch_size": 300,
                "epochs": 20,
            },
        ),
    }
    space = {"method.rank": Domain("choice", (2, 4, 8, 16, 32)), "train.lr": Domain("loguniform", (1e-4, 3e-3))}

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with decomposed layers injected in place."""
        config = self._config()
        parts = packed_parts(config.projections)
        inject_low_rank(
            backbone,
            low_rank_places(backbone, config.targets, config.projections, config.towers),
            lambda attention: PackedDora(attention, config.rank, config.alpha / config.rank, parts),
            {"r": config.rank, "lora_alpha": config.alpha, "use_dora": True},
        )
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The A and B matrices and the magnitudes."""
        return low_rank_names(model)

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """r (in + out) + out per matrix."""
        config = self._config()
        total = low_rank_size(backbone, config.rank, config.targets, config.projections, config.towers)
        for tower in chosen_towers(backbone, config.towers):
            widening: Any = backbone.get_submodule(tower.linears(0, "mlp")[0])
            attention = tower.width * len(config.projections) if config.targets != "mlp" else 0
            mlp = widening.out_features + tower.width if config.targets != "attention" else 0
            total += tower.depth * (attention + mlp)
        return total

    def added_at_inference(self, added: int) -> int:
        """None: the result is again a matrix of the same shape."""
        return 0

    def peft_format(self, model: nn.Module) -> PeftFormat | None:
        """peft's LoRA with use_dora, where it has one: not inside packed attention."""
        backbone, config = self._dual(model), self._config()
        if backbone.provenance.kind == "open_clip" and config.targets != "mlp":
            return None
        entries = {"r": config.rank, "lora_alpha": config.alpha, "use_dora": True}
        return low_rank_peft(model, backbone, self.trainable(model), entries)

    def _config(self) -> DoraConfig:
        assert isinstance(self.config, DoraConfig)
        return self.config
