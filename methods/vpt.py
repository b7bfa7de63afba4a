"""VPT: learned tokens beside the patches, at the input or fresh ones in every block."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import PositiveInt
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
    parameters_under,
)
from petlbench.methods.layers.prompts import Depth, Init, PromptedEncoder, image_start, pooled_image, sets_for, stacked
from petlbench.methods.official import OfficialState
from petlbench.methods.recipe import PE_RSITR_TRAIN


class VptConfig(MethodConfig):
    """How many visual prompts, how deep, and from what they start."""

    tokens: PositiveInt = 50
    depth: Depth = "all"
    """Blocks, from the first, that get a set of their own; 1 is VPT-shallow, ``all`` VPT-deep."""
    init: Init = "uniform"
    """``uniform``: VPT's bound from patch side and width. ``normal``: deviation 0.02, as in the CLIP ports."""
    input_norm: bool = False
    """Pass the first set through CLIP's ``ln_pre``, as the CLIP ports do; VPT's own backbones have no such norm."""


class Vpt(Method):
    """Visual prompts only: tokens without position between the class token and the patches; no gradient in the text tower.

    In the deep form each block's prompts replace what the former block made of its own; they are not added to them.
    """

    title = "VPT"
    paper = "Jia et al., Visual Prompt Tuning, ECCV 2022"
    code = "KMnP/vpt"
    licence = "CC-BY-NC-4.0"
    family = "prompt"
    official = (
        "prompt file of KMnP/vpt as tensors (shallow_prompt, deep_prompt), or its model's transformer.prompt_embeddings and "
        "transformer.deep_prompt_embeddings"
    )
    choices = (
        "VPT was made for plain vision transformers; on CLIP the prompts enter behind ln_pre, straight before the first "
        "block (input_norm=true for the CLIP ports' way).",
        "Only the image tower is prompted; the class head of VPT has no counterpart in retrieval.",
        "`paper`: tokens and depth are those whose size, 460,800, fits the printed 0.46M; the loss of the baselines is "
        "unknown.",
        "`official`: VPT searches rate and decay for each task; its default rate 0.01 and its base decay 1e-4 are used.",
        "`matched`: the learning rate 2e-3 is ours.",
    )
    Config = VptConfig
    variants = {
        "deep_50": Variant({}, 460_800, "12 x 50 x 768; fits the printed 0.46M of PE-RSITR"),
        "shallow_50": Variant({"depth": 1}, 38_400, "50 x 768"),
        "deep_8": Variant(
            {"tokens": 8, "init": "normal", "input_norm": True},
            73_728,
            "12 x 8 x 768; the VPT configuration for CLIP of muzairkhattak/multimodal-prompt-learning",
        ),
        "deep_10": Variant({"tokens": 10}, 92_160, "12 x 10 x 768"),
    }
    presets = {
        "matched": Preset(train={"lr": 2e-3}),
        "paper": Preset(train=PE_RSITR_TRAIN),
        "official": Preset(
            method={"tokens": 5, "depth": 1},
            train={
                "optimizer": "sgd",
                "lr": 0.01,
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "decay": "all",
                "schedule": "cosine",
                "warmup": 0.1,
                "clip_norm": 0.0,
                "batch_size": 128,
                "epochs": 100,
            },
        ),
    }
    space = {
        "method.tokens": Domain("choice", (5, 10, 50)),
        "method.depth": Domain("choice", (1, "all")),
        "train.lr": Domain("loguniform", (2e-4, 2e-2)),
    }
    published = (
        Published("rsicd", PE_RSITR.format("I"), (7.23, 19.40, 30.77, 6.94, 25.26, 40.73), "0.46M", "unknown"),
        Published("rsitmd", PE_RSITR.format("II"), (14.98, 32.05, 40.15, 15.97, 41.35, 60.35), "0.46M", "unknown"),
        Published("ucm", PE_RSITR.format("III"), (8.86, 47.81, 78.62, 13.64, 55.61, 94.05), "0.46M", "unknown"),
    )

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone beside its visual prompts."""
        config, tower = self._config(), backbone.image
        sets = sets_for(tower, config.depth)
        return PromptedEncoder(backbone, image=image_start(tower, sets, config.tokens, config.init))

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The prompts."""
        return parameters_under(model, "image_prompts")

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """D n W_image."""
        config = self._config()
        return sets_for(backbone.image, config.depth) * config.tokens * backbone.image.width

    def encode_image(self, model: nn.Module, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, E)."""
        assert isinstance(model, PromptedEncoder) and model.image_prompts is not None
        pooled = pooled_image(model.backbone.image, images, model.image_prompts, input_norm=self._config().input_norm)
        return self.head_image(model, pooled)

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """Prompts only: VPT's vision transformer and class head are not CLIP's."""
        if "shallow_prompt" in state:
            names = ("shallow_prompt", "deep_prompt")
        else:
            root = next((k.removesuffix("prompt_embeddings") for k in state if k.endswith(".prompt_embeddings")), "")
            names = (f"{root}prompt_embeddings", f"{root}deep_prompt_embeddings")
        found = [state.take(names[0])] + [state.take(name) for name in names[1:] if name in state]
        state.drop(r"(enc\.)?transformer\.(embeddings|encoder)\..*", "VPT's own vision transformer, not this backbone")
        state.drop(r"head\..*", "class head")
        return {"image_prompts": stacked(found)}

    def _config(self) -> VptConfig:
        assert isinstance(self.config, VptConfig)
        return self.config
