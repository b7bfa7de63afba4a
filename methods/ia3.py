"""(IA)3: learned factors on keys, values and the hidden layer of every MLP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import Domain, Method, MethodConfig, PeftFormat, Preset, Variant
from petlbench.methods.layers.bottleneck import Towers, chosen_towers
from petlbench.methods.layers.low_rank import Targets
from petlbench.methods.layers.packed_attention import PackedAttention
from petlbench.methods.layers.peft_names import peft_format
from petlbench.methods.layers.places import Places, places


class Ia3Config(MethodConfig):
    """Where the factors act."""

    targets: Targets = "both"
    """``attention``: keys and values. ``mlp``: the input of the MLP's second layer. ``both``: the paper's three."""
    towers: Towers = "both"


class _PackedIa3(PackedAttention):
    """Packed attention whose keys and values are multiplied by (W,) factors that start at one."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__(attention)
        self.ia3_l = nn.ParameterDict({part: torch.ones(self.width) for part in "kv"})

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, W) input to queries and scaled keys and values, (B, N, W) each."""
        q, k, v = super().qkv(x)
        return q, k * self.ia3_l["k"], v * self.ia3_l["v"]


class Ia3(Method):
    """k, v and the activated hidden layer of the MLP, each times a learned vector (Liu et al. 2022).

    peft refuses nn.MultiheadAttention for this method, so packed attention has a module of its own; linear layers are
    peft's, where keys and values are scaled with their biases, as here.
    """

    title = "(IA)3"
    paper = "Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, NeurIPS 2022"
    code = "huggingface/peft"
    licence = "Apache-2.0"
    family = "reparameterisation"
    Config = Ia3Config
    identity_start = True
    choices = (
        "No retrieval paper of the field has an (IA)3 row; the learning rate of `matched` is ours.",
        "Preset `paper` is the few-shot language recipe of r-three/t-few (T0 with configs/ia3.json), the same for every task; "
        "its pre-training of the factors is left out.",
        "Adam without first moment stands in for that recipe's Adafactor, which keeps none and scales each step with the "
        "size of the factors, which is about one.",
        "Its 1,000 steps on a few dozen examples have no counterpart, so the number of epochs is the common one.",
        "No weight decay: it would pull the factors to zero, not to one, where they start.",
    )
    variants = {
        "paper": Variant({}, 92_160, "keys, values and hidden layer: 6 W per block"),
        "attention": Variant({"targets": "attention"}, 30_720, "keys and values alone: 2 W per block"),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-2, "weight_decay": 0.0}),
        "paper": Preset(
            train={
                "optimizer": "adam",
                "lr": 3e-3,
                "betas": (0.0, 0.999),
                "weight_decay": 0.0,
                "schedule": "linear",
                "warmup": 0.06,
                "clip_norm": 1.0,
                "batch_size": 8,
                "precision": "bf16",
            }
        ),
    }
    space = {
        "method.targets": Domain("choice", ("attention", "mlp", "both")),
        "train.lr": Domain("loguniform", (1e-3, 3e-2)),
    }

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with factors injected in place."""
        found = self._places(backbone)
        for target in found.packed:
            attention: Any = backbone.get_submodule(target)
            backbone.set_submodule(target, _PackedIa3(attention))
        if found.linear:
            import peft

            narrowing = places(backbone, self._config().towers, mlp=(1,)).linear
            config = peft.IA3Config(
                target_modules=found.linear, feedforward_modules=[n for n in found.linear if n in set(narrowing)]
            )
            peft.inject_adapter_in_model(config, backbone)
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The factors."""
        return [name for name, _ in model.named_parameters() if ".ia3_l." in name]

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """2 W per attention and M per MLP of hidden width M."""
        config, total = self._config(), 0
        for tower in chosen_towers(backbone, config.towers):
            narrowing: Any = backbone.get_submodule(tower.linears(0, "mlp")[1])
            attention = 2 * tower.width if config.targets != "mlp" else 0
            total += tower.depth * (attention + (narrowing.in_features if config.targets != "attention" else 0))
        return total

    def added_at_inference(self, added: int) -> int:
        """None: the factors merge into the weights."""
        return 0

    def peft_format(self, model: nn.Module) -> PeftFormat | None:
        """peft's IA3, where it has one: not inside packed attention."""
        backbone = self._dual(model)
        if backbone.provenance.kind == "open_clip" and self._config().targets != "mlp":
            return None
        names = list(self.trainable(model))
        hidden = [n for n in names if dict(model.named_parameters())[n].shape[0] == 1]
        form = peft_format(backbone, {n: n for n in names}, {"peft_type": "IA3"})
        feedforward = peft_format(backbone, {n: n for n in hidden}, {}).config["target_modules"]
        return PeftFormat({**form.config, "feedforward_modules": feedforward}, form.keys)

    def _places(self, backbone: DualEncoder) -> Places:
        config = self._config()
        return places(
            backbone,
            config.towers,
            "kv" if config.targets != "mlp" else "",
            (1,) if config.targets != "attention" else (),
        )

    def _config(self) -> Ia3Config:
        assert isinstance(self.config, Ia3Config)
        return self.config
