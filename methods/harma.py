"""HarMA: gated adapters with self-attention behind every MLP of both towers, and an adaptive triplet loss."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import (
    Domain,
    Method,
    MethodConfig,
    MethodError,
    Preset,
    Published,
    Variant,
    parameters_under,
)
from petlbench.methods.layers.mini_adapter import MiniAdapter, ModalAdapter
from petlbench.methods.official import OfficialState

_PAPER = "Huang, Efficient Remote Sensing with Harmonized Transfer Learning and Modality Alignment, ICLR 2024 workshop"

_LOSS = {"name": "harma", "positives": "image", "margin": 0.2, "gamma": 2.0, "reduction": "sum"}

_PAPER_TRAIN = {
    "optimizer": "adamw",
    "lr": 4e-4,
    "betas": (0.9, 0.98),
    "eps": 1e-8,
    "weight_decay": 0.04,
    "decay": "not_bias",
    "schedule": "linear",
    "warmup": 0.1,
    "clip_norm": 0.0,
    "batch_size": 428,
    "epochs": 50,
    "sampling": "caption",
    "captions": "cleaned",
    "loss": _LOSS,
    "augmentation": {
        "random_resized_crop": (0.5, 1.0),
        "horizontal_flip": 0.5,
        "randaugment": {"ops": 2, "magnitude": 7, "probability": 0.5},
    },
    "precision": "fp32",
}


class HarmaConfig(MethodConfig):
    """Sizes and form of the adapters."""

    form: Literal["as_released", "as_described"] = "as_released"
    """``as_released``: what the authors' code computes: a mini-adapter in each text adapter only, and text adapters that
    attend to all positions of the context, padding too. ``as_described``: one mini-adapter per layer, used by both towers
    (Algorithm 1 of the paper, as issue 6 of the authors' repository reads it), and no attention to padding."""
    bottleneck: PositiveInt = 128
    mini_bottleneck: PositiveInt = 64
    heads: PositiveInt = 8
    """Of both attentions; must divide both bottlenecks."""
    text_attention: Literal["auto", "all", "padding", "causal"] = "auto"
    """What the text adapters' attention may see: every position, all but padding, or only what comes before; ``auto``
    follows ``form`` (``all`` as released, ``padding`` as described)."""
    temperature: PositiveFloat = 0.07
    """Start of the trained temperature, which divides the similarities."""

    @model_validator(mode="after")
    def _heads_divide(self) -> HarmaConfig:
        for name, width in (("bottleneck", self.bottleneck), ("mini_bottleneck", self.mini_bottleneck)):
            if width % self.heads:
                raise ValueError(f"heads={self.heads} does not divide {name}={width}; choose a multiple or fewer heads")
        return self


class Harma(Method):
    """Each block of both towers: ``x + MLP(x) + s(g) D(MLP(x))``, with D an adapter of HarMA and g a trained gate.

    D projects down, attends over the tokens twice with the same weights (in the text tower with a mini-adapter between),
    blends with what it projected down, and projects up from zero; so step 0 is the untouched backbone. Trained besides:
    the temperature, as a direct divisor. No tensor crosses between the towers.

    The default form is the released one: the published numbers and the released weights are its, although the paper's
    text describes a mini-adapter that both towers share. Both forms have the same number of parameters where the towers
    are equally deep. As released, the text embedding depends on the padding, so captions keep their whole context length.
    """

    title = "HarMA"
    paper = _PAPER
    code = "seekerhuang/HarMA"
    licence = "Apache-2.0"
    family = "adapter"
    choices = (
        "The default form is as_released, because the published rows and released weights come from the authors' code.",
        "as_described hides padding from the text adapters' attention; the paper's text does not mention a mask.",
        "as_described leaves a mini-adapter to one tower alone in blocks that the other tower does not have.",
        "The adapter reads what the MLP branch adds after layer scale, where a backbone has one (CLIP has none).",
        "matched: the learning rate 4e-4 is the paper's for the CLIP start; the loss is the common InfoNCE.",
        "paper: warm-up and decay end at the real number of steps; the authors count one partial batch more per epoch and"
        " begin at a learning rate of exactly 0.",
        "paper: published runs chose their epoch on the test split; here validation chooses.",
        "paper: the published rows come from one batch of 428 gathered over two GPUs, here from one of 428 on one device,"
        " whose adapter gradients are twice theirs (AdamW is nearly blind to that).",
        "paper: 50 epochs, as the repository has for RSITMD; for RSICD it has 10, which is paper_rsicd.",
        "paper_geo: the learning rate 4e-6 is the repository's; its history does not settle which rate, or whether a frozen"
        " backbone, gave the published rows.",
        "The first attention sees no token order besides the backbone's own positions, as in the released code.",
    )
    official = (
        "authors' checkpoint: {model, config} with CLIP under `model.` (302 backbone and 348 adapter tensors on ViT-B/32) and"
        " `temp`; GeoRSCLIP files need a QuickGELU backbone"
    )
    Config = HarmaConfig
    identity_start = True
    variants = {
        "as_released": Variant({"form": "as_released"}, 5_934_397, "counted by running the authors' code"),
        "as_described": Variant(
            {"form": "as_described"}, 5_934_397, "same, as each mini-adapter exists once either way"
        ),
    }
    presets = {
        "matched": Preset(train={"lr": 4e-4}),
        # Start from ViT-B-32:laion2b_s34b_b79k (GELU).
        "paper": Preset(train=_PAPER_TRAIN),
        "paper_rsicd": Preset(train={**_PAPER_TRAIN, "epochs": 10}),
        # Start from --backbone ViT-B-32 with weights=RS5M_ViT-B-32_RET-2.pt; QuickGELU follows from the file's name.
        "paper_geo": Preset(train={**_PAPER_TRAIN, "lr": 4e-6, "epochs": 80}),
    }
    space = {
        "method.bottleneck": Domain("choice", (32, 64, 128)),
        "train.lr": Domain("loguniform", (4e-5, 2e-3)),
    }
    published = (
        Published(
            "rsitmd",
            f"{_PAPER}, CLIP ViT-B/32",
            (25.81, 48.37, 60.61, 19.92, 53.27, 71.21),
            "5.93M",
            "test",
            seen=False,
        ),
        Published(
            "rsicd", f"{_PAPER}, CLIP ViT-B/32", (16.36, 34.48, 47.74, 12.92, 37.17, 53.07), "5.93M", "test", seen=False
        ),
        Published(
            "rsitmd",
            f"{_PAPER}, GeoRSCLIP RET-2 (already tuned on RSITMD and RSICD: mR 51.81 before)",
            (32.74, 53.76, 69.25, 25.62, 57.65, 74.60),
            "5.93M",
            "test",
            seen=False,
        ),
        Published(
            "rsicd",
            f"{_PAPER}, GeoRSCLIP RET-2 (already tuned on RSITMD and RSICD: mR 38.87 before)",
            (20.52, 41.37, 54.66, 15.84, 41.92, 59.39),
            "5.93M",
            "test",
            seen=False,
        ),
    )

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with an adapter on every MLP branch, and the temperature as ``temperature``."""
        config = self._config()
        visible = self._text_attention()
        depth = max(backbone.image.depth, backbone.text.depth) if self._shares() else backbone.text.depth
        minis = [MiniAdapter(config.bottleneck, config.mini_bottleneck, config.heads) for _ in range(depth)]
        for tower in (backbone.image, backbone.text):
            text = tower.modality == "text"
            for index in range(tower.depth):
                mini = minis[index] if text or self._shares() else None
                seen = visible if text else "padding"
                adapter = ModalAdapter(tower.width, config.bottleneck, config.heads, mini, seen)
                tower.attach(index, "mlp", adapter)
        backbone.register_parameter("temperature", nn.Parameter(torch.tensor(config.temperature)))
        if visible == "all":
            backbone.trims_text = False
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """Adapters with their gates, and the temperature where the loss has one."""
        adapters = [name for name, module in model.named_modules() if isinstance(module, ModalAdapter)]
        return parameters_under(model, *adapters, *(["temperature"] if self._divides() else []))

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """Sum over blocks of 2 W r + W + r + 4 r^2 + 4 r + 2, mini-adapters of 2 r m + m + r + 4 m^2 + 4 m + 1, and 1."""
        config = self._config()
        r, m = config.bottleneck, config.mini_bottleneck
        towers = (backbone.image, backbone.text)
        adapters = sum(t.depth * (2 * t.width * r + t.width + r + 4 * r * r + 4 * r + 2) for t in towers)
        minis = max(t.depth for t in towers) if self._shares() else backbone.text.depth
        return adapters + minis * (2 * r * m + m + r + 4 * m * m + 4 * m + 1) + self._divides()

    def logit_scale(self, model: nn.Module) -> Tensor:
        """-log of the temperature, so that similarities are divided by it."""
        return -torch.log(model.get_parameter("temperature"))

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """Everything: the backbone's tensors too, which a released checkpoint holds in full.

        Raises:
            MethodError: Another form or kind of backbone, or weights of a GeoRSCLIP start on a backbone without QuickGELU.
        """
        dual = self._dual(model)
        if self._shares() or dual.provenance.kind != "open_clip":
            raise MethodError(
                f"method {self.name}: {state.source} holds the form as_released on an open_clip backbone; asked for "
                f"{self._config().form} on {dual.name}. Set method.form=as_released and use the architecture ViT-B-32"
            )
        self._check_activation(dual, state)
        state.drop(r"model\.attn_mask", "the causal mask, made from the context length")
        mapped = {"temperature": state.take("temp")}
        for key in state:
            own = _own_name(key)
            if own is not None:
                mapped[own] = state.take(key)
        return mapped

    def _check_activation(self, backbone: DualEncoder, state: OfficialState) -> None:
        """The tensors fit either activation; the wrong one costs about five points of mR (issue 2 of the authors).

        Only GeoRSCLIP starts can be told: the repository's configurations for them said ``model: vit`` until 18 July 2024,
        so that ``vit`` proves nothing.
        """
        geo = state.config.get("model") == "geo" or "georsclip" in state.source.lower()
        if geo and backbone.provenance.activation != "quick_gelu":
            raise MethodError(
                f"method {self.name}: {state.source} was trained from GeoRSCLIP, whose activation is quick_gelu; "
                f"{backbone.name} computes {backbone.provenance.activation}, with which the same weights lose about five "
                "points of mean recall and no error shows it. Use the backbone ViT-B-32-quickgelu, or ViT-B-32 with "
                "weights=RS5M_ViT-B-32_RET-2.pt"
            )

    def _config(self) -> HarmaConfig:
        assert isinstance(self.config, HarmaConfig)
        return self.config

    def _shares(self) -> bool:
        return self._config().form == "as_described"

    def _divides(self) -> bool:
        """Whether the loss reads the temperature."""
        return self.loss_config.name in ("infonce", "multi_positive", "siglip", "harma")

    def _text_attention(self) -> str:
        config = self._config()
        if config.text_attention != "auto":
            return config.text_attention
        return "padding" if self._shares() else "all"


_ADAPTER_NAMES: dict[str, str] = {
    "mmadapter.img_proj_down.": "down.",
    "mmadapter.img_proj_up.": "up.",
    "mmadapter.multihead_attention.in_proj_": "attention.qkv.",
    "mmadapter.multihead_attention.out_proj.": "attention.out.",
    "mmadapter.gate1": "gate",
    "mmadapter.BiShareAdapterxx.l1.": "mini.down.",
    "mmadapter.BiShareAdapterxx.l2.": "mini.up.",
    "mmadapter.BiShareAdapterxx.multihead_attention1.in_proj_": "mini.attention.qkv.",
    "mmadapter.BiShareAdapterxx.multihead_attention1.out_proj.": "mini.attention.out.",
    "mmadapter.BiShareAdapterxx.gate1": "mini.gate",
    "gate1": "block_gate",
}


def _own_name(key: str) -> str | None:
    """Our name of a tensor of an official checkpoint; None for a key that is not known."""
    found = re.fullmatch(r"model\.((?:visual\.)?transformer\.resblocks\.\d+\.)(mmadapter\..+|gate1)", key)
    if found is None:
        return f"clip.{key.removeprefix('model.')}" if key.startswith("model.") else None
    block, rest = found.groups()
    for theirs, ours in _ADAPTER_NAMES.items():
        if rest.startswith(theirs):
            return f"clip.{block}attached_mlp.0.{ours}{rest.removeprefix(theirs)}"
    return None
