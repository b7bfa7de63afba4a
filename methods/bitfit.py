"""BitFit: every bias of the towers is trained, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import Domain, Method, MethodConfig, Preset, Variant, names_in
from petlbench.methods.layers.bottleneck import Towers, chosen_towers
from petlbench.methods.layers.places import ends, tower_names, under

_GLUE = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": 0.0,
    "clip_norm": 1.0,
    "batch_size": 8,
    "epochs": 16,
}
"""Defaults of the repository's run_glue.py."""


class BitFitConfig(MethodConfig):
    """Where biases are trained."""

    towers: Towers = "both"


class BitFit(Method):
    """The biases of attention, MLP and layer norms, those of the embeddings included (Ben Zaken et al. 2022)."""

    title = "BitFit"
    paper = (
        "Ben Zaken et al., BitFit: Simple Parameter-Efficient Fine-Tuning for Transformer-Based Masked LMs, ACL 2022"
    )
    code = "benzakenelad/BitFit"
    licence = "MIT"
    family = "selective"
    Config = BitFitConfig
    identity_start = True
    choices = (
        "No retrieval paper of the field has a BitFit row; preset `paper` is the repository's GLUE script with the rate of "
        "its BERT example, without weight decay and warm-up, as there.",
        "The learning rate of `matched` is ours.",
        "Biases of joining projections are left alone; joining heads of unaligned towers are trained whole, as by every method.",
    )
    variants = {
        "all": Variant({}, 171_008, "every bias of both towers"),
        "image": Variant({"towers": "image"}, 102_912, "vision tower"),
        "text": Variant({"towers": "text"}, 68_096, "text tower"),
    }
    presets = {"matched": Preset(train={"lr": 1e-3}), "paper": Preset(train=_GLUE)}
    space = {
        "method.towers": Domain("choice", ("image", "text", "both")),
        "train.lr": Domain("loguniform", (1e-4, 1e-2)),
    }

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone itself."""
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """Every bias between the inputs and the pooled outputs."""
        backbone = self._dual(model)
        inside = tower_names(backbone, self._config().towers)
        biases = [n for n, _ in backbone.named_parameters() if n.endswith("bias") and under(n, inside)]
        return names_in(model, backbone, biases)

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """(7 W + M) per block of width W and MLP width M, W per norm outside the blocks, W for a patch convolution's bias."""
        total = 0
        for tower in chosen_towers(backbone, self._config().towers):
            widening: Any = backbone.get_submodule(tower.linears(0, "mlp")[0])
            edge = ends(backbone, tower)
            outside = len(edge.first_norm) + len(edge.final_norm)
            if backbone.provenance.kind == "two_tower" and tower.modality == "image":
                outside += 1
            total += tower.depth * (7 * tower.width + widening.out_features) + outside * tower.width
        return total

    def _config(self) -> BitFitConfig:
        assert isinstance(self.config, BitFitConfig)
        return self.config
