"""LoRA: low-rank updates of the attention (and MLP) matrices; `peft` where a matrix is a linear layer of its own."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
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
from petlbench.methods.layers.packed_lora import PackedLora
from petlbench.methods.layers.places import packed_parts


class LoraConfig(MethodConfig):
    """Rank, scale and place of the updates."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the input of the update."""
    targets: Targets = "attention"
    towers: Towers = "both"
    projections: Projections = "qkvo"
    """Which attention projections are updated."""
    joint: bool = True
    """On packed attention (open_clip): one A and one B for q, k and v together, the form of peft's wrapper; else each
    projection has its own, as in Hu et al. Where projections are layers of their own, they always have."""

    @model_validator(mode="after")
    def _joint_takes_all(self) -> LoraConfig:
        if self.joint and self.projections != "qkvo" and self.targets != "mlp":
            raise ValueError(
                f"joint updates q, k, v and o at once, but projections is {self.projections}; set joint=false to give each "
                "projection its own update"
            )
        return self


class Lora(Method):
    """W + (alpha / rank) B A with B zero at the start, on q, k, v and output projections by default (Hu et al. 2022).

    open_clip packs q, k and v into one matrix and reads the output projection's weight directly, so the whole attention
    module has to be replaced; naming `out_proj` would train nothing.
    """

    title = "LoRA"
    paper = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022"
    code = "huggingface/peft"
    licence = "Apache-2.0"
    family = "reparameterisation"
    Config = LoraConfig
    identity_start = True
    choices = (
        "No retrieval paper of the field has a LoRA row; the learning rate of `matched` is ours.",
        "Preset `paper` is the authors' own, a language setting: RoBERTa base on MNLI, a task of sentence pairs, from "
        "microsoft/LoRA's examples/NLU/roberta_base_mnli.sh and its trainer's defaults, with rank 8 on q and v, in both towers.",
        "That script has 16 pairs on each of 8 devices and alpha 16; the paper's Table 9 prints batch 16 and alpha 8. The "
        "script is followed.",
        "By default q, k and v of packed attention share one update as in peft, so that a stored adapter opens in peft; "
        "joint=false gives each projection its own, as the paper does.",
        "peft up to 0.21.2 adds the update of a packed output projection twice (huggingface/peft pull request 3774); ours is "
        "added once, and an adapter stored from CLIP's attention is exact only in a peft that has this repaired.",
    )
    variants = {
        "joint_r8": Variant({}, 737_280, "peft's wrapper of nn.MultiheadAttention: 6 W r per block"),
        "r2_qkv": Variant({"rank": 2, "projections": "qkv", "joint": False}, 184_320, "size ladder, 0.16 to 0.18 M"),
        "r4_qv": Variant({"rank": 4, "projections": "qv", "joint": False}, 245_760, "q and v, as in the LoRA paper"),
        "r8_qv": Variant({"rank": 8, "projections": "qv", "joint": False}, 491_520, "size ladder, 0.45 to 0.55 M"),
        "r16_qv": Variant({"rank": 16, "projections": "qv", "joint": False}, 983_040, "q and v"),
        "r16_qkvo": Variant({"rank": 16, "joint": False}, 1_966_080, "size ladder, 1.9 to 2.0 M"),
        "r1_qv": Variant({"rank": 1, "projections": "qv", "joint": False}, 61_440, "per unit of rank"),
        "r1_qkv": Variant({"rank": 1, "projections": "qkv", "joint": False}, 92_160, "per unit of rank"),
        "r1_qkvo": Variant({"rank": 1, "joint": False}, 122_880, "per unit of rank"),
        "r1_mlp": Variant({"rank": 1, "targets": "mlp"}, 153_600, "per unit of rank, both MLP matrices"),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(
            method={"rank": 8, "alpha": 16.0, "projections": "qv", "joint": False},
            train={
                "optimizer": "adamw",
                "lr": 5e-4,
                "weight_decay": 0.1,
                "schedule": "linear",
                "warmup": 0.06,
                "clip_norm": 1.0,
                "batch_size": 128,
                "epochs": 30,
            },
        ),
    }
    space = {"method.rank": Domain("choice", (2, 4, 8, 16, 32)), "train.lr": Domain("loguniform", (1e-4, 3e-3))}

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with LoRA layers injected in place."""
        config = self._config()
        parts = ("in_proj", "out_proj") if config.joint else packed_parts(config.projections)
        inject_low_rank(
            backbone,
            low_rank_places(backbone, config.targets, config.projections, config.towers),
            lambda attention: PackedLora(attention, config.rank, config.alpha / config.rank, parts, config.dropout),
            {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout},
        )
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The A and B matrices."""
        return low_rank_names(model)

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """r (in + out) per matrix; joint updates of an attention of width W count 4 W r for q, k, v and 2 W r for o."""
        config = self._config()
        total = low_rank_size(backbone, config.rank, config.targets, config.projections, config.towers)
        if self._is_joint(backbone) and config.targets != "mlp":
            total -= sum(2 * t.depth * t.width * config.rank for t in chosen_towers(backbone, config.towers))
        return total

    def added_at_inference(self, added: int) -> int:
        """None: the update merges into the weights."""
        return 0

    def peft_format(self, model: nn.Module) -> PeftFormat | None:
        """peft's LoRA; its wrapper of packed attention knows joint updates only."""
        backbone, config = self._dual(model), self._config()
        if backbone.provenance.kind == "open_clip" and not config.joint and config.targets != "mlp":
            return None
        entries = {"r": config.rank, "lora_alpha": config.alpha}
        return low_rank_peft(model, backbone, self.trainable(model), entries)

    def _is_joint(self, backbone: DualEncoder) -> bool:
        return self._config().joint and backbone.provenance.kind == "open_clip"

    def _config(self) -> LoraConfig:
        assert isinstance(self.config, LoraConfig)
        return self.config
