"""Cross-Modal Adapter: bottlenecks after attention and MLP, whose last output channels both modalities share."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from petlbench.methods.backbones.base import BranchKind, DualEncoder
from petlbench.methods.base import (
    PE_RSITR,
    Domain,
    Method,
    MethodConfig,
    MethodError,
    Preset,
    Published,
    Variant,
)
from petlbench.methods.layers import openai_clip, shared_slice
from petlbench.methods.official import OfficialError, OfficialState
from petlbench.methods.recipe import PE_RSITR_TRAIN

_KINDS: dict[str, tuple[BranchKind, ...]] = {
    "both": ("attention", "mlp"),
    "attention": ("attention",),
    "mlp": ("mlp",),
}
_OFFICIAL_MODALITY = {"image": "visual", "text": "text"}


class CrossModalAdapterConfig(MethodConfig):
    """Size, place and sharing of the adapters; the defaults are the form whose size the published tables print."""

    bottleneck: PositiveInt = 64
    shared: NonNegativeInt = 64
    """Output channels that come from the shared up-projection; cut to the width of the narrower tower, 0 shares none."""
    branches: Literal["both", "attention", "mlp"] = "both"
    """Which branches of a block an adapter follows."""
    sharing: Literal["all", "layer"] = "all"
    """``all``: one adapter per modality serves every block and branch. ``layer``: each block and branch has its own."""
    activation: shared_slice.Activation = "quick_gelu"
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the bottleneck, while training."""
    init_std: PositiveFloat = 0.01
    """Of the normal distribution, cut at +-2, of all weights; the authors report slow convergence below 0.01."""


class CrossModalAdapter(Method):
    """out + U act(D out) after each branch, with the last ``shared`` rows of U common to vision and text (Jiang et al.).

    The official form (variant and preset ``official``) has an adapter per block and branch, bottleneck 8 and a slice of 16.
    The retrieval tables print 0.16 M, which fits one adapter for all places with bottleneck 64: the default. Every weight
    starts at random, so step 0 is close to the backbone and not equal to it.
    """

    title = "Cross-Modal Adapter"
    paper = "Jiang et al., Cross-Modal Adapter for Vision-Language Retrieval, Pattern Recognition 2025 (arXiv 2022)"
    code = "LeapLabTHU/Cross-Modal-Adapter"
    licence = "Apache-2.0"
    family = "adapter"
    Config = CrossModalAdapterConfig
    official = "the authors' CLIP4Clip checkpoints (2d patches, mean pooling): adapter alone, or with the CLIP weights"
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(train=PE_RSITR_TRAIN),
        "official": Preset(
            method={"bottleneck": 8, "shared": 16, "sharing": "layer"},
            train={
                "optimizer": "adamw",
                "lr": 1e-5,
                "betas": (0.9, 0.98),
                "eps": 1e-6,
                "weight_decay": 0.2,
                "decay": "not_bias",
                "schedule": "cosine",
                "warmup": 0.1,
                "clip_norm": 1.0,
                "batch_size": 128,
                "epochs": 5,
            },
        ),
    }
    variants = {
        "paper": Variant({}, 161_088, "one adapter for all places: fits the 0.16M of PE-RSITR's tables"),
        "paper_s16": Variant({"shared": 16}, 164_208, "the same with the official slice; also prints as 0.16M"),
        "paper_s128": Variant({"shared": 128}, 156_928, "the same with the widest slice that prints as 0.16M"),
        "official": Variant(
            {"bottleneck": 8, "shared": 16, "sharing": "layer"}, 519_168, "the authors' code, README command"
        ),
    }
    space = {
        "train.lr": Domain("loguniform", (1e-5, 3e-3)),
        "method.bottleneck": Domain("choice", (8, 16, 32, 64)),
    }
    published = (
        Published("rsicd", PE_RSITR.format("I"), (11.18, 27.31, 40.62, 9.57, 30.74, 48.36), "0.16M", "unknown"),
        Published("rsitmd", PE_RSITR.format("II"), (18.16, 36.08, 48.72, 16.31, 44.33, 64.75), "0.16M", "unknown"),
        Published("ucm", PE_RSITR.format("III"), (13.77, 50.57, 81.41, 17.43, 61.45, 95.48), "0.16M", "unknown"),
    )
    choices = (
        "preset paper: the form (one adapter, bottleneck 64, slice 64) is inferred from the printed size; PE-RSITR states "
        "neither it nor the baselines' loss, so that preset takes MRS-Adapter's recipe with the cross-modal hinge alone.",
        "preset paper and matched: the one adapter serves both branches of a block, the method's own places.",
        "preset official: trained on video captions by the authors; AdamW stands in for their BertAdam, which has no bias "
        "correction, their warm-up cosine is counted from step 0 and not from the end of the warm-up, and fp32 stands in for "
        "their fp16 weights.",
        "preset matched: learning rate 1e-3 and the loss of the common protocol are ours.",
        "sharing=layer on towers of different depth: block i shares its slice with block i of the other tower, and blocks "
        "without a partner keep theirs for themselves; the official code needs towers of equal depth.",
        "On towers narrower than `shared` the slice is cut to the narrower width; the official code refuses.",
    )

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with adapters after its branches."""
        config = self._config()
        shape = shared_slice.AdapterShape(
            bottleneck=config.bottleneck,
            shared=shared_slice.slice_width(backbone, config.shared),
            activation=config.activation,
            dropout=config.dropout,
            reads="out",
            scale=1.0,
        )
        normal = partial(nn.init.trunc_normal_, std=config.init_std)
        kinds, per_layer = _KINDS[config.branches], config.sharing == "layer"
        shared_slice.attach_shared_slice(backbone, shape, kinds, per_layer, down=normal, up=normal)
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The adapters."""
        return shared_slice.adapter_names(model)

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """r (d_v + d_t) + 2 r + (r + 1) (d_v + d_t - s), per block and branch where ``sharing`` is ``layer``."""
        config = self._config()
        shared = shared_slice.slice_width(backbone, config.shared)
        branches, per_layer = len(_KINDS[config.branches]), config.sharing == "layer"
        return shared_slice.trainable_count(backbone, config.bottleneck, shared, branches, per_layer)

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """Read the authors' stacked tensors: rows 2 i and 2 i + 1 belong to attention and MLP of block i.

        Raises:
            MethodError: The method was built in another form than the released one, or on another activation.
            OfficialError: A tensor is missing, or the stacks are not as deep as the towers.
        """
        config, backbone = self._config(), self._dual(model)
        if config.sharing != "layer" or config.branches != "both" or config.activation != "quick_gelu":
            raise MethodError(
                f"{state.source} holds an adapter per block and branch, with quick_gelu; this model was built with "
                f"sharing={config.sharing}, branches={config.branches}, activation={config.activation}. Use the preset "
                "official, or method.cross_modal_adapter.sharing=layer with the file's bottleneck and shared widths"
            )
        openai_clip.require_quick_gelu(backbone, state)
        marker = "visual_adapter_down_weight"
        prefix = next((key.removesuffix(marker) for key in state if key.endswith(marker)), "")
        names = openai_clip.names_by_id(model)
        mapped: dict[str, Tensor] = {}
        deepest = max((backbone.image, backbone.text), key=lambda tower: tower.depth)
        for tower in (backbone.image, backbone.text):
            own = _OFFICIAL_MODALITY[tower.modality]
            places = [(index, kind) for index in range(tower.depth) for kind in _KINDS["both"]]
            adapters = [shared_slice.attached_adapter(tower, index, kind) for index, kind in places]
            stacks = {f"{own}_adapter_down": [a.down for a in adapters]}
            stacks[f"{own}_adapter_up_unique"] = [a.up for a in adapters if a.up is not None]
            if tower is deepest:
                stacks["vt_adapter_up_share"] = [a.shared for a in adapters if a.shared is not None]
            for stack, layers in stacks.items():
                for part in ("weight", "bias") if layers else ():
                    rows = state.take(f"{prefix}{stack}_{part}")
                    if len(rows) != len(layers):
                        raise OfficialError(
                            f"{state.source}: {prefix}{stack}_{part} has {len(rows)} rows for a tower of {tower.depth} "
                            f"blocks; expected {len(layers)}, two per block. Choose the backbone it was trained on"
                        )
                    mapped |= {names[id(getattr(layer, part))]: row for layer, row in zip(layers, rows, strict=True)}
        return mapped | openai_clip.take_clip(model, state, prefix)

    def _config(self) -> CrossModalAdapterConfig:
        assert isinstance(self.config, CrossModalAdapterConfig)
        return self.config
