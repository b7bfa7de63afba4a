"""LoRA on a frozen ViLT: `peft` injects low-rank updates into the linear layers of its joint blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from petlbench.methods.backbones.vilt import ViltEncoder
from petlbench.methods.base import Domain, PeftFormat, Preset, Variant
from petlbench.methods.layers.low_rank import low_rank_names
from petlbench.methods.layers.vilt_pairs import ITM_CHOICE, MATCHED_RATE, FrozenViltConfig, ViltMethod, peft_pairs
from petlbench.methods.lora import Lora

Targets = Literal["qv", "qkv", "qkvo", "mlp", "all"]


class ViltLoraConfig(FrozenViltConfig):
    """Rank, scale and place of the updates."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the input of the update."""
    targets: Targets = "qv"
    """Letters of the attention projections, both layers of the MLP, or ``all``: these six."""


class ViltLora(ViltMethod):
    """W + (alpha / rank) B A with B zero at the start, on q and v of every joint block by default (Hu et al. 2022)."""

    title = "ViLT + LoRA"
    paper = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022"
    code = "huggingface/peft"
    licence = "Apache-2.0"
    Config = ViltLoraConfig
    identity_start = True
    choices = (
        "No published row of LoRA on a ViLT for retrieval was found: this is a baseline of this project.",
        "Preset `paper` is that of `lora`: the authors' script for sentence pairs on RoBERTa base, with rank 8 on q and v.",
        "The ranking head is trained besides; the pooler before it stays frozen unless train_pooler says otherwise.",
        ITM_CHOICE,
        MATCHED_RATE,
    )
    variants = {
        "r4_qv": Variant({"rank": 4}, 148_225, "147,456 and the head of 769, as in every row"),
        "r8_qv": Variant({}, 295_681, "294,912 without the head"),
        "r16_qv": Variant({"rank": 16}, 590_593, "589,824 without the head"),
        "r8_qkvo": Variant({"targets": "qkvo"}, 590_593, "589,824 without the head"),
        "r8_all": Variant({"targets": "all"}, 1_327_873, "all six linear layers; 1,327,104 without the head"),
        "r8_qv_pooler": Variant({"train_pooler": True}, 886_273, "the pooler's 590,592 outweigh the updates"),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(method={"rank": 8, "alpha": 16.0, "targets": "qv"}, train=Lora.presets["paper"].train),
    }
    space = {
        "method.rank": Domain("choice", (2, 4, 8, 16, 32)),
        "method.targets": Domain("choice", ("qv", "qkvo", "all")),
        "train.lr": Domain("loguniform", (1e-4, 3e-3)),
    }

    def extend(self, vilt: ViltEncoder) -> nn.Module:
        """The ViLT with LoRA layers injected in place."""
        import peft

        config = self._config()
        settings: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=self._places(vilt), **settings), vilt)
        return vilt

    def tuned(self, model: nn.Module) -> Iterable[str]:
        """The A and B matrices."""
        return low_rank_names(model)

    def expected_tuned(self, vilt: ViltEncoder) -> int:
        """r (in + out) per linear layer."""
        layers: list[Any] = [vilt.get_submodule(name) for name in self._places(vilt)]
        return sum(self._config().rank * (layer.in_features + layer.out_features) for layer in layers)

    def added_at_inference(self, added: int) -> int:
        """None: the update merges into the weights."""
        return 0

    def peft_format(self, model: nn.Module) -> PeftFormat | None:
        """peft's LoRA on ``transformers.ViltForImageAndTextRetrieval``, whose module names are the same."""
        config = self._config()
        entries = {
            "peft_type": "LORA",
            "bias": "none",
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
        }
        return peft_pairs(self, model, {name: name for name in self.tuned(model)}, entries)

    def _places(self, vilt: ViltEncoder) -> list[str]:
        """Names of the linear layers that get an update."""
        targets = self._config().targets
        letters = "qkvo" if targets == "all" else targets if targets != "mlp" else ""
        found: list[str] = []
        for index in range(vilt.joint.depth):
            projections = vilt.joint.linears(index, "attention")
            found += [name for letter, name in zip("qkvo", projections, strict=True) if letter in letters]
            found += vilt.joint.linears(index, "mlp") if targets in ("mlp", "all") else []
        return found

    def _config(self) -> ViltLoraConfig:
        assert isinstance(self.config, ViltLoraConfig)
        return self.config
