"""LoRA: low-rank updates of the attention (and MLP) matrices, through the `peft` library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

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


class Lora(Method):
    """W + (alpha / rank) B A with B zero at the start, on q, k, v and output projections by default (Hu et al. 2022).

    open_clip packs q, k and v into one matrix and reads the output projection's weight directly, so `peft` has to wrap the
    whole attention module; naming `out_proj` would train nothing.
    """

    title = "LoRA"
    paper = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022"
    code = "huggingface/peft"
    licence = "Apache-2.0"
    Config = LoraConfig
    identity_start = True
    presets = {"matched": Preset(train={"lr": 1e-3})}
    space = {"method.rank": Domain("choice", (2, 4, 8, 16, 32)), "train.lr": Domain("loguniform", (1e-4, 3e-3))}

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with LoRA layers injected in place."""
        import peft

        config = self._config()
        targets = self._targets(backbone)
        if config.dropout and any(isinstance(backbone.get_submodule(t), nn.MultiheadAttention) for t in targets):
            raise MethodError(
                f"method lora: dropout {config.dropout} on {backbone.name}, whose attention is packed; peft merges the update into "
                "the weights there, which leaves no input to drop. Set method.lora.dropout=0 or method.lora.targets=mlp"
            )
        peft.inject_adapter_in_model(
            peft.LoraConfig(
                r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets
            ),
            backbone,
        )
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
