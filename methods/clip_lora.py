"""CLIP-LoRA: LoRA on the attention of both encoders with one fixed small setting."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import Domain, Method, MethodConfig, MethodError, PeftFormat, Preset, Variant
from petlbench.methods.layers.bottleneck import Towers
from petlbench.methods.layers.low_rank import (
    Projections,
    inject_low_rank,
    low_rank_names,
    low_rank_peft,
    low_rank_places,
    low_rank_size,
)
from petlbench.methods.layers.openai_clip import require_quick_gelu
from petlbench.methods.layers.packed_lora import PackedLora
from petlbench.methods.layers.places import packed_parts
from petlbench.methods.official import OfficialState

_OFFICIAL_PARTS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}


class ClipLoraConfig(MethodConfig):
    """The authors' fixed setting."""

    rank: PositiveInt = 2
    alpha: PositiveFloat = 1.0
    """The update is scaled by alpha / sqrt(rank)."""
    dropout: float = Field(0.25, ge=0, lt=1)
    """On the input of the update, drawn for each projection on its own."""
    projections: Projections = "qkv"
    towers: Towers = "both"


class ClipLora(Method):
    """W + (alpha / sqrt(r)) B A on q, k and v of every block of both encoders (Zanella and Ben Ayed 2024).

    The scale is the code's; LoRA's own is alpha / r.
    """

    title = "CLIP-LoRA"
    paper = "Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, CVPR Workshops 2024"
    code = "MaxZanella/CLIP-LoRA"
    licence = "none stated"
    family = "reparameterisation"
    Config = ClipLoraConfig
    identity_start = True
    official = (
        "weights.layer_N.{q,k,v,}_proj.w_lora_{A,B} as saved by loralib/utils.py, text blocks first, then image blocks; "
        "the nested table's keys joined by dots"
    )
    choices = (
        "The method was made for few-shot classification; no retrieval paper of the field has a row for it.",
        "Preset `paper` keeps optimiser, rate, decay, batch, schedule and augmentation; its 500 steps per shot have no "
        "counterpart, so the number of epochs is the common one, and its half-precision autocast is run in fp32.",
        "The learning rate of `matched` is ours.",
        "On towers with separate projections peft's rank-stabilised LoRA is used, which has the same scale.",
    )
    variants = {"official": Variant({}, 184_320, "the authors' defaults: rank 2 on q, k and v of 24 blocks")}
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(
            train={
                "optimizer": "adamw",
                "lr": 2e-4,
                "weight_decay": 1e-2,
                "decay": "all",
                "batch_size": 32,
                "schedule": "cosine",
                "final_lr": 1e-6,
                "warmup": 0.0,
                "clip_norm": 0.0,
                "augmentation": {"random_resized_crop": (0.08, 1.0), "horizontal_flip": 0.5},
            }
        ),
    }
    space = {"method.rank": Domain("choice", (2, 4, 8, 16)), "train.lr": Domain("loguniform", (1e-4, 3e-3))}

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with low-rank updates beside its attention projections."""
        config = self._config()
        parts, scale = packed_parts(config.projections), config.alpha / math.sqrt(config.rank)
        inject_low_rank(
            backbone,
            low_rank_places(backbone, "attention", config.projections, config.towers),
            lambda attention: PackedLora(attention, config.rank, scale, parts, config.dropout),
            {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "use_rslora": True},
        )
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The A and B matrices."""
        return low_rank_names(model)

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """2 W r per projection."""
        config = self._config()
        return low_rank_size(backbone, config.rank, "attention", config.projections, config.towers)

    def added_at_inference(self, added: int) -> int:
        """None: the update merges into the weights."""
        return 0

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """The authors' saved updates; they number text blocks before image blocks.

        Raises:
            MethodError: The backbone's attention is not packed, or the file was trained with another scale.
        """
        backbone, config = self._dual(model), self._config()
        if backbone.provenance.kind != "open_clip":
            raise MethodError(
                f"method clip_lora: {state.source} is for CLIP's towers, and {backbone.name} is "
                f"{backbone.provenance.kind}; choose an open_clip backbone"
            )
        require_quick_gelu(backbone, state)
        for setting, ours in (("r", float(config.rank)), ("alpha", config.alpha)):
            key = f"metadata.{setting}"
            if key in state and float(theirs := state.take(key)) != ours:
                name = "rank" if setting == "r" else setting
                raise MethodError(
                    f"method clip_lora: {state.source} was trained with {name} {float(theirs):g}, the model has {ours:g}; "
                    f"set method.clip_lora.{name}={float(theirs):g}"
                )
        state.drop(r"metadata\..*", "a setting, not a weight")
        towers = [t for t in (backbone.text, backbone.image) if config.towers in (t.modality, "both")]
        attentions = [name for tower in towers for i in range(tower.depth) for name in tower.linears(i, "attention")]
        return {
            f"{name}.lora_{matrix}.{part}": state.take(f"weights.layer_{i}.{_OFFICIAL_PARTS[letter]}.w_lora_{matrix}")
            for i, name in enumerate(attentions)
            for letter, part in zip(config.projections, packed_parts(config.projections), strict=True)
            for matrix in "AB"
        }

    def peft_format(self, model: nn.Module) -> PeftFormat | None:
        """peft's rank-stabilised LoRA where projections are layers of their own; its packed wrapper has no such form."""
        backbone, config = self._dual(model), self._config()
        if backbone.provenance.kind == "open_clip":
            return None
        entries = {"r": config.rank, "lora_alpha": config.alpha, "use_rslora": True}
        return low_rank_peft(model, backbone, self.trainable(model), entries)

    def _config(self) -> ClipLoraConfig:
        assert isinstance(self.config, ClipLoraConfig)
        return self.config
