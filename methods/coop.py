"""CoOp: learned context tokens before the words of every caption, optionally fresh ones in every block."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import PositiveInt
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder, Tokens
from petlbench.methods.base import (
    PE_RSITR,
    Domain,
    MethodConfig,
    Preset,
    Published,
    Variant,
    parameters_under,
)
from petlbench.methods.layers.frozen_image import FrozenImageTower
from petlbench.methods.layers.openai_clip import require_openai_clip
from petlbench.methods.layers.prompts import (
    CROP_NOTE,
    OFFICIAL_CROP,
    POSITION_CHOICE,
    SGD_NOTE,
    Depth,
    Positions,
    PromptedEncoder,
    pooled_text,
    refuse_text,
    sets_for,
    text_start,
)
from petlbench.methods.official import OfficialState
from petlbench.methods.recipe import PE_RSITR_TRAIN


class CoopConfig(MethodConfig):
    """How many context tokens, where, and from what they start."""

    tokens: PositiveInt = 16
    depth: Depth = 1
    """Blocks, from the first, that get a set of their own; 1 is CoOp, ``all`` one set for every block."""
    words: str = ""
    """Text whose first ``tokens`` tokens give the start of the first set; empty: normal of deviation 0.02."""
    positions: Positions = "auto"


class Coop(FrozenImageTower):
    """Text prompts only: [start, context, caption, end]; both towers and everything else stay frozen.

    CoOp learns a context for class names; here the captions take their place. The image tower is untouched, so each
    picture goes through it once, not once an epoch.
    """

    title = "CoOp"
    paper = "Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022"
    code = "KaiyangZhou/CoOp"
    licence = "MIT"
    family = "prompt"
    official = (
        "prompt_learner checkpoint of KaiyangZhou/CoOp: `ctx`, beside the token_prefix and token_suffix of its classes"
    )
    choices = (
        "Captions stand where CoOp has class names; they are cut to the text context minus the number of prompts, keeping "
        "the end token.",
        POSITION_CHOICE,
        "The published retrieval rows print 0.10M, which fits prompts in all 12 blocks (98,304) but may be a misprint of the "
        "shallow 8,192; `paper` takes the former, the defaults are CoOp's own shallow form.",
        "`paper`: the loss, and everything else that differs between the baselines of PE-RSITR, is unknown; its main "
        "recipe is used for all.",
        "`official` is CoOp's 16-shot classification recipe; in-batch captions replace the classes.",
        SGD_NOTE,
        CROP_NOTE,
        "`matched`: the learning rate 2e-3 is ours.",
    )
    Config = CoopConfig
    variants = {
        "shallow": Variant({}, 8_192, "16 x 512; CoOp's default form"),
        "deep": Variant({"depth": "all"}, 98_304, "12 x 16 x 512; fits the printed 0.10M of PE-RSITR"),
    }
    presets = {
        "matched": Preset(train={"lr": 2e-3}),
        "paper": Preset(method={"depth": "all"}, train=PE_RSITR_TRAIN),
        "official": Preset(
            train={
                "optimizer": "sgd",
                "lr": 2e-3,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "decay": "all",
                "schedule": "cosine",
                "warmup": 1 / 200,
                "clip_norm": 0.0,
                "batch_size": 32,
                "epochs": 200,
                "augmentation": OFFICIAL_CROP,
            }
        ),
    }
    space = {
        "method.tokens": Domain("choice", (4, 8, 16)),
        "method.depth": Domain("choice", (1, "all")),
        "train.lr": Domain("loguniform", (2e-4, 2e-2)),
    }
    published = (
        Published("rsicd", PE_RSITR.format("I"), (6.32, 15.89, 27.60, 4.31, 17.89, 31.73), "0.10M", "unknown"),
        Published("rsitmd", PE_RSITR.format("II"), (12.19, 30.69, 42.82, 9.16, 33.85, 54.35), "0.10M", "unknown"),
        Published("ucm", PE_RSITR.format("III"), (7.19, 42.76, 74.19, 9.78, 48.34, 87.41), "0.10M", "unknown"),
    )

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone beside its text prompts."""
        config = self._config()
        sets = sets_for(backbone.text, config.depth)
        return PromptedEncoder(backbone, text=text_start(backbone, sets, config.tokens, config.words, "coop"))

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The prompts."""
        return parameters_under(model, "text_prompts")

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """D n W_text."""
        config = self._config()
        return sets_for(backbone.text, config.depth) * config.tokens * backbone.text.width

    def refuse(self, backbone: DualEncoder) -> str | None:
        """Also where the prompts leave no room for a caption."""
        config = self._config()
        return super().refuse(backbone) or refuse_text("coop", backbone, config.tokens, config.positions)

    def encode_text(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """Tokens to (B, E)."""
        assert isinstance(model, PromptedEncoder) and model.text_prompts is not None
        text = model.backbone.text
        return self.head_text(model, pooled_text(text, tokens, model.text_prompts, self._config().positions))

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """The one context tensor; CoOp has a single set, so ``depth`` has to be 1."""
        require_openai_clip(self._dual(model), state)
        state.drop(r"token_(prefix|suffix)", "word embeddings of the class names it was trained on")
        return {"text_prompts": state.take("ctx").float()[None]}

    def _config(self) -> CoopConfig:
        assert isinstance(self.config, CoopConfig)
        return self.config
