"""VL-Prompt: independent learned tokens in both towers."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import PositiveInt
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder, Tokens
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
from petlbench.methods.layers.clip_layout import take_encoders
from petlbench.methods.layers.prompts import (
    CROP_NOTE,
    IVLP_TRAIN,
    POSITION_CHOICE,
    SGD_NOTE,
    Depth,
    Init,
    Positions,
    PromptedEncoder,
    image_start,
    pooled_image,
    pooled_text,
    refuse_text,
    sets_for,
    stacked,
    text_start,
)
from petlbench.methods.official import OfficialState
from petlbench.methods.recipe import PE_RSITR_TRAIN

_IVLP = {
    "image_tokens": 2,
    "text_tokens": 2,
    "text_depth": "all",
    "image_init": "normal",
    "input_norm": True,
    "words": "a photo of a",
}


class VlPromptConfig(MethodConfig):
    """How many prompts per tower, how deep, and from what they start."""

    image_tokens: PositiveInt = 50
    image_depth: Depth = "all"
    """Blocks, from the first, that get a set of their own."""
    text_tokens: PositiveInt = 16
    text_depth: Depth = 1
    image_init: Init = "uniform"
    """``uniform``: VPT's bound from patch side and width. ``normal``: deviation 0.02, as in IVLP."""
    input_norm: bool = False
    """Pass the first visual set through CLIP's ``ln_pre``, as IVLP does."""
    words: str = ""
    """Text whose first tokens give the start of the first text set; empty: normal of deviation 0.02."""
    positions: Positions = "auto"


class VlPrompt(Method):
    """VPT in the image tower and CoOp in the text tower, trained together without a coupling.

    The row of PE-RSITR has no reference of its own. The nearest method with code is the independent vision-language
    prompting (IVLP) of the MaPLe repository, reached by `variants` and by the preset `official`.
    """

    title = "VL-Prompt"
    paper = (
        "Yuan et al., Parameter-Efficient Transfer Learning for Remote Sensing Image-Text Retrieval (its baseline VL-Prompt; "
        "compare IVLP in Khattak et al. CVPR 2023), TGRS 2023"
    )
    code = "muzairkhattak/multimodal-prompt-learning"
    licence = "MIT"
    family = "prompt"
    official = (
        "model checkpoint of the IVLP trainer: prompt_learner.ctx, image_encoder.VPT, *.VPT_shallow and a whole CLIP"
    )
    choices = (
        "The published row has no reference; 50 deep visual and 16 shallow text prompts are the combination of its table's "
        "VPT and of CoOp's shallow form whose size fits the printed 0.47M.",
        "Start values and places are those of VPT and CoOp, not of IVLP.",
        POSITION_CHOICE,
        "`paper`: the loss of the baselines of PE-RSITR is unknown; its main recipe is used.",
        "`official` is IVLP's few-shot classification recipe; in-batch captions replace the classes.",
        SGD_NOTE,
        CROP_NOTE,
        "`matched`: the learning rate 2e-3 is ours.",
    )
    Config = VlPromptConfig
    variants = {
        "paper_size": Variant({}, 468_992, "460,800 + 8,192; fits the printed 0.47M of PE-RSITR"),
        "ivlp_2": Variant(_IVLP, 30_720, "12 x 2 x (768 + 512); IVLP's configuration 2+2, depth 12"),
        "ivlp_16": Variant(
            {**_IVLP, "image_tokens": 16, "text_tokens": 16, "words": ""}, 245_760, "12 x 16 x (768 + 512)"
        ),
    }
    presets = {
        "matched": Preset(train={"lr": 2e-3}),
        "paper": Preset(train=PE_RSITR_TRAIN),
        "official": Preset(
            method=_IVLP,
            train=IVLP_TRAIN,
        ),
    }
    space = {
        "method.image_tokens": Domain("choice", (2, 16, 50)),
        "method.text_depth": Domain("choice", (1, "all")),
        "train.lr": Domain("loguniform", (2e-4, 2e-2)),
    }
    published = (
        Published("rsicd", PE_RSITR.format("I"), (6.47, 17.05, 28.68, 6.69, 22.62, 36.16), "0.47M", "unknown"),
        Published("rsitmd", PE_RSITR.format("II"), (12.81, 31.28, 42.64, 12.61, 36.20, 58.84), "0.47M", "unknown"),
        Published("ucm", PE_RSITR.format("III"), (7.97, 45.48, 75.96, 12.51, 51.57, 91.52), "0.47M", "unknown"),
    )

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone beside the prompts of both towers."""
        config = self._config()
        image, text = self._sets(backbone)
        return PromptedEncoder(
            backbone,
            image_start(backbone.image, image, config.image_tokens, config.image_init),
            text_start(backbone, text, config.text_tokens, config.words, "vl_prompt"),
        )

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The prompts."""
        return parameters_under(model, "image_prompts", "text_prompts")

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """D_image n_image W_image + D_text n_text W_text."""
        config = self._config()
        image, text = self._sets(backbone)
        return image * config.image_tokens * backbone.image.width + text * config.text_tokens * backbone.text.width

    def refuse(self, backbone: DualEncoder) -> str | None:
        """Also where the prompts leave no room for a caption."""
        config = self._config()
        return super().refuse(backbone) or refuse_text(
            "vl_prompt", backbone, config.text_tokens, config.positions, key="text_tokens"
        )

    def encode_image(self, model: nn.Module, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, E)."""
        assert isinstance(model, PromptedEncoder) and model.image_prompts is not None
        pooled = pooled_image(model.backbone.image, images, model.image_prompts, input_norm=self._config().input_norm)
        return self.head_image(model, pooled)

    def encode_text(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """Tokens to (B, E)."""
        assert isinstance(model, PromptedEncoder) and model.text_prompts is not None
        text = model.backbone.text
        return self.head_text(model, pooled_text(text, tokens, model.text_prompts, self._config().positions))

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """Prompts of both towers, and the CLIP that IVLP saves with them."""
        backbone = self._dual(model)
        image, text = self._sets(backbone)
        shallow = "{}.transformer.resblocks.{}.VPT_shallow"
        found = {
            "image_prompts": stacked(
                [state.take("image_encoder.VPT")]
                + [state.take(shallow.format("image_encoder", i)) for i in range(1, image)]
            ),
            "text_prompts": stacked(
                [state.take("prompt_learner.ctx")]
                + [state.take(shallow.format("text_encoder", i)) for i in range(1, text)]
            ),
        }
        state.drop(r"prompt_learner\.token_(prefix|suffix)", "word embeddings of the class names it was trained on")
        return found | take_encoders(state, backbone)

    def _sets(self, backbone: DualEncoder) -> tuple[int, int]:
        config = self._config()
        return sets_for(backbone.image, config.image_depth), sets_for(backbone.text, config.text_depth)

    def _config(self) -> VlPromptConfig:
        assert isinstance(self.config, VlPromptConfig)
        return self.config
