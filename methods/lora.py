"""LoRA: low-rank updates of the attention (and MLP) matrices; `peft` where a matrix is a linear layer of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call

from petlbench.methods.backbones.base import DualEncoder, Tower
from petlbench.methods.base import Domain, Method, MethodConfig, MethodError, Preset


class LoraConfig(MethodConfig):
    """Rank, scale and place of the updates."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the input of the update. Packed attention (open_clip) merges weights before use, so there it must be 0."""
    targets: Literal["attention", "mlp", "both"] = "attention"
    towers: Literal["image", "text", "both"] = "both"


class _PackedLora(nn.Module):
    """An ``nn.MultiheadAttention`` whose packed q, k, v matrix and output matrix each get a low-rank update.

    Same form as peft's wrapper for this module: one A and one B of 3 W rows for q, k and v together. Peft adds the update
    to the frozen weights before each pass and subtracts it after, and the rounding stays behind; here the sum is made
    anew, so the frozen weights never change.
    """

    def __init__(self, attention: nn.MultiheadAttention, rank: int, scale: float):
        super().__init__()
        width = attention.embed_dim
        self.base_layer = attention
        self.scale = scale
        self.lora_A = nn.ParameterDict({k: _kaiming(rank, width) for k in ("in_proj", "out_proj")})
        self.lora_B = nn.ParameterDict({"in_proj": torch.zeros(3 * width, rank), "out_proj": torch.zeros(width, rank)})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As ``nn.MultiheadAttention``, with both matrices updated."""
        base = self.base_layer
        weights = {
            "in_proj_weight": self._updated(base.in_proj_weight, "in_proj"),
            "out_proj.weight": self._updated(base.out_proj.weight, "out_proj"),
        }
        return functional_call(base, weights, args, kwargs)

    def _updated(self, weight: Tensor, name: str) -> Tensor:
        # In bf16 a small update would be lost in the sum; the attention casts the result itself.
        with torch.autocast(weight.device.type, enabled=False):
            return torch.addmm(weight, self.lora_B[name], self.lora_A[name], alpha=self.scale)


def _kaiming(rank: int, width: int) -> Tensor:
    return nn.init.kaiming_uniform_(torch.empty(rank, width), a=math.sqrt(5))


class Lora(Method):
    """W + (alpha / rank) B A with B zero at the start, on q, k, v and output projections by default (Hu et al. 2022).

    open_clip packs q, k and v into one matrix and reads the output projection's weight directly, so the whole attention
    module has to be wrapped; naming `out_proj` would train nothing.
    """

    title = "LoRA"
    paper = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022"
    code = "huggingface/peft"
    licence = "Apache-2.0"
    family = "reparameterisation"
    Config = LoraConfig
    identity_start = True
    presets = {"matched": Preset(train={"lr": 1e-3})}
    space = {"method.rank": Domain("choice", (2, 4, 8, 16, 32)), "train.lr": Domain("loguniform", (1e-4, 3e-3))}

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with LoRA layers injected in place."""
        config = self._config()
        linear: list[str] = []
        packed: list[str] = []
        for target in self._targets(backbone):
            (packed if isinstance(backbone.get_submodule(target), nn.MultiheadAttention) else linear).append(target)
        if config.dropout and packed:
            raise MethodError(
                f"method lora: dropout {config.dropout} on {backbone.name}, whose attention is packed; the update is summed "
                "into the weights there, which leaves no input to drop. Set method.lora.dropout=0 or method.lora.targets=mlp"
            )
        for target in packed:
            attention: Any = backbone.get_submodule(target)
            backbone.set_submodule(target, _PackedLora(attention, config.rank, config.alpha / config.rank))
        if linear:
            import peft

            injected = peft.LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,  # type: ignore[arg-type]  # annotated int, used as a factor
                lora_dropout=config.dropout,
                target_modules=linear,
            )
            peft.inject_adapter_in_model(injected, backbone)
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The A and B matrices."""
        return [name for name, _ in model.named_parameters() if ".lora_A." in name or ".lora_B." in name]

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """r (in + out) per matrix; a packed attention of width d counts 4 d r for q, k, v and 2 d r for the output."""
        total = 0
        for target in self._targets(backbone):
            module = backbone.get_submodule(target)
            if isinstance(module, nn.MultiheadAttention):
                total += self._config().rank * 6 * module.embed_dim
            else:
                assert isinstance(module, nn.Linear)
                total += self._config().rank * (module.in_features + module.out_features)
        return total

    def added_at_inference(self, added: int) -> int:
        """None: the update merges into the weights."""
        return 0

    def _config(self) -> LoraConfig:
        assert isinstance(self.config, LoraConfig)
        return self.config

    def _targets(self, backbone: DualEncoder) -> list[str]:
        config = self._config()
        names: list[str] = []
        towers: list[Tower] = [backbone.image, backbone.text]
        for tower in towers:
            if config.towers not in (tower.modality, "both"):
                continue
            for index in range(tower.depth):
                if config.targets in ("attention", "both"):
                    names += tower.linears(index, "attention")
                if config.targets in ("mlp", "both"):
                    names += tower.linears(index, "mlp")
        return names
