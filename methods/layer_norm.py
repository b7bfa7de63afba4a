"""LayerNorm tuning: scale and shift of every layer norm are trained, nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import Domain, Method, MethodConfig, PeftFormat, Preset, Variant, names_in
from petlbench.methods.layers.bottleneck import Towers, chosen_towers
from petlbench.methods.layers.peft_names import peft_format
from petlbench.methods.layers.places import ends, tower_names, under


class LayerNormConfig(MethodConfig):
    """Where layer norms are trained."""

    towers: Towers = "both"


class LayerNormTuning(Method):
    """Weight and bias of the layer norms in and around the blocks (Zhao et al. 2024)."""

    title = "LayerNorm tuning"
    paper = "Zhao et al., Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning, ICLR 2024"
    code = "huggingface/peft"
    licence = "Apache-2.0"
    family = "selective"
    Config = LayerNormConfig
    identity_start = True
    choices = (
        "No retrieval paper of the field has this row; the learning rate of `matched` is ours.",
        "Preset `paper` is the common protocol unchanged: neither code nor the training settings of the paper could be read, so "
        "none of its numbers are the authors'.",
        "All norms of both towers are trained, those at the ends included; the paper's are those of a language model.",
    )
    variants = {
        "all": Variant({}, 65_536, "every layer norm of both towers"),
        "image": Variant({"towers": "image"}, 39_936, "vision tower"),
        "text": Variant({"towers": "text"}, 25_600, "text tower"),
    }
    presets = {"matched": Preset(train={"lr": 1e-3}), "paper": Preset()}
    space = {
        "method.towers": Domain("choice", ("image", "text", "both")),
        "train.lr": Domain("loguniform", (1e-4, 1e-2)),
    }

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone itself."""
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """Weights and biases of the norms."""
        backbone = self._dual(model)
        inside = tower_names(backbone, self._config().towers)
        norms = [n for n, m in backbone.named_modules() if isinstance(m, nn.LayerNorm) and under(n, inside)]
        wanted = [f"{norm}.{name}" for norm in norms for name, _ in backbone.get_submodule(norm).named_parameters()]
        return names_in(model, backbone, wanted)

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """2 W per norm: two in every block, and those before and behind the blocks."""
        total = 0
        for tower in chosen_towers(backbone, self._config().towers):
            edge = ends(backbone, tower)
            total += 2 * tower.width * (2 * tower.depth + len(edge.first_norm) + len(edge.final_norm))
        return total

    def peft_format(self, model: nn.Module) -> PeftFormat:
        """peft's LNTuning, which keeps a tuned copy beside every norm."""
        keys = {}
        for name in self.trainable(model):
            norm, _, part = name.rpartition(".")
            keys[name] = f"{norm}.ln_tuning_layers.default.{part}"
        return peft_format(self._dual(model), keys, {"peft_type": "LN_TUNING"})

    def _config(self) -> LayerNormConfig:
        assert isinstance(self.config, LayerNormConfig)
        return self.config
