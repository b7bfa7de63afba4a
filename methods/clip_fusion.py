"""Fusion head: a small cross encoder over the frozen tokens of a dual encoder, added to the dual encoder's own score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from petlbench.methods import losses
from petlbench.methods.backbones.base import DualEncoder, Tokens
from petlbench.methods.base import Batch, Domain, MethodConfig, Preset, States, Variant, parameters_under
from petlbench.methods.layers.fusion_head import FusionHead, fusion_size
from petlbench.methods.pair import PairConfig, PairMethod, ranking, repeated
from petlbench.methods.recipe import LossConfig


class ClipFusionConfig(PairConfig):
    """Size of the head, and what stands beside it."""

    width: PositiveInt = 256
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    """Attention heads; a divisor of the width."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On what each branch of a layer adds, while training."""
    residual: bool = True
    """Add the dual encoder's cosine, divided by its temperature, to the score."""
    head_weight: NonNegativeFloat = 1.0
    """Weight of the ranking loss of the head's score without the cosine, which would otherwise leave it nothing to learn."""
    contrastive_weight: NonNegativeFloat = 1.0
    """Weight of InfoNCE between the residual's embeddings of a batch, where these train at all: on backbones whose joining
    heads are new."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ClipFusionConfig:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}; choose a divisor")
        return self


class FusedEncoder(nn.Module):
    """A frozen dual encoder and the fusion head.

    The towers stay in evaluation mode, so that they say the same in training as when their outputs were kept; joining heads
    that are new train, with their dropout.
    """

    def __init__(self, backbone: DualEncoder, head: FusionHead):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self._trained = {name.partition(".")[0] for name in backbone.new_parameters()}

    def train(self, mode: bool = True) -> FusedEncoder:
        """Training mode for the head and new joining heads; the towers stay in evaluation mode."""
        super().train(mode)
        for name, child in self.backbone.named_children():
            if name not in self._trained:
                child.eval()
        return self


class ClipFusion(PairMethod):
    """``score = cosine / temperature + head([CLS]; words; patches)`` over the tokens of frozen towers.

    Both towers run once per picture and per caption; only the head, a ViLT of two layers at width 256, runs per pair. Its
    output layer starts at zero, so that step 0 ranks as the dual encoder does. On towers that were never trained together
    the joining heads train with it, by the ranking loss and by a contrastive one. The head has a ranking loss of its own too:
    a cosine that trains beside it fits the training pairs sooner, and what is left teaches the head next to nothing.
    """

    title = "CLIP fusion head"
    licence = ""
    Config = ClipFusionConfig
    config: ClipFusionConfig
    kinds = ("open_clip", "two_tower", "swin_bert")
    keeps_states = True
    splits_by_row = False  # InfoNCE compares the rows of a batch
    identity_start = True
    choices = (
        "The harness's own baseline, no paper: ViLT's fusion and its ranking loss over the tokens of a frozen dual encoder.",
        "Without a published recipe, preset `paper` equals `matched`; its learning rate is ours.",
        "The dual encoder's scaled cosine is added to the score and the output layer starts at zero, so that training starts "
        "from the dual encoder's ranking (residual=false leaves the cosine out).",
        "A second ranking loss sees the head's score without the cosine; its weight is ours (head_weight=0 leaves it out).",
        "Matrices start by Xavier's rule, with which heads of this width learn sooner than with ViLT's deviation of 0.02.",
        "Heads have 64 channels, as in ViLT and CLIP; there are no positions besides those that the frozen tokens carry.",
        "Where joining heads are new, InfoNCE over the batch is added for the cosine's sake, as ALBEF adds it before its "
        "fusion; its weight is ours.",
        "Temperatures of aligned backbones stay frozen.",
    )
    variants = {
        "w256_n2": Variant({}, 1_909_249, "projections 328,192, types 512, class token 256, layers 1,579,520, end 769"),
        "w256_n1": Variant({"layers": 1}, 1_119_489, "one layer: hardly any work per pair"),
        "w384_n2": Variant({"width": 384, "heads": 6}, 4_043_521, "wider"),
        "w512_n2": Variant({"width": 512, "heads": 8}, 6_964_225, "widest"),
    }
    presets = {"matched": Preset(train={"lr": 1e-3}), "paper": Preset(train={"lr": 1e-3})}
    space = {
        "method.layers": Domain("choice", (1, 2)),
        "method.dropout": Domain("choice", (0.0, 0.1)),
        "train.lr": Domain("loguniform", (1e-4, 3e-3)),
    }

    def __init__(self, config: MethodConfig | None = None, loss: LossConfig | None = None):
        super().__init__(config, loss)
        if not self.config.residual:
            self.identity_start = False  # type: ignore[misc]  # the promise is the residual's

    def refuse(self, backbone: Any) -> str | None:
        """Also where joining heads are new and nothing would train them."""
        if (reason := super().refuse(backbone)) is not None:
            return reason
        if not self.config.residual and any(True for _ in backbone.new_parameters()):
            return (
                f"residual=false leaves the new joining heads of {backbone.name} without any use; set "
                "method.clip_fusion.residual=true, or choose an aligned backbone"
            )
        return None

    def build(self, backbone: Any) -> nn.Module:
        """The backbone beside the head."""
        config = self.config
        widths = backbone.image.width, backbone.text.width
        head = FusionHead(*widths, config.width, config.layers, config.heads, config.dropout, config.residual)
        return FusedEncoder(backbone, head).train(backbone.training)

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The head."""
        return parameters_under(model, "head")

    def expected_trainable(self, backbone: Any) -> int:
        """w (P_image + P_text) + 8 w + 1, and 12 w^2 + 13 w per layer; P are the widths of the towers."""
        return fusion_size(backbone.image.width, backbone.text.width, self.config.width, self.config.layers)

    def states_settings(self) -> Mapping[str, Any]:
        """None of the settings changes what the towers say, so that all forms of the head share kept states."""
        return {}

    def image_states(self, model: nn.Module, images: Tensor) -> States:
        """(B, 3, H, W) to ``tokens``, (B, N, W) after the tower's final norm, and ``pooled``, (B, P)."""
        tower = self._dual(model).image
        hidden = tower.run(tower.embed(images))
        return {"tokens": tower.finish(hidden), "pooled": tower.pool(hidden)}

    def text_states(self, model: nn.Module, tokens: Tokens) -> States:
        """B captions to ``tokens``, (B, L, W), their ``mask``, (B, L), and ``pooled``, (B, P)."""
        tower = self._dual(model).text
        hidden = tower.run(tower.embed(tokens))
        return {"tokens": tower.finish(hidden), "mask": tokens.mask, "pooled": tower.pool(hidden)}

    def prepare_image(self, model: nn.Module, states: States) -> States:
        """Tokens at the head's width, as far as they can be taken alone, and the unit embedding of the residual."""
        prepared = _fused(model).head.image_tokens(states["tokens"])
        if self.config.residual:
            prepared["embedding"] = _unit(self._dual(model).project_image(states["pooled"]))
        return prepared

    def prepare_text(self, model: nn.Module, states: States) -> States:
        """The same for captions, with their mask."""
        prepared = {**_fused(model).head.text_tokens(states["tokens"]), "mask": states["mask"]}
        if self.config.residual:
            prepared["embedding"] = _unit(self._dual(model).project_text(states["pooled"]))
        return prepared

    def score(self, model: nn.Module, image: States, text: States) -> Tensor:
        """(B,) fp32: the head's score plus the scaled cosine."""
        score = _fused(model).head(image, text)
        return score + self._scaled_cosine(model, image, text) if self.config.residual else score

    def views(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """(B, 1 + K) scores of the head; with the residual also those of the cosine, and (B, E) embeddings of both sides."""
        image, text = self.prepared(model, batch)
        shape = len(batch), len(text["mask"]) // len(batch)
        beside = repeated(image, shape[1])
        head = _fused(model).head(beside, text).view(shape)
        if not self.config.residual:
            return (head,)
        cosine = self._scaled_cosine(model, beside, text).view(shape)
        return head, cosine, image["embedding"], text["embedding"].unflatten(0, shape)[:, 0]

    def compare(self, model: nn.Module, batch: Batch, *views: Tensor) -> dict[str, Tensor]:
        """The ranking loss of the score, that of the head alone and, where joining heads train, InfoNCE over the batch."""
        head, *rest = views
        if not rest:
            return {"ranking": ranking(head)}
        cosine, image, text = rest
        found = {"ranking": ranking(head + cosine)}
        if weight := self.config.head_weight:
            found["head"] = weight * ranking(head)
        backbone = self._dual(model)
        if (weight := self.config.contrastive_weight) and any(True for _ in backbone.new_parameters()):
            logits = backbone.logit_scale.float().exp() * image @ text.T
            same = losses.same_pair(batch.image_ids, batch.text_ids)
            found["contrastive"] = weight * losses.infonce(logits, ignore=same)
        return found

    def _scaled_cosine(self, model: nn.Module, image: States, text: States) -> Tensor:
        """(B,) fp32 scores of the dual encoder."""
        cosine = (image["embedding"] * text["embedding"]).sum(-1)
        return self._dual(model).logit_scale.float().exp() * cosine


def _fused(model: nn.Module) -> FusedEncoder:
    assert isinstance(model, FusedEncoder)
    return model


def _unit(embedding: Tensor) -> Tensor:
    """(B, E) fp32 of length 1; bf16 would round cosines where their differences decide."""
    return F.normalize(embedding.float(), dim=-1)
