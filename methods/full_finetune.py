"""Full fine-tuning: every parameter is trained; the cost that PETL wants to avoid."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import PE_RSITR, Domain, Method, Preset, Published, Variant
from petlbench.methods.recipe import PE_RSITR_TRAIN

_VSE2 = "Pan et al., PIR, ACM MM 2023, Tab. 1: VSE2 (CL), Swin-T and BERT-base on the 80/20 split"


class FullFinetune(Method):
    """All weights of both towers, the projections and the temperature."""

    title = "Full fine-tuning"
    paper = "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021"
    code = "openai/CLIP"
    licence = "MIT"
    family = "baseline"
    kinds = ("open_clip", "two_tower", "swin_bert")
    identity_start = True
    choices = (
        "No paper of the field states the learning rate of its full fine-tuning row; preset `paper` keeps PE-RSITR's recipe but "
        "for the rate of 4e-6, which is that of a public reimplementation's README.",
        "Preset `paper`: whether the published row was trained with PE-RSITR's recipe and which loss it had is unknown.",
        "The learning rate of `matched` is ours.",
    )
    variants = {"all": Variant({}, 151_277_313, "every parameter, the temperature included")}
    presets = {
        "matched": Preset(train={"lr": 1e-5, "new_lr": 1e-3, "weight_decay": 0.1}),
        "paper": Preset(train={**PE_RSITR_TRAIN, "lr": 4e-6}),
    }
    space = {"train.lr": Domain("loguniform", (1e-6, 1e-4))}
    published = (
        Published("rsicd", PE_RSITR.format("I"), (13.54, 30.83, 43.46, 11.55, 33.14, 49.83), "151M", "unknown"),
        Published("rsitmd", PE_RSITR.format("II"), (24.16, 47.12, 61.28, 20.40, 50.53, 68.54), "151M", "unknown"),
        Published("ucm", PE_RSITR.format("III"), (17.14, 55.24, 79.52, 13.90, 56.95, 91.81), "151M", "unknown"),
        Published("rsicd", _VSE2, (10.52, 25.07, 36.78, 6.11, 23.64, 38.28), "137M", "test"),
        Published("rsitmd", _VSE2, (16.15, 40.04, 53.10, 10.75, 38.98, 60.18), "137M", "test"),
    )

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone itself."""
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """Everything."""
        return [name for name, _ in model.named_parameters()]

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """Every parameter of the backbone, its new joining heads left out."""
        new = set(backbone.new_parameters())
        return sum(p.numel() for n, p in backbone.named_parameters() if n not in new)
