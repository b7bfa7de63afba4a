"""CLIP-Adapter: a small residual network on the embeddings of the frozen model."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import (
    PE_RSITR,
    Domain,
    Method,
    MethodConfig,
    MethodError,
    Preset,
    Published,
    Variant,
    parameters_under,
)
from petlbench.methods.layers.bottleneck import Towers
from petlbench.methods.layers.openai_clip import require_openai_clip
from petlbench.methods.official import OfficialState
from petlbench.methods.recipe import PE_RSITR_TRAIN


class ClipAdapterConfig(MethodConfig):
    """Size of the network and its share in the embedding."""

    reduction: PositiveInt = 2
    """The hidden layer has E / reduction units; 2 has the size of the published table, the original has 4."""
    ratio: float = Field(0.2, ge=0, le=1)
    """Share a of the adapted embedding."""
    towers: Towers = "both"
    """Which embeddings are adapted; the original's code adapts those of pictures."""
    final_relu: bool = True
    """ReLU after the second layer, as in the original, so that what is added is never negative."""


class _FeatureAdapter(nn.Module):
    """``(1 - a) f + a relu(up(relu(down(f))))`` without biases."""

    def __init__(self, width: int, hidden: int, ratio: float, final_relu: bool):
        super().__init__()
        self.ratio = ratio
        self.final_relu = final_relu
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, E) to (B, E)."""
        adapted = self.up(F.relu(self.down(features)))
        if self.final_relu:
            adapted = F.relu(adapted)
        return (1 - self.ratio) * features + self.ratio * adapted


class _Adapted(nn.Module):
    def __init__(self, backbone: DualEncoder, image: nn.Module | None, text: nn.Module | None):
        super().__init__()
        self.backbone = backbone
        self.image_adapter = image
        self.text_adapter = text


class ClipAdapter(Method):
    """``(1 - a) f + a A(f)`` on the projected embedding f, A two layers without bias, each followed by ReLU (Gao et al.).

    Step 0 is not zero-shot: A starts at random with weight a = 0.2. The published retrieval rows print 0.52 M parameters,
    which is both modalities with a hidden layer of half the width (524,288); the original has a quarter (262,144), and its
    code adapts pictures only (131,072).
    """

    title = "CLIP-Adapter"
    paper = "Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters, arXiv 2110.04544"
    code = "gaopengcuhk/CLIP-Adapter"
    licence = "none"
    family = "head"
    official = "state dict of the repository's Adapter: fc.0.weight and fc.2.weight"
    Config = ClipAdapterConfig
    head_only = True
    choices = (
        "Preset `paper`: both modalities at reduction 2 are inferred from the printed 0.52 M; ratio, loss and learning rate "
        "of the published rows are unknown, and 0.2 and the recipe of PE-RSITR's own method stand in.",
        "The text adapter has the form of the picture adapter and the same ratio; the released code has none.",
        "Preset `official` sets the released form only: the repository holds no training settings, so it trains as `matched`.",
        "Where the final ReLU hurts a retrieval space, final_relu=false leaves it out; it is on as in the original.",
        "The learning rate of `matched` is ours.",
    )
    variants = {
        "reduction_2": Variant({}, 524_288, "size of PE-RSITR Tab. I"),
        "reduction_4": Variant({"reduction": 4}, 262_144, "original width, both modalities"),
        "official": Variant({"reduction": 4, "towers": "image"}, 131_072, "released code: pictures only"),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(train=PE_RSITR_TRAIN),
        "official": Preset(method={"reduction": 4, "towers": "image"}, train={"lr": 1e-3}),
    }
    space = {
        "method.reduction": Domain("choice", (1, 2, 4, 8)),
        "method.ratio": Domain("choice", (0.2, 0.4, 0.6, 0.8)),
        "train.lr": Domain("loguniform", (1e-4, 3e-3)),
    }
    published = (
        Published("rsicd", PE_RSITR.format("I"), (7.11, 19.48, 31.01, 7.67, 24.87, 39.73), "0.52M", "unknown"),
        Published("rsitmd", PE_RSITR.format("II"), (12.83, 28.84, 39.05, 13.30, 40.20, 60.06), "0.52M", "unknown"),
        Published("ucm", PE_RSITR.format("III"), (9.83, 42.52, 66.79, 14.61, 51.03, 84.14), "0.52M", "unknown"),
    )

    def refuse(self, backbone: DualEncoder) -> str | None:
        """A hidden layer without units cannot be trained."""
        if (reason := super().refuse(backbone)) is not None:
            return reason
        if not self._hidden(backbone):
            return (
                f"reduction {self._config().reduction} leaves no hidden unit of the embedding width {backbone.embed_dim} of "
                f"{backbone.name}; set method.clip_adapter.reduction to {backbone.embed_dim} or less"
            )
        return None

    def build(self, backbone: DualEncoder) -> nn.Module:
        """A wrapper that holds the backbone and one or two adapters."""
        image, text = (self._adapter(backbone) if self._config().towers in (m, "both") else None for m in _MODALITIES)
        return _Adapted(backbone, image, text)

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The adapters."""
        return parameters_under(model, "image_adapter", "text_adapter")

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """2 E (E / reduction) per adapted modality."""
        return (2 if self._config().towers == "both" else 1) * 2 * backbone.embed_dim * self._hidden(backbone)

    def head_image(self, model: nn.Module, pooled: Tensor) -> Tensor:
        """(B, P_image) to (B, E): projection, then the adapter where pictures have one."""
        projected = super().head_image(model, pooled)
        return projected if model.image_adapter is None else model.image_adapter(projected)  # type: ignore[operator]

    def head_text(self, model: nn.Module, pooled: Tensor) -> Tensor:
        """(B, P_text) to (B, E): projection, then the adapter where captions have one."""
        projected = super().head_text(model, pooled)
        return projected if model.text_adapter is None else model.text_adapter(projected)  # type: ignore[operator]

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """The picture adapter of the released code.

        Raises:
            MethodError: This form adapts captions too; the released code has no weights for that.
        """
        if self._config().towers != "image":
            raise MethodError(
                f"method clip_adapter: {state.source} holds a picture adapter only; build the method with towers=image "
                f"(found towers={self._config().towers})"
            )
        require_openai_clip(self._dual(model), state)
        return {
            "image_adapter.down.weight": state.take("fc.0.weight"),
            "image_adapter.up.weight": state.take("fc.2.weight"),
        }

    def _adapter(self, backbone: DualEncoder) -> _FeatureAdapter:
        config = self._config()
        return _FeatureAdapter(backbone.embed_dim, self._hidden(backbone), config.ratio, config.final_relu)

    def _hidden(self, backbone: DualEncoder) -> int:
        return backbone.embed_dim // self._config().reduction

    def _config(self) -> ClipAdapterConfig:
        assert isinstance(self.config, ClipAdapterConfig)
        return self.config


_MODALITIES = ("image", "text")
