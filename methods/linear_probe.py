"""Linear probe: both towers stay frozen, only linear maps on their outputs are trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import (
    PE_RSITR,
    Domain,
    Method,
    MethodConfig,
    Preset,
    Published,
    Variant,
    names_in,
    parameters_under,
)
from petlbench.methods.layers.places import ends, projection_size
from petlbench.methods.recipe import PE_RSITR_TRAIN


class LinearProbeConfig(MethodConfig):
    """What stands on the frozen outputs."""

    form: Literal["auto", "embedding", "two_layer", "projections", "heads"] = "auto"
    """``embedding``: one E-to-E map with bias per modality behind the pretrained projections, initialised to identity.
    ``two_layer``: two of them in a row, the size of the published row. ``projections``: the pretrained projections
    themselves, which are the joining heads of aligned towers. ``heads``: only the backbone's own joining heads. ``auto``: heads
    on unaligned towers, embedding elsewhere."""


class _Probe(nn.Module):
    def __init__(self, backbone: DualEncoder, layers: int):
        super().__init__()
        self.backbone = backbone
        self.image_map = _identity(backbone.embed_dim, layers)
        self.text_map = _identity(backbone.embed_dim, layers)


class LinearProbe(Method):
    """Frozen features and trained linear maps.

    The published tables print 1.05 M parameters without saying which maps; ours is the smallest form that keeps step 0
    at zero-shot: two E x E maps with bias (525,312 on ViT-B/32). Twice as many have the printed size.
    """

    title = "Linear probe"
    paper = "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021"
    code = "openai/CLIP"
    licence = "MIT"
    family = "head"
    Config = LinearProbeConfig
    identity_start = True
    head_only = True
    choices = (
        "The published rows print 1.05 M parameters without naming the maps; preset `paper` trains two E x E layers per "
        "modality, which have that size and start at zero-shot; one layer from E to 2 E per modality would have it too.",
        "Preset `paper`: loss and learning rate of the published rows are unknown; those of PE-RSITR's own method stand in.",
        "The learning rate of `matched` is ours.",
    )
    variants = {
        "embedding": Variant({}, 525_312, "2 (E^2 + E)"),
        "two_layer": Variant({"form": "two_layer"}, 1_050_624, "size of PE-RSITR Tab. I, which prints 1.05M"),
        "projections": Variant({"form": "projections"}, 655_360, "CLIP's own two projections trained on"),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(method={"form": "two_layer"}, train=PE_RSITR_TRAIN),
    }
    space = {"train.lr": Domain("loguniform", (1e-4, 1e-2))}
    published = (
        Published("rsicd", PE_RSITR.format("I"), (8.46, 24.41, 37.72, 7.81, 25.89, 42.47), "1.05M", "unknown"),
        Published("rsitmd", PE_RSITR.format("II"), (17.02, 33.12, 48.35, 13.33, 41.80, 63.89), "1.05M", "unknown"),
        Published("ucm", PE_RSITR.format("III"), (13.33, 52.71, 77.62, 14.43, 59.42, 90.28), "1.05M", "unknown"),
    )

    def build(self, backbone: DualEncoder) -> nn.Module:
        """Two identity-initialised maps, or nothing where the joining heads are the probe."""
        layers = {"embedding": 1, "two_layer": 2}.get(self._form(backbone), 0)
        return _Probe(backbone, layers) if layers else backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The maps, or the pretrained projections; the harness adds the joining heads."""
        backbone = self._dual(model)
        if self._form(backbone) == "projections":
            projections = [
                name for tower in (backbone.image, backbone.text) for name in ends(backbone, tower).projection
            ]
            return names_in(model, backbone, parameters_under(backbone, *projections))
        return parameters_under(model, "image_map", "text_map")

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """2 (E^2 + E) per layer of maps; (P_image + P_text) E for the projections; 0 besides the joining heads."""
        width, form = backbone.embed_dim, self._form(backbone)
        if form == "projections":
            return projection_size(backbone, backbone.image) + projection_size(backbone, backbone.text)
        return {"embedding": 2, "two_layer": 4}.get(form, 0) * (width * width + width)

    def head_image(self, model: nn.Module, pooled: Tensor) -> Tensor:
        """(B, P_image) to (B, E): pretrained projection, then the map."""
        projected = super().head_image(model, pooled)
        return model.image_map(projected) if isinstance(model, _Probe) else projected

    def head_text(self, model: nn.Module, pooled: Tensor) -> Tensor:
        """(B, P_text) to (B, E): pretrained projection, then the map."""
        projected = super().head_text(model, pooled)
        return model.text_map(projected) if isinstance(model, _Probe) else projected

    def _form(self, backbone: DualEncoder) -> str:
        form = getattr(self.config, "form", "auto")
        if form == "auto":
            return "embedding" if backbone.aligned else "heads"
        if form == "heads" and backbone.aligned:
            return "projections"  # they are pretrained, so the harness adds none by itself
        return form


def _identity(width: int, layers: int) -> nn.Module:
    """One linear layer, or several in a row, that start as the identity."""
    stack = [nn.Linear(width, width) for _ in range(layers)]
    with torch.no_grad():
        for layer in stack:
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
    return stack[0] if layers == 1 else nn.Sequential(*stack)
