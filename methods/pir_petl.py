"""PIR's heads on a frozen dual encoder: patches read under a scene prior, words read in cycles, both added to the embedding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from petlbench.methods import losses
from petlbench.methods.backbones.base import DualEncoder, Tokens
from petlbench.methods.base import Batch, Domain, Method, MethodConfig, Preset, Variant, parameters_under
from petlbench.methods.layers.joint_tokens import image_tokens, text_tokens
from petlbench.methods.layers.prior_blocks import CyclicReadout, PriorReadout, head_size
from petlbench.methods.layers.scene_prior import PRIOR_WIDTH, PriorName, ScenePrior
from petlbench.methods.pir import PIR_TRAIN
from petlbench.methods.recipe import LossConfig


class PirPetlConfig(MethodConfig):
    """Sizes of the two heads, the prior, and where they start."""

    bottleneck: PositiveInt | None = 64
    """Width d of the attention blocks; None: that of the joint space, as in PIR."""
    share: bool = False
    """Use one step's weights for all steps of a head."""
    image_steps: PositiveInt = 2
    text_steps: PositiveInt = 3
    heads: PositiveInt = 8
    """Must divide the width of the blocks."""
    keep: float = Field(0.8, gt=0, le=1)
    """Share of the image tokens that pass the filter; 40 of 50 in PIR."""
    belief: Literal["dot", "cosine"] = "dot"
    """What orders the tokens: plain products with the prior, or products of tokens of length 1."""
    dropout: float = Field(0.2, ge=0, lt=1)
    init: Literal["zero", "original"] = "zero"
    """Start of the two output layers; ``original``, random as in PIR, changes the embeddings before the first step."""
    prior: PriorName = "resnet50"
    prior_weights: str = "random"
    """``random``, or a file with a scene classifier of torchvision's names."""
    affiliation: NonNegativeFloat = 1.0
    """Weight of the affiliation loss; batches without labels have none."""


class _Read(nn.Module):
    """A backbone, the frozen prior, and the two heads."""

    def __init__(self, backbone: DualEncoder, prior: ScenePrior, image: PriorReadout, text: CyclicReadout):
        super().__init__()
        self.backbone = backbone
        self.prior = prior
        self.image_head = image
        self.text_head = text


class PirPetl(Method):
    """``embedding + H(v)`` on both sides, where v is read from the tokens of the frozen towers in the joint space.

    Pictures (VIR): tokens are ordered by their product with the projected scene prior, the first 80 % attend to each other and
    are queried by the prior, twice; v is the state of the first. Captions (LCA): self-attention, then the former state
    queries the new one, three times; v is the state at the token that the backbone pools. Both run at width d between
    projections down and up. The prior is a ResNet that is never trained; it costs inference as much as a tower does.
    """

    title = "PIR heads (PETL)"
    paper = (
        "Pan et al., A Prior Instruction Representation Framework for Remote Sensing Image-text Retrieval, ACM MM 2023"
    )
    code = "jaychempan/PIR"
    licence = "MIT"
    family = "head"
    Config = PirPetlConfig
    identity_start = True
    choices = (
        "The port to a frozen encoder is ours: PIR trains its towers. So are the bottlenecks; without one (bottleneck null) the "
        "heads have PIR's size, 16 % of CLIP ViT-B/32, which should not be called parameter-efficient.",
        "The output layers start at zero, so that step 0 is the backbone; PIR starts them at random (init=original).",
        "The text head is read at CLIP's end token, as the first token of a causal tower sees nothing else, and does not "
        "attend to padding.",
        "Belief is taken at the width of the blocks, below the projection down where there is one.",
        "The class token, in place of PIR's mean of all patches, is the first of the image tokens.",
        "Both losses use the backbone's frozen temperature; PIR trains one for each.",
        "The prior's published weights are not to be had; a random prior is what the released PIR code effectively trains "
        "with, and here the default. The file of `prior_weights` is read when the method is built.",
        "The learning rate of `matched` is ours; preset `paper` has PIR's recipe and sizes, which no one has published on a "
        "frozen encoder.",
    )
    variants = {
        "bottleneck_64": Variant({}, 621_440, "between d = 64 projections"),
        "original_size": Variant({"bottleneck": None}, 23_936_000, "PIR's VIR 10,256,384 and LCA 13,679,616"),
        "original_shared": Variant({"bottleneck": None, "share": True}, 10_519_040, "one step's weights per head"),
        "bottleneck_128": Variant({"bottleneck": 128}, 1_938_176, "between d = 128 projections"),
        "bottleneck_32": Variant({"bottleneck": 32}, 224_192, "between d = 32 projections"),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(
            method={"bottleneck": None, "init": "original"},
            train=PIR_TRAIN,
        ),
    }
    space = {
        "method.bottleneck": Domain("choice", (32, 64, 128)),
        "method.affiliation": Domain("choice", (0.0, 0.5, 1.0)),
        "train.lr": Domain("loguniform", (1e-4, 3e-3)),
    }

    def __init__(self, config: MethodConfig | None = None, loss: LossConfig | None = None):
        super().__init__(config, loss)
        if self._config().init == "original":
            self.identity_start = False  # type: ignore[misc]  # the promise depends on the start

    def refuse(self, backbone: DualEncoder) -> str | None:
        """Also where the attention heads do not divide the width of the blocks."""
        if (reason := super().refuse(backbone)) is not None:
            return reason
        config = self._config()
        if (width := config.bottleneck or backbone.embed_dim) % config.heads:
            return f"heads={config.heads} does not divide the width {width} of its blocks; choose a divisor"
        return None

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone beside the prior and the two heads."""
        config, width = self._config(), backbone.embed_dim
        # On a backbone that is there in shape only, the prior needs no values either.
        with torch.device(next(backbone.parameters()).device):
            prior = ScenePrior(config.prior, config.prior_weights, backbone.resolution)
        common = (config.heads, config.dropout)
        inner, share, zero = config.bottleneck, config.share, config.init == "zero"
        image = PriorReadout(
            width, prior.width, config.image_steps, *common, config.keep, inner, share, zero, config.belief
        )
        return _Read(backbone, prior, image, CyclicReadout(width, config.text_steps, *common, inner, share, zero))

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The two heads."""
        return parameters_under(model, "image_head", "text_head")

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """Per step 17 d^2 + 31 d; besides both ways out d E + E, the prior's P d + d, and with a bottleneck 2 (E d + d)."""
        config = self._config()
        image = head_size(
            backbone.embed_dim, config.image_steps, config.bottleneck, config.share, PRIOR_WIDTH[config.prior]
        )
        return image + head_size(backbone.embed_dim, config.text_steps, config.bottleneck, config.share)

    def compare(self, model: nn.Module, batch: Batch, *views: Tensor) -> dict[str, Tensor]:
        """The chosen loss, and the affiliation loss where the batch carries labels."""
        image, text = views[:2]
        found = super().compare(model, batch, *views)
        if (weight := self._config().affiliation) and batch.labels is not None:
            scale = self.logit_scale(model).exp()
            found["affiliation"] = weight * losses.affiliation(image, text, scale, batch.labels)
        return found

    def encode_image(self, model: nn.Module, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, E)."""
        return self.encode_image_beside(model, images, None)

    def side_features(self, model: nn.Module, images: Tensor) -> Tensor:
        """(B, P) output of the frozen prior."""
        assert isinstance(model, _Read)
        return model.prior(images)

    def encode_image_beside(self, model: nn.Module, images: Tensor, side: Tensor | None) -> Tensor:
        """As :meth:`encode_image`, with the prior's output where it is already known."""
        assert isinstance(model, _Read)
        found = image_tokens(model.backbone, images)
        return found.pooled + model.image_head(found.tokens, model.prior(images) if side is None else side)

    def encode_text(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """Tokens to (B, E)."""
        assert isinstance(model, _Read)
        found = text_tokens(model.backbone, tokens)
        return found.pooled + model.text_head(found.tokens, found.mask, found.read_at)

    def _config(self) -> PirPetlConfig:
        assert isinstance(self.config, PirPetlConfig)
        return self.config
