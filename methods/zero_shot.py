"""Zero-shot: the pretrained model as it is; the row that every trained method has to beat."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import PE_RSITR, Method, Preset, Published, Variant


class ZeroShot(Method):
    """Cosine of the two projected features of the untouched backbone, raw captions (Radford et al. 2021)."""

    title = "Zero-shot"
    paper = "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021"
    code = "openai/CLIP"
    licence = "MIT"
    family = "baseline"
    choices = ("Captions are encoded as they are, without a prompt template.",)
    variants = {"all": Variant({}, 0, "nothing is trained")}
    presets = {"matched": Preset(), "paper": Preset()}
    trains = False
    needs_alignment = True
    identity_start = True
    head_only = True
    published = (
        Published("rsicd", PE_RSITR.format("I"), (6.77, 15.37, 23.15, 5.01, 15.75, 24.21), "0", "unknown"),
        Published("rsitmd", PE_RSITR.format("II"), (9.29, 26.33, 37.39, 7.79, 23.67, 38.89), "0", "unknown"),
        Published("ucm", PE_RSITR.format("III"), (10.95, 34.76, 55.71, 7.33, 35.14, 54.57), "0", "unknown"),
    )

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone itself."""
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """Nothing."""
        return ()

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """Zero."""
        return 0
