"""Linear probe: both towers stay frozen, only linear maps on their outputs are trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import PE_RSITR, Domain, Method, MethodConfig, Preset, Published, parameters_under


class LinearProbeConfig(MethodConfig):
    """What stands on the frozen outputs."""

    form: Literal["auto", "embedding", "heads"] = "auto"
    """``embedding``: one E-to-E map with bias per modality behind the pretrained projections, initialised to identity.
    ``heads``: only the backbone's own joining heads. ``auto``: heads on unaligned towers, embedding elsewhere."""


class _Probe(nn.Module):
    def __init__(self, backbone: DualEncoder):
        super().__init__()
        self.backbone = backbone
        self.image_map = _identity(backbone.embed_dim)
        self.text_map = _identity(backbone.embed_dim)


class LinearProbe(Method):
    """Frozen features and trained linear maps.

    The published tables print 1.05 M parameters without saying which maps; ours is the smallest form that keeps step 0
    at zero-shot: two E x E maps with bias (525,312 on ViT-B/32).
    """

    title = "Linear probe"
    paper = "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021"
    code = "openai/CLIP"
    licence = "MIT"
    family = "head"
    Config = LinearProbeConfig
    identity_start = True
    head_only = True
    presets = {"matched": Preset(train={"lr": 1e-3})}
    space = {"train.lr": Domain("loguniform", (1e-4, 1e-2))}
    published = (
        Published("rsicd", PE_RSITR.format("I"), (8.46, 24.41, 37.72, 7.81, 25.89, 42.47), "1.05M", "unknown"),
        Published("rsitmd", PE_RSITR.format("II"), (17.02, 33.12, 48.35, 13.33, 41.80, 63.89), "1.05M", "unknown"),
        Published("ucm", PE_RSITR.format("III"), (13.33, 52.71, 77.62, 14.43, 59.42, 90.28), "1.05M", "unknown"),
    )

    def build(self, backbone: DualEncoder) -> nn.Module:
        """Two identity-initialised maps, or nothing where the joining heads are the probe."""
        return backbone if self._heads(backbone) else _Probe(backbone)

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The maps; the harness adds the joining heads."""
        return parameters_under(model, "image_map", "text_map")

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """2 (E^2 + E), or 0 besides the joining heads."""
        width = backbone.embed_dim
        return 0 if self._heads(backbone) else 2 * (width * width + width)

    def head_image(self, model: nn.Module, pooled: Tensor) -> Tensor:
        """(B, P_image) to (B, E): pretrained projection, then the map."""
        projected = super().head_image(model, pooled)
        return model.image_map(projected) if isinstance(model, _Probe) else projected

    def head_text(self, model: nn.Module, pooled: Tensor) -> Tensor:
        """(B, P_text) to (B, E): pretrained projection, then the map."""
        projected = super().head_text(model, pooled)
        return model.text_map(projected) if isinstance(model, _Probe) else projected

    def _heads(self, backbone: DualEncoder) -> bool:
        form = getattr(self.config, "form", "auto")
        return form == "heads" or (form == "auto" and not backbone.aligned)


def _identity(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    with torch.no_grad():
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer
