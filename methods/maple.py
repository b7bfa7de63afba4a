"""MaPLe: deep text prompts, and visual prompts that are linear images of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from pydantic import PositiveInt
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder, Tokens
from petlbench.methods.base import Domain, Method, MethodConfig, Preset, Variant, parameters_under
from petlbench.methods.layers.clip_layout import take_encoders
from petlbench.methods.layers.prompts import (
    CROP_NOTE,
    IVLP_TRAIN,
    POSITION_CHOICE,
    SGD_NOTE,
    Depth,
    Positions,
    pooled_image,
    pooled_text,
    refuse_text,
    sets_for,
    stacked,
    text_start,
)
from petlbench.methods.official import OfficialState

_FROM_WORDS = 4  # the official code starts from words only where there are at most this many prompts


class MapleConfig(MethodConfig):
    """How many prompts, how deep, and from what they start."""

    tokens: PositiveInt = 2
    depth: Depth = 9
    """Blocks J of both towers, from the first, that get a set of their own; at most the shallower tower's depth."""
    words: str = "a photo of a"
    """The first set starts from the first tokens of these words where there are at most 4 prompts; empty: never."""
    positions: Positions = "auto"


class _Coupled(nn.Module):
    """A backbone, text prompts (J, n, W_text), and one linear map per set to the width of the image tower."""

    def __init__(self, backbone: DualEncoder, prompts: Tensor):
        super().__init__()
        self.backbone = backbone
        self.text_prompts = nn.Parameter(prompts)
        first = nn.Linear(backbone.text.width, backbone.image.width)
        deeper = nn.Linear(backbone.text.width, backbone.image.width)
        # The official code copies one layer, so that all deeper couplings start alike.
        self.couplings = nn.ModuleList([first, *(copy.deepcopy(deeper) for _ in range(len(prompts) - 1))])

    def image_prompts(self) -> list[Tensor]:
        """J sets (n, W_image)."""
        return [couple(prompts) for couple, prompts in zip(self.couplings, self.text_prompts, strict=True)]


class Maple(Method):
    """Prompts of the first J blocks of both towers, where the visual ones are computed from the textual ones.

    Embeddings stay independent of each other: the coupling joins parameters, not inputs.
    """

    title = "MaPLe"
    paper = "Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023"
    code = "muzairkhattak/multimodal-prompt-learning"
    licence = "MIT"
    family = "prompt"
    official = "model checkpoint of the MaPLe trainer: prompt_learner.{ctx, proj, compound_*} and a whole CLIP"
    choices = (
        "Captions stand where MaPLe has class names.",
        POSITION_CHOICE,
        "J is cut to the depth of the shallower tower.",
        "The official width 768 of the couplings is the image tower's width here, and its fp16 casts are left out.",
        "No retrieval result of MaPLe was read at its source; a third-party compilation gives mR 24.77 / 38.12 / 48.12 on "
        "RSICD / RSITMD / UCM.",
        "`paper` is MaPLe's few-shot classification recipe; in-batch captions replace the classes.",
        SGD_NOTE,
        CROP_NOTE,
        "`matched`: the learning rate 1e-3 is ours.",
    )
    Config = MapleConfig
    variants = {"j9_n2": Variant({}, 3_555_072, "9 x (2 x 512 + 512 x 768 + 768); the official defaults")}
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(train=IVLP_TRAIN),
    }
    space = {
        "method.tokens": Domain("choice", (2, 4, 8)),
        "method.depth": Domain("choice", (1, 3, 9)),
        "train.lr": Domain("loguniform", (1e-4, 1e-2)),
    }

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone beside text prompts and couplings."""
        config = self._config()
        words = config.words if config.tokens <= _FROM_WORDS else ""
        return _Coupled(backbone, text_start(backbone, self._sets(backbone), config.tokens, words, "maple"))

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """Prompts and couplings."""
        return parameters_under(model, "text_prompts", "couplings")

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """J (n W_text + W_text W_image + W_image)."""
        text, image = backbone.text.width, backbone.image.width
        return self._sets(backbone) * (self._config().tokens * text + text * image + image)

    def refuse(self, backbone: DualEncoder) -> str | None:
        """Also where the prompts leave no room for a caption."""
        config = self._config()
        return super().refuse(backbone) or refuse_text("maple", backbone, config.tokens, config.positions)

    def encode_image(self, model: nn.Module, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, E)."""
        assert isinstance(model, _Coupled)
        return self.head_image(
            model, pooled_image(model.backbone.image, images, model.image_prompts(), input_norm=True)
        )

    def encode_text(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """Tokens to (B, E)."""
        assert isinstance(model, _Coupled)
        text = model.backbone.text
        return self.head_text(model, pooled_text(text, tokens, model.text_prompts, self._config().positions))

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """Prompts, couplings, and the CLIP that MaPLe saves with them."""
        backbone = self._dual(model)
        deeper = range(self._sets(backbone) - 1)
        texts = [state.take("prompt_learner.ctx")]
        texts += [state.take(f"prompt_learner.compound_prompts_text.{i}") for i in deeper]
        found = {"text_prompts": stacked(texts)}
        layers = ["prompt_learner.proj", *(f"prompt_learner.compound_prompt_projections.{i}" for i in deeper)]
        for index, layer in enumerate(layers):
            for part in ("weight", "bias"):
                found[f"couplings.{index}.{part}"] = state.take(f"{layer}.{part}")
        state.drop(r"prompt_learner\.token_(prefix|suffix)", "word embeddings of the class names it was trained on")
        return found | take_encoders(state, backbone)

    def _sets(self, backbone: DualEncoder) -> int:
        depth = self._config().depth
        return min(sets_for(backbone.image, depth), sets_for(backbone.text, depth))

    def _config(self) -> MapleConfig:
        assert isinstance(self.config, MapleConfig)
        return self.config
