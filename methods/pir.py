"""PIR: Swin-T and BERT trained whole, a frozen scene prior that guides the image head, words read in cycles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from petlbench.methods import losses
from petlbench.methods.backbones.base import DualEncoder, Tokens
from petlbench.methods.base import Batch, Domain, Method, MethodConfig, MethodError, Preset, Published
from petlbench.methods.layers import pir_layout
from petlbench.methods.layers.joint_tokens import image_tokens, text_tokens
from petlbench.methods.layers.prior_blocks import CyclicReadout, PriorReadout, head_size
from petlbench.methods.layers.scene_prior import PRIOR_WIDTH, PriorName, ScenePrior
from petlbench.methods.official import OfficialState

_PAPER = "Pan et al., A Prior Instruction Representation Framework for Remote Sensing Image-text Retrieval, ACM MM 2023"

PIR_TRAIN = {
    "optimizer": "adamw",
    "lr": 6e-5,
    "betas": (0.9, 0.98),
    "eps": 1e-8,
    "weight_decay": 0.01,
    "schedule": "linear",
    "warmup": 0.1,
    "clip_norm": 0.0,
    "batch_size": 256,
    "epochs": 50,
    "sampling": "caption",
    "captions": "cleaned",
    "loss": {"name": "multi_positive", "positives": "image"},
    "augmentation": {
        "random_resized_crop": (0.5, 1.0),
        "horizontal_flip": 0.5,
        "randaugment": {"ops": 2, "magnitude": 7, "probability": 0.5},
    },
    "precision": "fp32",
}

_RELEASED = {"padding": "seen", "text_term": "transposed", "class_less": "own_class"}


class PirConfig(MethodConfig):
    """Sizes, prior and loss; the defaults repair what the released code leaves to chance, ``paper`` repeats it."""

    prior: PriorName = "resnet50"
    """The frozen network; ``resnet18`` for small backbones."""
    prior_weights: str = "random"
    """``random``, or a file with a ResNet in torchvision's names, read strictly."""
    image_steps: PositiveInt = 2
    text_steps: PositiveInt = 3
    keep: float = Field(0.8, gt=0, le=1)
    """Share of the image tokens that the prior keeps (40 of 50)."""
    heads: PositiveInt = 8
    dropout: float = Field(0.2, ge=0, lt=1)
    affiliation: NonNegativeFloat = 1.0
    """Weight of the affiliation loss; 0 leaves it out, with its temperature."""
    temperature: PositiveFloat = 0.07
    """Start of the affiliation loss's own temperature, which divides the similarities."""
    padding: Literal["masked", "seen"] = "masked"
    """``seen``: BERT and the text head attend to padding, as in the released code, which masks nothing. Every caption is
    then padded to the whole context, so that its embedding does not depend on the batch."""
    text_term: Literal["natural", "transposed"] = "natural"
    """``natural``: texts over image centres. ``transposed``: image centres over texts, as in the released code."""
    class_less: Literal["excluded", "own_class"] = "excluded"
    """Pictures without a class (921 of RSICD) in the affiliation loss: left out, or each its own class, as released."""


class _Pir(nn.Module):
    def __init__(self, backbone: DualEncoder, config: PirConfig):
        super().__init__()
        self.backbone = backbone
        width, heads, dropout = backbone.embed_dim, config.heads, config.dropout
        self.prior = ScenePrior(config.prior, config.prior_weights, backbone.resolution)
        self.image_head = PriorReadout(width, self.prior.width, config.image_steps, heads, dropout, config.keep)
        self.text_head = CyclicReadout(width, config.text_steps, heads, dropout)
        self.temp2 = nn.Parameter(torch.tensor(config.temperature))


class Pir(Method):
    """Both towers trained whole; each pooled embedding plus a head over all tokens of its modality.

    Image: a frozen ResNet's output, as *prior*, orders the projected tokens, the first 80 % are kept and attended to under
    its guidance (VIR). Text: self-attention, queried by the state before it, three times (LCA). Losses: multi-positive
    contrastive, and affiliation to the class centres of the other modality, with a temperature of its own.

    This is no parameter-efficient method: 161,134,460 of 184,642,492 parameters are trained on ``swin-bert``.
    """

    title = "PIR"
    paper = _PAPER
    code = "jaychempan/PIR"
    licence = "MIT"
    family = "baseline"
    kinds = ("swin_bert", "open_clip", "two_tower")
    choices = (
        "The default prior is a random frozen ResNet-50: the released loader matches 0 of 320 names of its checkpoint and says"
        " nothing, so this is what it trained with; prior_weights=FILE gives a real one, read strictly.",
        "The prior stays in evaluation mode; the released code lets its batch norms use and follow the batch.",
        "The norms of a random prior take their statistics from noise pictures drawn with the trial's seed.",
        "Prior weights are read by build(), the one file that a method of this project reads beside its backbone's.",
        "Tokens are ordered by the plain product with the prior; the softmax of the code has the same order but for ties.",
        "All kept tokens share one query of the prior, so in training they share its attention dropout too.",
        "Default: padding masked, text term natural, class-less pictures excluded; preset paper takes the released behaviour,"
        " with captions padded to 47 tokens instead of the longest of the batch.",
        "paper: weight decay acts on all matrices; the code also decays temperatures and the norms inside feed-forward parts,"
        " and spares Swin's position tables.",
        "paper: published runs chose their epoch on the test split; here validation chooses.",
        "paper: one batch of 256 here; there two of 128, with class centres of each half.",
        "On other backbones the text is read where they pool (CLIP: end token), every token through the joint projection;"
        " towers and heads are all trained.",
        "matched: learning rate and loss are the paper's, everything else is the common recipe.",
        "Augmented pictures get their prior computed in every step, as in the released code; where nothing is augmented it is"
        " computed once per picture.",
    )
    official = (
        "authors' checkpoint_best.pth: {model: vision_encoder.*, text_encoder.*, conv_encoder.*, VIR, LCA, temp, temp2} on"
        " swin-bert, 184,642,492 parameters"
    )
    Config = PirConfig
    presets = {
        "matched": Preset(train={"lr": 6e-5, "loss": PIR_TRAIN["loss"]}),
        "paper": Preset(method=_RELEASED, train=PIR_TRAIN),
    }
    space = {
        "method.keep": Domain("choice", (0.4, 0.6, 0.8, 1.0)),
        "train.lr": Domain("loguniform", (1e-6, 2e-4)),
    }
    published = (
        Published("rsicd", f"{_PAPER}, Tab. 1", (9.88, 27.26, 39.16, 6.97, 24.56, 38.92), "161M of 185M", "test"),
        Published("rsitmd", f"{_PAPER}, Tab. 1", (18.14, 41.15, 52.88, 12.17, 41.68, 63.41), "161M of 185M", "test"),
    )

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone beside the frozen prior and both heads, all at their default initialisation.

        Raises:
            MethodError: The heads do not divide the joint width.
        """
        config = self._config()
        if backbone.embed_dim % config.heads:
            raise MethodError(
                f"method {self.name}: heads={config.heads} does not divide the joint width {backbone.embed_dim} of "
                f"{backbone.name}; choose a divisor"
            )
        if config.padding == "seen":
            backbone.trims_text = False
        return _Pir(backbone, config)

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """Everything but the prior; the affiliation loss's temperature only where that loss is."""
        left_out = ("prior.",) if self._config().affiliation else ("prior.", "temp2")
        return [name for name, _ in model.named_parameters() if not name.startswith(left_out)]

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """The backbone, steps of 17 E^2 + 31 E, two outputs E^2 + E, the prior's projection (P + 1) E, a temperature."""
        config, width = self._config(), backbone.embed_dim
        new = set(backbone.new_parameters())
        towers = sum(p.numel() for n, p in backbone.named_parameters() if n not in new)
        image = head_size(width, config.image_steps, prior_width=PRIOR_WIDTH[config.prior])
        return towers + image + head_size(width, config.text_steps) + bool(config.affiliation)

    def encode_image(self, model: nn.Module, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, E): the embedding plus what the guided tokens say."""
        return self.encode_image_beside(model, images, self.side_features(model, images))

    def side_features(self, model: nn.Module, images: Tensor) -> Tensor:
        """(B, P) output of the frozen prior."""
        return self._model(model).prior(images)

    def encode_image_beside(self, model: nn.Module, images: Tensor, side: Tensor | None) -> Tensor:
        """As :meth:`encode_image`, with the prior's output already computed."""
        if side is None:
            return self.encode_image(model, images)
        found = image_tokens(self._dual(model), images)
        return found.pooled + self._model(model).image_head(found.tokens, side)

    def encode_text(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """Tokens to (B, E): the embedding plus what the cycles read."""
        if self._config().padding == "seen":
            tokens = Tokens(tokens.ids, torch.ones_like(tokens.mask))
        found = text_tokens(self._dual(model), tokens)
        mask = None if self._config().padding == "seen" else found.mask
        return found.pooled + self._model(model).text_head(found.tokens, mask, found.read_at)

    def compare(self, model: nn.Module, batch: Batch, *views: Tensor) -> dict[str, Tensor]:
        """The chosen loss, and ``affiliation`` (0 where no label of the batch is known)."""
        config = self._config()
        image, text = views[:2]
        terms = super().compare(model, batch, *views)
        if config.affiliation:
            labels = torch.full_like(batch.image_ids, -1) if batch.labels is None else batch.labels
            if config.class_less == "own_class":
                labels = losses.own_classes(labels, batch.image_ids)
            scale = 1 / self._model(model).temp2
            value = losses.affiliation(image, text, scale, labels, transposed=config.text_term == "transposed")
            terms["affiliation"] = config.affiliation * value
        return terms

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """Everything: towers, prior with its statistics, heads and temperatures.

        Raises:
            MethodError: The model is not of the released form.
        """
        config, dual = self._config(), self._dual(model)
        if dual.provenance.kind != "swin_bert" or config.prior != "resnet50":
            raise MethodError(
                f"method {self.name}: {state.source} holds Swin-T, BERT-base and a ResNet-50; asked for {dual.name} and "
                f"{config.prior}. Use the backbone swin-bert and method.prior=resnet50"
            )
        return pir_layout.imported(state, config.image_steps, config.text_steps, bool(config.affiliation))

    def _config(self) -> PirConfig:
        assert isinstance(self.config, PirConfig)
        return self.config

    @staticmethod
    def _model(model: nn.Module) -> _Pir:
        assert isinstance(model, _Pir)
        return model
