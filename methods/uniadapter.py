"""UniAdapter on CLIP: bottlenecks parallel to the MLP of both towers, with what the two modalities can share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder, Tower
from petlbench.methods.base import PE_RSITR, Domain, Method, MethodConfig, MethodError, Preset, Published, Variant
from petlbench.methods.layers.bottleneck import (
    BottleneckAdapter,
    Sharing,
    attached_names,
    attached_paths,
    bottleneck_size,
    modules_in,
    start_as_lora,
)
from petlbench.methods.official import OfficialState
from petlbench.methods.recipe import PE_RSITR_TRAIN

IMAGE_UP_STD = 0.02
"""Deviation of the image up-projection in the original: the text encoder's initialiser reaches it last."""


class UniAdapterConfig(MethodConfig):
    """Size of the bottlenecks and what the towers have in common."""

    bottleneck: PositiveInt = 16
    sharing: Sharing = "layer"
    """``layer``: each block has its own, the original. ``all``: one bottleneck per tower serves every block."""
    across: Literal["none", "core", "down"] = "none"
    """What the two towers share at the same depth. ``down``: norm and down-projection, the original, for towers of one
    width. ``core``: an r x r map behind each tower's own down-projection. ``none``: nothing."""
    input_norm: bool = True
    """Layer norm on the adapter's input."""
    scale: PositiveFloat = 0.1
    dropout: float = Field(0.0, ge=0, lt=1)
    init: Literal["original", "zero"] = "original"
    """``original``: only the text up-projection starts at zero. ``zero``: both do, so that step 0 is the backbone."""


class _CoredDown(nn.Module):
    """A tower's own map W -> r, then one r -> r that both towers use; the product starts as the own map."""

    def __init__(self, width: int, bottleneck: int, core: nn.Linear):
        super().__init__()
        self.own = nn.Linear(width, bottleneck)
        self.core = core

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, W) to (B, N, r)."""
        return self.core(self.own(x))


class UniAdapter(Method):
    """``h + MLP(norm(h)) + s up(relu(down(norm'(h))))``, with norm' the adapter's own (after Lu et al. 2024).

    A port: the original sits in BLIP, whose encoders are equally wide, and its towers share each block's norm and
    down-projection, beside an up-projection per modality and one for the fusion encoder. CLIP has no fusion encoder, and
    its towers differ in width (768 and 512 in ViT-B/32), so nothing can be shared there as it is; ``across`` says what is.
    The published 0.55 M fits no natural form; the default, 537,984, is the nearest.
    """

    title = "UniAdapter (CLIP port)"
    paper = "Lu et al., UniAdapter: Unified Parameter-Efficient Transfer Learning for Cross-modal Modeling, ICLR 2024"
    code = "RERV/UniAdapter"
    licence = "BSD-3-Clause"
    family = "adapter"
    official = "BLIP retrieval state dict: adapters.N.{down_proj,up_proj,visual_up_proj,adapter_layer_norm_before}.*"
    Config = UniAdapterConfig
    choices = (
        "How PE-RSITR ported UniAdapter to CLIP is unknown, and no natural form has its printed 0.55 M parameters; the "
        "default is the nearest (537,984): per block, bottleneck 16, input norm, nothing shared by the towers.",
        "across=core is ours: the shared down-projection as a product of a tower's own map and one shared by both; it starts "
        "as the identity.",
        "The fusion branch has no counterpart in a dual encoder and is left out; BLIP's projections, trained in the original "
        "with the matching head, belong to its pretraining, and CLIP's stay frozen.",
        "In BLIP's text encoder the adapter's output is added behind the last norm of a block; in CLIP it joins the residual "
        "stream as on the image side, and in a post-norm tower it is added before that norm.",
        "Preset `paper`: the form above, 0.1 as in the original for the scale; loss and learning rate of the published rows "
        "are unknown, and those of PE-RSITR's own method stand in.",
        "Preset `official` has the original's bottleneck of 512 and its recipe (32 pairs on each of 8 devices; the rate "
        "falls per step, there per epoch), without momentum encoders, queue and matching loss.",
        "The learning rate of `matched` is ours.",
    )
    variants = {
        "r16_norm": Variant({}, 537_984, "nearest to the printed 0.55 M"),
        "r16": Variant({"input_norm": False}, 507_264, "without input norm"),
        "r64": Variant({"bottleneck": 64, "input_norm": False}, 1_982_976, "per block, own maps in both towers"),
        "r64_norm": Variant({"bottleneck": 64}, 2_013_696, "with 30,720 scalars of input norms"),
        "core_r16": Variant({"across": "core"}, 541_056, "with a 16 x 16 map shared by the towers in each block"),
        "shared_r64": Variant(
            {"bottleneck": 64, "sharing": "all", "input_norm": False}, 165_248, "one bottleneck per tower"
        ),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(train=PE_RSITR_TRAIN),
        "official": Preset(
            method={"bottleneck": 512},
            train={
                "optimizer": "adamw",
                "lr": 1e-5,
                "weight_decay": 0.05,
                "decay": "all",
                "schedule": "cosine",
                "warmup": 0.0,
                "clip_norm": 0.0,
                "batch_size": 256,
                "epochs": 6,
            },
        ),
    }
    space = {
        "method.bottleneck": Domain("choice", (8, 16, 32, 64, 128)),
        "train.lr": Domain("loguniform", (1e-4, 3e-3)),
    }
    published = (
        Published("rsicd", PE_RSITR.format("I"), (12.65, 30.81, 42.74, 9.61, 30.06, 47.16), "0.55M", "unknown"),
        Published("rsitmd", PE_RSITR.format("II"), (19.86, 36.32, 51.28, 17.54, 44.89, 65.46), "0.55M", "unknown"),
        Published("ucm", PE_RSITR.format("III"), (14.46, 55.19, 83.95, 16.74, 61.43, 95.76), "0.55M", "unknown"),
    )

    def refuse(self, backbone: DualEncoder) -> str | None:
        """Sharing across towers needs towers that fit together."""
        if (reason := super().refuse(backbone)) is not None:
            return reason
        config, image, text = self._config(), backbone.image, backbone.text
        if config.across == "down" and image.width != text.width:
            return (
                f"across=down shares maps of one width, and the towers of {backbone.name} are {image.width} and {text.width} "
                "wide; set method.uniadapter.across to core or none"
            )
        if config.across != "none" and config.sharing == "layer" and image.depth != text.depth:
            return (
                f"across={config.across} pairs the blocks of the towers, and {backbone.name} has {image.depth} and "
                f"{text.depth}; set method.uniadapter.across=none or method.uniadapter.sharing=all"
            )
        return None

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with its adapters attached.

        Raises:
            MethodError: The towers cannot share what they should (see :meth:`refuse`).
        """
        if (reason := self.refuse(backbone)) is not None:
            raise MethodError(f"method uniadapter cannot sit on {backbone.name}: {reason}")
        config, image, text = self._config(), backbone.image, backbone.text
        pairs = [self._pair(image, text) for _ in range(1 if config.sharing == "all" else max(image.depth, text.depth))]
        for position, tower in enumerate((image, text)):
            for index in range(tower.depth):
                tower.attach(index, "mlp", pairs[0 if config.sharing == "all" else index][position])
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The adapters."""
        return attached_names(model)

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """2 W r + r + W per adapter, 2 W per input norm; r^2 more per core, or W r + r and a norm less where down is shared."""
        config, r = self._config(), self._config().bottleneck
        total = 0
        for tower in (backbone.image, backbone.text):
            norm = 2 * tower.width if config.input_norm else 0
            total += modules_in(tower, 1, config.sharing) * (bottleneck_size(tower.width, r) + norm)
        blocks, width = modules_in(backbone.image, 1, config.sharing), backbone.image.width
        if config.across == "core":
            total += blocks * r * r
        if config.across == "down":
            total -= blocks * (width * r + r + (2 * width if config.input_norm else 0))
        return total

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """The layers of the BLIP original, without its fusion branch, momentum copies and backbone.

        Raises:
            MethodError: This form is not the original one: per block, with norm and down-projection shared by the towers.
        """
        config = self._config()
        if config.sharing != "layer" or config.across != "down" or not config.input_norm:
            raise MethodError(
                f"method uniadapter: {state.source} holds adapters for each block whose norm and down-projection serve both "
                "modalities; build the method with sharing=layer, across=down and input_norm=true on towers of one width "
                f"(found sharing={config.sharing}, across={config.across}, input_norm={config.input_norm})"
            )
        dual = self._dual(model)
        mapped: dict[str, Tensor] = {}
        paths = zip(attached_paths(model, dual.image, "mlp"), attached_paths(model, dual.text, "mlp"), strict=True)
        for index, (image, text) in enumerate(paths):
            for part in ("weight", "bias"):
                mapped[f"{image}.norm.{part}"] = state.take(f"adapters.{index}.adapter_layer_norm_before.{part}")
                mapped[f"{image}.down.{part}"] = state.take(f"adapters.{index}.down_proj.{part}")
                mapped[f"{image}.up.{part}"] = state.take(f"adapters.{index}.visual_up_proj.{part}")
                mapped[f"{text}.up.{part}"] = state.take(f"adapters.{index}.up_proj.{part}")
        state.drop(r"adapters\.\d+\.(multi_up_proj|adapter_layer_norm_cross_modal)\..*", "fusion branch")
        state.drop(r"(visual_encoder|text_encoder)\..*\badapters?\..*", "second name of the same layers")
        state.drop(r"(adapters|visual_encoder|text_encoder|vision_proj|text_proj)_m\..*", "momentum copy")
        state.drop(r"(image_queue|text_queue|idx_queue|ptr_queue|temp)", "state of BLIP's training")
        state.drop(r"(visual_encoder|text_encoder|vision_proj|text_proj|itm_head)\..*", "BLIP, which was adapted")
        return mapped

    def _pair(self, image: Tower, text: Tower) -> tuple[BottleneckAdapter, BottleneckAdapter]:
        """The adapters of one depth, one per modality."""
        config, r = self._config(), self._config().bottleneck
        core = nn.Linear(r, r, bias=False) if config.across == "core" else None
        if core is not None:
            nn.init.eye_(core.weight)
        first = self._adapter(image.width, core, None)
        second = self._adapter(text.width, core, first if config.across == "down" else None)
        if config.init == "original":
            nn.init.normal_(first.up.weight, std=IMAGE_UP_STD)
        return first, second

    def _adapter(self, width: int, core: nn.Linear | None, other: BottleneckAdapter | None) -> BottleneckAdapter:
        config = self._config()
        down: nn.Module | None = None
        if other is not None:
            down, norm = other.down, other.norm
        else:
            norm = nn.LayerNorm(width) if config.input_norm else None
            if core is not None:
                down = _CoredDown(width, config.bottleneck, core)
        adapter = BottleneckAdapter(
            width,
            config.bottleneck,
            reads="residual",
            dropout=config.dropout,
            scale=config.scale,
            down=down,
            norm=norm,
        )
        start_as_lora(adapter.down.own if isinstance(adapter.down, _CoredDown) else adapter.down, adapter.up)
        return adapter

    def _config(self) -> UniAdapterConfig:
        assert isinstance(self.config, UniAdapterConfig)
        return self.config
