"""MRS-Adapter: one bottleneck beside the MLP of every block, whose last output channels both modalities share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
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
)
from petlbench.methods.layers import openai_clip, shared_slice
from petlbench.methods.official import OfficialState
from petlbench.methods.recipe import PE_RSITR_TRAIN

_OFFICIAL_NAMES = {
    "image": {"down": "visual_down_proj", "up": "visual_up_proj"},
    "text": {"down": "down_proj", "up": "up_proj"},
}


class MrsAdapterConfig(MethodConfig):
    """Size and sharing of the adapter; the defaults are the published form."""

    bottleneck: PositiveInt = 64
    shared: NonNegativeInt = 64
    """Output channels that come from the shared up-projection; cut to the width of the narrower tower, 0 shares none."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """On the bottleneck, while training."""
    scale: PositiveFloat = 1.0
    """Of the adapter's contribution."""
    sharing: Literal["all", "layer"] = "all"
    """``all``: one adapter per modality serves every block. ``layer``: each block has its own."""


class MrsAdapter(Method):
    """y = h + MLP(LN(h)) + A(h), with h the stream after attention and A a bottleneck with ReLU (Yuan et al. 2023).

    A reads the stream itself, not its layer norm. Its down-projection belongs to the modality; of its up-projection the
    last ``shared`` channels belong to both. One A per modality serves all blocks. Up-projections start at zero. The
    published loss, HMMC, is ``train.loss.name=hmmc`` (preset ``paper``), its second view ``train.loss.view``: dropout on
    the elements of embedded tokens, as in the authors' code, or on whole tokens, as in their figure. It doubles the
    forward passes of a training step, and of nothing else.
    """

    title = "MRS-Adapter"
    paper = "Yuan et al., Parameter-Efficient Transfer Learning for Remote Sensing Image-Text Retrieval, TGRS 2023"
    code = "ZhanYang-nwpu/PE-RSITR"
    licence = "none"
    family = "adapter"
    Config = MrsAdapterConfig
    identity_start = True
    official = (
        "the authors' classes MRS_Adapter, PE_RSITR and Model (layers/): adapter alone, or with the OpenAI CLIP weights"
    )
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(train={**PE_RSITR_TRAIN, "loss": {"name": "hmmc", "margin": 0.2, "reduction": "sum"}}),
    }
    variants = {
        "paper": Variant({}, 161_088, "one adapter for 12 + 12 blocks: the authors' code, printed as 0.16M"),
        "per_layer": Variant({"sharing": "layer"}, 1_933_056, "an adapter per block, as the paper's figure suggests"),
        "per_layer_r16": Variant(
            {"sharing": "layer", "bottleneck": 16}, 494_208, "an adapter per block, in the half-million size class"
        ),
    }
    space = {
        "train.lr": Domain("loguniform", (1e-4, 3e-3)),
        "method.bottleneck": Domain("choice", (16, 32, 64, 128)),
        "method.dropout": Domain("choice", (0.0, 0.1, 0.5)),
    }
    published = (
        Published("rsicd", PE_RSITR.format("I"), (14.13, 31.51, 44.78, 11.63, 33.92, 50.73), "0.16M", "unknown"),
        Published("rsitmd", PE_RSITR.format("II"), (23.67, 44.07, 60.36, 20.10, 50.63, 67.97), "0.16M", "unknown"),
        Published("ucm", PE_RSITR.format("III"), (22.71, 55.81, 80.33, 18.82, 62.84, 93.72), "0.16M", "unknown"),
    )
    choices = (
        "The towers are frozen, as the paper's figure and its 0.16M say; the uploaded training script freezes nothing.",
        "The adapter computes in the precision of the recipe; the authors' code casts to fp32 beside fp16 towers.",
        "preset paper: batch 16 and 30 epochs are the script's defaults; values per data set are not stated.",
        "preset matched: learning rate 1e-3 and the loss of the common protocol are ours.",
        "On towers narrower than `shared` the slice is cut to the narrower width; the authors' widths are hard-wired.",
        "sharing=layer on towers of different depth: block i shares its slice with block i of the other tower, and blocks "
        "without a partner keep theirs for themselves.",
    )

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with the adapter beside every MLP."""
        config = self._config()
        shape = shared_slice.AdapterShape(
            bottleneck=config.bottleneck,
            shared=shared_slice.slice_width(backbone, config.shared),
            activation="relu",
            dropout=config.dropout,
            reads="residual",
            scale=config.scale,
        )
        shared_slice.attach_shared_slice(
            backbone,
            shape,
            kinds=("mlp",),
            per_layer=config.sharing == "layer",
            down=shared_slice.kaiming_uniform,
            up=nn.init.zeros_,
        )
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The adapter."""
        return shared_slice.adapter_names(model)

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """r (d_v + d_t) + 2 r + (r + 1) (d_v + d_t - s), per block where ``sharing`` is ``layer``."""
        config = self._config()
        shared = shared_slice.slice_width(backbone, config.shared)
        return shared_slice.trainable_count(backbone, config.bottleneck, shared, 1, config.sharing == "layer")

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """Read a state dict of the authors' layer files, bare or wrapped in their ``Model`` and in ``DataParallel``.

        Raises:
            MethodError: The method was built in another form than the released one, or on another activation.
            OfficialError: A tensor of the adapter or of CLIP is missing.
        """
        config, backbone = self._config(), self._dual(model)
        if config.sharing != "all" or not config.shared:
            raise MethodError(
                f"{state.source} holds one adapter for all blocks with a shared slice; this model was built with "
                f"sharing={config.sharing}, shared={config.shared}. Use method.mrs_adapter.sharing=all and shared=64"
            )
        openai_clip.require_quick_gelu(backbone, state)
        marker = "visual_down_proj.weight"
        prefix = next((key.removesuffix(marker) for key in state if key.endswith(marker)), "")
        mapped: dict[str, Tensor] = {}
        names = openai_clip.names_by_id(model)
        for tower in (backbone.image, backbone.text):
            adapter = shared_slice.attached_adapter(tower, 0, "mlp")
            official = _OFFICIAL_NAMES[tower.modality]
            layers = [(adapter.down, official["down"]), (adapter.up, official["up"])]
            layers += [(adapter.shared, "share_up_proj")] if tower.modality == "image" else []
            for layer, name in layers:
                if layer is not None:
                    mapped[names[id(layer.weight)]] = state.take(f"{prefix}{name}.weight")
                    mapped[names[id(layer.bias)]] = state.take(f"{prefix}{name}.bias")
        clip = f"{prefix.removesuffix('Uniadapt.')}model."
        return mapped | openai_clip.take_clip(model, state, clip)

    def _config(self) -> MrsAdapterConfig:
        assert isinstance(self.config, MrsAdapterConfig)
        return self.config
