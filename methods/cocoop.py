"""CoCoOp: context tokens shifted by a small network of the input; here of the caption, so that retrieval stays a ranking."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder, Tokens
from petlbench.methods.base import Domain, MethodConfig, Preset, Variant, parameters_under
from petlbench.methods.layers.frozen_image import FrozenImageTower
from petlbench.methods.layers.openai_clip import require_openai_clip
from petlbench.methods.layers.prompts import (
    CROP_NOTE,
    OFFICIAL_CROP,
    POSITION_CHOICE,
    SGD_NOTE,
    Positions,
    pooled_text,
    refuse_text,
    text_start,
)
from petlbench.methods.official import OfficialState

_REDUCTION = 16
_LEAST = 8


class CocoopConfig(MethodConfig):
    """How many context tokens, and from what they start."""

    tokens: PositiveInt = 4
    words: str = "a photo of a"
    """Text whose first ``tokens`` tokens give the start; empty: normal of deviation 0.02."""
    positions: Positions = "auto"


class _Conditional(nn.Module):
    """A backbone, context vectors (n, W_text), and a bottleneck from an embedding (E) to one shift (W_text)."""

    def __init__(self, backbone: DualEncoder, prompts: Tensor):
        super().__init__()
        self.backbone = backbone
        self.text_prompts = nn.Parameter(prompts)
        inner = max(_LEAST, backbone.embed_dim // _REDUCTION)
        self.shift = nn.Sequential(
            nn.Linear(backbone.embed_dim, inner), nn.ReLU(), nn.Linear(inner, backbone.text.width)
        )

    def prompts(self, condition: Tensor) -> Tensor:
        """(B, E) L2-normalised conditions to (B, n, W_text)."""
        return self.text_prompts + self.shift(condition)[:, None]


class Cocoop(FrozenImageTower):
    """Text prompts that depend on the input through a two-layer network; both towers stay frozen.

    As published, the condition is the *image*: each caption then has another embedding for each picture, and ranking N
    pictures against M captions takes N x M text encodings (:meth:`text_encodings`; RSICD test: 1,093 x 5,465 = 5.97
    million, against 5,465 for a dual encoder). No embedding can stand for that, and conditioning a caption only on its own
    picture while training would give the answer away. The method trained and evaluated here is therefore a port: the
    condition is the caption's *own* frozen embedding, which lies in the same space as the image's. It costs two text passes
    per caption, the first without gradient. :meth:`score_pairs` is the published form, exact and at its full price, for
    any weights.
    """

    title = "CoCoOp (text-conditioned port)"
    paper = "Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022"
    code = "KaiyangZhou/CoOp"
    licence = "MIT"
    family = "prompt"
    official = (
        "prompt_learner checkpoint of KaiyangZhou/CoOp: `ctx` and `meta_net.linear{1,2}`; trained for image conditions, so "
        "meant for score_pairs"
    )
    choices = (
        "The condition is the caption's own frozen embedding instead of the image's, in training and evaluation alike; the "
        "published form needs N x M text encodings (RSICD test: 5.97 million) and is offered as score_pairs only.",
        "The bottleneck E / 16 is at least 8 wide: on small spaces a single ReLU unit would often be dead from the start.",
        "No retrieval result of CoCoOp is known; PE-RSITR's tables leave it out.",
        POSITION_CHOICE,
        "`paper`: the official batch is one image against all classes; in-batch captions replace the classes, so that the "
        "batch is 32, as for CoOp.",
        SGD_NOTE,
        CROP_NOTE,
        "`matched`: the learning rate 2e-3 is ours.",
    )
    Config = CocoopConfig
    variants = {
        "n4": Variant({}, 35_360, "4 x 512 + 33,312; the published configuration"),
        "n16": Variant({"tokens": 16, "words": ""}, 41_504, "16 x 512 + 33,312"),
    }
    presets = {
        "matched": Preset(train={"lr": 2e-3}),
        "paper": Preset(
            train={
                "optimizer": "sgd",
                "lr": 2e-3,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "decay": "all",
                "schedule": "cosine",
                "warmup": 1 / 10,
                "clip_norm": 0.0,
                "batch_size": 32,
                "epochs": 10,
                "augmentation": OFFICIAL_CROP,
            }
        ),
    }
    space = {
        "method.tokens": Domain("choice", (1, 2, 4)),  # the start takes its words from four tokens
        "train.lr": Domain("loguniform", (2e-4, 2e-2)),
    }

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone beside context vectors and the conditioning network."""
        config = self._config()
        return _Conditional(backbone, text_start(backbone, 1, config.tokens, config.words, "cocoop")[0])

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """Context vectors and the conditioning network."""
        return parameters_under(model, "text_prompts", "shift")

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """n W_text + (E h + h) + (h W_text + W_text) with h = E / 16, at least 8."""
        width, embed = backbone.text.width, backbone.embed_dim
        inner = max(8, embed // 16)
        return self._config().tokens * width + (embed + 1) * inner + (inner + 1) * width

    def refuse(self, backbone: DualEncoder) -> str | None:
        """Also where the prompts leave no room for a caption."""
        config = self._config()
        return super().refuse(backbone) or refuse_text("cocoop", backbone, config.tokens, config.positions)

    def encode_text(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """Tokens to (B, E), conditioned on the captions' own frozen embeddings."""
        assert isinstance(model, _Conditional)
        with torch.no_grad():
            condition = F.normalize(model.backbone.encode_text(tokens).float(), dim=-1)
        return self._conditioned(model, tokens, model.prompts(condition))

    @torch.no_grad()
    def score_pairs(self, model: nn.Module, images: Tensor, tokens: Tokens) -> Tensor:
        """(N, M) cosines of N pictures and M captions in the published form: every caption anew for every picture.

        Args:
            model: What :meth:`build` returned.
            images: (N, 3, H, W) pictures.
            tokens: M captions; they make one batch, N times.
        """
        assert isinstance(model, _Conditional)
        image = F.normalize(self.encode_image(model, images), dim=-1)
        prompts = model.prompts(image)
        rows = [self._conditioned(model, tokens, row.expand(len(tokens), -1, -1)) for row in prompts]
        return torch.stack([F.normalize(text, dim=-1) @ own for text, own in zip(rows, image, strict=True)])

    @staticmethod
    def text_encodings(images: int, captions: int) -> int:
        """Passes of the text tower that :meth:`score_pairs` needs for a whole split."""
        return images * captions

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """Context vectors and meta-net."""
        require_openai_clip(self._dual(model), state)
        state.drop(r"token_(prefix|suffix)", "word embeddings of the class names it was trained on")
        found = {"text_prompts": state.take("ctx").float()}
        for ours, theirs in (("shift.0", "meta_net.linear1"), ("shift.2", "meta_net.linear2")):
            for part in ("weight", "bias"):
                found[f"{ours}.{part}"] = state.take(f"{theirs}.{part}")
        return found

    def _conditioned(self, model: _Conditional, tokens: Tokens, prompts: Tensor) -> Tensor:
        pooled = pooled_text(model.backbone.text, tokens, prompts[None], self._config().positions)
        return self.head_text(model, pooled)

    def _config(self) -> CocoopConfig:
        assert isinstance(self.config, CocoopConfig)
        return self.config
