"""PIR-CLIP: a prior network's token in front of the image tower's patches, which are weighted by their belief in it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from petlbench.methods import losses
from petlbench.methods.backbones.base import DualEncoder, Hidden
from petlbench.methods.backbones.open_clip_towers import OpenClipImageTower
from petlbench.methods.base import (
    Batch,
    Domain,
    Method,
    MethodConfig,
    MethodError,
    Preset,
    Variant,
    names_in,
    parameters_under,
)
from petlbench.methods.layers.openai_clip import take_clip
from petlbench.methods.layers.prior_resnet import RANDOM, STRIDE, PriorResNet, prior_scalars
from petlbench.methods.official import OfficialError, OfficialState

Form = Literal["fixed", "as_released", "as_described"]
Scope = Literal["all", "figure", "token"]

FULL_WIDTH = 64
"""Channels of the first stage of the released prior, a ResNet-50 of CLIP."""
LARGEST_SCALE = 100.0
"""Bound of the inverse temperature, as in CLIP's and the released training code."""

_RELEASED_TRAIN = {
    "optimizer": "adamw",
    "lr": 1e-5,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.5,
    "decay": "matrices",
    "schedule": "cosine",
    "warmup": 0.1,
    "clip_norm": 0.0,
    "batch_size": 512,
    "epochs": 20,
    "precision": "bf16",
    "augmentation": {"random_resized_crop": (0.9, 1.0)},
}


class PirClipConfig(MethodConfig):
    """Form, what is trained, and the prior network."""

    form: Form = "fixed"
    """``as_released``: the arithmetic of the authors' code, its slips included. ``fixed``: the same idea without them.
    ``as_described``: the computation of ``fixed``, and frozen what the method's figure shows as frozen."""
    trains: Literal["auto", "all", "figure", "token"] = "auto"
    """``all``: both towers and the prior, as the code does. ``figure``: image tower, the prior's projection and the
    temperature. ``token``: the projection alone. ``auto``: ``figure`` if as_described, else ``all``."""
    weighting: Literal["belief_and_rank", "belief"] = "belief_and_rank"
    """What weighs a patch; until October 2024 the released code computed the rank weights without using them."""
    belief: Literal["dot", "scaled", "cosine"] = "dot"
    """Scores of the softmax: plain products as released, divided by the root of the width, or cosines."""
    affiliation: NonNegativeFloat = 1.0
    """Weight of the affiliation loss; batches without labels have none."""
    prior_weights: str = RANDOM
    """``random``, or a file: a ResNet of CLIP, or a PIR-CLIP checkpoint, of which the prior is taken."""
    prior_layers: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 4, 6, 3)
    prior_width: PositiveInt | None = Field(None, multiple_of=2)
    """Channels of its first stage; None: 64, and less on image towers narrower than 768."""
    prior_dim: PositiveInt | None = None
    """Width of its output; None: that of the joint space, as released. OpenAI's RN50 has 1024."""


class _PirClip(nn.Module):
    """A backbone, the prior network, and the projection of its output to the width of the image tower's tokens."""

    def __init__(self, backbone: DualEncoder, prior: PriorResNet, dim: int):
        super().__init__()
        self.backbone = backbone
        self.prior = prior
        self.prior_map = nn.Linear(dim, backbone.image.width)


class PirClip(Method):
    """The picture passes a ResNet whose projected output y is one more token of the vision transformer.

    Belief of token x_j is softmax_j(x_j . y). As released, token j is multiplied by b_j + 1 / sqrt(1 + o_j), where o is the
    *sorting order* of b instead of the ranks; the result is normalised along the *token* axis; the class token competes
    too; and the output is read at y. ``fixed`` takes ranks, weighs patches only, divides the weights by their mean (so
    that the transformer sees states of the size that it knows), and reads the class token.

    Normalising along the features, which suggests itself as the repair, would undo the weighting: a token's weight is one
    positive factor. The belief trains the prior through b; ranks have no gradient.
    """

    title = "PIR-CLIP"
    paper = "Pan et al., PIR: Remote Sensing Image-Text Retrieval with Prior Instruction Representation Learning, arXiv 2405.10160"
    code = "jaychempan/PIR-CLIP"
    licence = "MIT"
    family = "selective"
    official = (
        "PIR-CLIP_RET-3.pt style: a flat open_clip state dict (GELU) with res_visual.* and vision_proj_res.*, all 643 tensors "
        "on ViT-B/32; form as_released"
    )
    Config = PirClipConfig
    kinds = ("open_clip",)
    choices = (
        "The default form is `fixed`: weights by rank, patches only, mean weight 1, class token as output; none of this is "
        "in a paper.",
        "`as_described` freezes the text tower and the prior, as the method's figure shows; the released code has no flag "
        "that would. It computes as `fixed` does, because the figure gives no formula.",
        "Ranks and order come from the scores instead of the softmax of the scores, which they equal but for ties of "
        "underflowed values.",
        "Batch norms of the prior keep fixed statistics, in training too; the released code trains with batch statistics, "
        "which makes pictures depend on each other and would change what is frozen.",
        "No prior weights were published apart from whole checkpoints, and the released code starts the prior at random; a "
        "random prior gets its statistics from smooth noise, and open residual branches where it stays frozen.",
        "`prior_weights` is the one file that a method reads itself, when it is built; a missing or unfitting one is an "
        "error.",
        "prior_width below 64 on small towers keeps the prior smaller than the backbone; it is no released size.",
        "Affiliation uses the contrastive loss's temperature, as released. Pictures without a class are left out of it; in "
        "as_released each of them is a class of its own, which is what the names of such files come to.",
        "The inverse temperature is clamped to 1..100 where it is used, not after each step.",
        "Presets `official` and `paper` have the README's recipe, whose warm-up of 10,000 steps exceeds the whole training "
        "of 20 epochs on any retrieval set; a tenth of the steps stands in, and sampling is without replacement.",
        "Preset `paper`: no row of the paper's tables was found, so `published` is empty; the first stage, training on RS5M, "
        "is replaced by the backbone's weights.",
        "Released checkpoints are older than the last change of the forward pass (weighting=belief is the other); which one "
        "fits them is unknown.",
        "The learning rate of `matched` is ours.",
    )
    variants = {
        "fixed": Variant({}, 188_939_105, "as built and trained by the released code"),
        "as_released": Variant({"form": "as_released"}, 188_939_105, "as built and trained by the released code"),
        "as_described": Variant(
            {"form": "as_described"}, 88_243_201, "image tower, projection of the prior, temperature"
        ),
        "input_token": Variant(
            {"trains": "token"}, 393_984, "the projection 512 -> 768 alone, backbone and prior frozen"
        ),
        "input_token_rn50": Variant(
            {"trains": "token", "prior_dim": 1024}, 787_200, "the same with OpenAI's RN50 as prior"
        ),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-5, "weight_decay": 0.1}),
        "paper": Preset(method={"form": "as_described"}, train=_RELEASED_TRAIN),
        "official": Preset(method={"form": "as_released"}, train=_RELEASED_TRAIN),
    }
    space = {
        "method.affiliation": Domain("choice", (0.0, 0.5, 1.0)),
        "method.belief": Domain("choice", ("dot", "scaled", "cosine")),
        "train.lr": Domain("loguniform", (1e-6, 1e-4)),
    }

    def refuse(self, backbone: DualEncoder) -> str | None:
        """Also pictures that the prior cannot halve five times, and towers without the token that is read."""
        if (reason := super().refuse(backbone)) is not None:
            return reason
        side = backbone.resolution
        if side < STRIDE or side % 2:
            return (
                f"its prior network needs pictures of an even side of {STRIDE} px or more; {backbone.name} has {side} px. "
                "Give another backbone.resolution"
            )
        assert isinstance(backbone.image, OpenClipImageTower)
        if self._released() and backbone.image.visual.pool_type != "tok":
            return f"form as_released reads one token, but {backbone.name} averages over patches; set method.pir_clip.form=fixed"
        return None

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone beside the prior network and its projection."""
        config = self._config()
        device = next(backbone.parameters()).device
        with torch.device(device):  # on a backbone that is there in shape only, the prior needs no values either
            prior = PriorResNet(config.prior_layers, self._width(backbone), self._dim(backbone), backbone.resolution)
            if config.prior_weights != RANDOM:
                prior.load(config.prior_weights)
            elif device.type != "meta":
                prior.start_at_random(open_branches=self._scope() != "all")
            return _PirClip(backbone, prior, self._dim(backbone))

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """By ``trains``: everything; image tower, projection of the prior and temperature; or that projection alone."""
        dual = self._dual(model)
        scope = self._scope()
        if scope == "all":
            return [name for name, _ in model.named_parameters()]
        own = parameters_under(model, "prior_map")
        return own if scope == "token" else own + names_in(model, dual, _image_names(dual))

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """D W + W, and by ``trains`` the image tower and temperature, or the whole backbone and the prior.

        The prior has a stem; bottleneck blocks, p channels behind c, of c p + 13 p^2 + 12 p each and 4 c p + 8 p more for the
        first of a stage; and a pooling of 3 (C^2 + C) + (g^2 + 1) C + C D + D, where C is 32 times its width.
        """
        own = self._dim(backbone) * backbone.image.width + backbone.image.width
        scope, parameters = self._scope(), dict(backbone.named_parameters())
        if scope == "token":
            return own
        if scope == "figure":
            return own + sum(parameters[name].numel() for name in _image_names(backbone))
        prior = prior_scalars(
            self._config().prior_layers, self._width(backbone), self._dim(backbone), backbone.resolution
        )
        return own + prior + sum(p.numel() for p in parameters.values())

    def encode_image(self, model: nn.Module, images: Tensor) -> Tensor:
        """(B, 3, R, R) to (B, E)."""
        return self.encode_image_beside(model, images, None)

    def side_features(self, model: nn.Module, images: Tensor) -> Tensor | None:
        """(B, D) output of the prior where it is frozen."""
        assert isinstance(model, _PirClip)
        return None if self._scope() == "all" else model.prior(images)

    def encode_image_beside(self, model: nn.Module, images: Tensor, side: Tensor | None) -> Tensor:
        """As :meth:`encode_image`, with the prior's output where it is already known."""
        assert isinstance(model, _PirClip)
        tower = model.backbone.image
        token = model.prior_map(model.prior(images) if side is None else side)[:, None]
        instructed = self._released_input if self._released() else self._fixed_input
        return self.head_image(model, tower.pool(tower.run(instructed(tower.embed(images), token))))

    def compare(self, model: nn.Module, batch: Batch, *views: Tensor) -> dict[str, Tensor]:
        """The chosen loss, and the affiliation loss where the batch carries labels."""
        image, text = views[:2]
        found = super().compare(model, batch, *views)
        if (weight := self._config().affiliation) and batch.labels is not None:
            labels = losses.own_classes(batch.labels, batch.image_ids) if self._released() else batch.labels
            found["affiliation"] = weight * losses.affiliation(image, text, self.logit_scale(model).exp(), labels)
        return found

    def logit_scale(self, model: nn.Module) -> Tensor:
        """The backbone's own, between 0 and ln 100."""
        return self._dual(model).logit_scale.clamp(0.0, math.log(LARGEST_SCALE))

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """The whole checkpoint: backbone, prior with its statistics, and projection.

        Raises:
            MethodError: Another form, or a backbone that does not compute GELU.
            OfficialError: A tensor of the model is not in the file.
        """
        dual = self._dual(model)
        if not self._released():
            raise MethodError(
                f"method {self.name}: {state.source} belongs to form as_released; asked for {self._config().form}. Set "
                "method.form=as_released, or take its prior alone with method.prior_weights"
            )
        if dual.provenance.activation != "gelu":
            raise MethodError(
                f"method {self.name}: {state.source} was trained with gelu; {dual.name} computes "
                f"{dual.provenance.activation}, which loads without an error and loses accuracy. Use the backbone ViT-B-32"
            )
        mapped = {f"prior.net.{rest}": value for rest, value in state.take_under("res_visual.").items()}
        mapped |= {f"prior_map.{rest}": value for rest, value in state.take_under("vision_proj_res.").items()}
        mapped |= take_clip(model, state, "", "backbone.clip.")
        if missing := sorted(model.state_dict().keys() - mapped.keys()):
            raise OfficialError(
                f"{state.source} lacks {len(missing)} of {len(model.state_dict())} tensors, such as "
                f"{', '.join(missing[:5])}; a PIR-CLIP checkpoint holds backbone, prior and projection together"
            )
        return mapped

    def _released_input(self, hidden: Hidden, token: Tensor) -> Hidden:
        """[y; tokens], as in the authors' code."""
        scores = self._scores(hidden.x, token)
        # The sorting order stands where the ranks should: order[0] is the index of the best token.
        order = scores.argsort(dim=1, descending=True)
        weights = self._weights(scores, order)
        x = F.normalize(hidden.x * weights[..., None], dim=1)
        return Hidden(torch.cat([token.to(x.dtype), x], 1), prefix=hidden.prefix + 1)

    def _fixed_input(self, hidden: Hidden, token: Tensor) -> Hidden:
        """[class token; y; weighted patches]."""
        leading, patches = hidden.x[:, : hidden.prefix], hidden.x[:, hidden.prefix :]
        scores = self._scores(patches, token)
        weights = self._weights(scores, scores.argsort(dim=1, descending=True).argsort(dim=1))
        patches = patches * (weights / weights.mean(1, keepdim=True))[..., None]
        return Hidden(torch.cat([leading, token.to(patches.dtype), patches], 1), prefix=hidden.prefix + 1)

    def _scores(self, x: Tensor, token: Tensor) -> Tensor:
        """(B, N, W) states and (B, 1, W) token to (B, N) scores of belief."""
        belief = self._config().belief
        if belief == "cosine":
            x, token = F.normalize(x, dim=-1), F.normalize(token, dim=-1)
        scores = (x @ token.transpose(1, 2).to(x.dtype)).squeeze(-1)
        return scores / math.sqrt(x.shape[-1]) if belief == "scaled" else scores

    def _weights(self, scores: Tensor, places: Tensor) -> Tensor:
        """(B, N) ``softmax(scores) + 1 / sqrt(1 + place)``."""
        belief = scores.softmax(1)
        return belief if self._config().weighting == "belief" else belief + (places + 1).to(belief.dtype).rsqrt()

    def _released(self) -> bool:
        return self._config().form == "as_released"

    def _scope(self) -> Scope:
        config = self._config()
        if config.trains != "auto":
            return config.trains
        return "figure" if config.form == "as_described" else "all"

    def _width(self, backbone: DualEncoder) -> int:
        return self._config().prior_width or min(FULL_WIDTH, max(8, backbone.image.width // 24 * 2))

    def _dim(self, backbone: DualEncoder) -> int:
        return self._config().prior_dim or backbone.embed_dim

    def _config(self) -> PirClipConfig:
        assert isinstance(self.config, PirClipConfig)
        return self.config


def _image_names(backbone: DualEncoder) -> list[str]:
    """The image tower with its projection, and the temperature, as the backbone calls them."""
    return [n for n, _ in backbone.named_parameters() if n.startswith("clip.visual.") or n == "clip.logit_scale"]
