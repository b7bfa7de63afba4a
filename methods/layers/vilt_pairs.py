"""What methods on a ViLT share: how pairs are scored, the heads that are trained, image-text matching as a second loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from petlbench.methods.backbones.base import Backbone, Hidden, Tokens
from petlbench.methods.backbones.vilt import ViltEncoder
from petlbench.methods.base import (
    Batch,
    MethodConfig,
    MethodError,
    PeftFormat,
    States,
    names_in,
    parameters_under,
)
from petlbench.methods.layers.peft_names import peft_format
from petlbench.methods.pair import PairConfig, PairMethod, ranking, repeated
from petlbench.methods.recipe import LossConfig

RANK_HEAD = "rank_output"
POOLER = "vilt.pooler"
ITM_HEAD = "itm_output"
"""Names within a :class:`ViltEncoder`; the last is there only where matching is trained."""

MATCHED_RATE = "The learning rate of `matched` is ours."
ITM_CHOICE = (
    "itm_weight: each picture's own caption and the first of its false ones, which are drawn in random order, are classed as "
    "match or mismatch from the states that the ranking loss computes anyway; ViLT mismatches pictures instead, and its "
    "retrieval fine-tuning leaves this loss out, as the default does."
)

VILT_TRAIN: Mapping[str, Any] = {
    "optimizer": "adamw",
    "lr": 1e-4,
    "weight_decay": 0.01,
    "betas": (0.9, 0.98),
    "schedule": "linear",
    "warmup": 0.1,
    "clip_norm": 0.0,
    "batch_size": 256,
    "epochs": 10,
    "augmentation": {"randaugment": {"ops": 2, "magnitude": 3.0, "probability": 1.0}},
}
"""Retrieval fine-tuning of ViLT on Flickr30K and COCO, in its repository's configurations ``irtr_*_randaug``; their strength
of 9 in 30 is 3 in 10."""


class ViltConfig(PairConfig):
    """What every method on a ViLT can be told."""

    itm_weight: NonNegativeFloat = 0.0
    """Weight of the image-text matching loss beside the ranking loss; with 0 its head is not built."""


class FrozenViltConfig(ViltConfig):
    """The same where the trunk stays frozen."""

    train_pooler: bool = False
    """Also train the pooler, a W x W map behind the last block; on ViLT-B/32 it holds 590,592 scalars."""


class ViltMethod(PairMethod):
    """A method on a :class:`ViltEncoder`; as it stands, it trains the head that ranks pairs on a frozen ViLT.

    A subclass says what it adds (:meth:`extend`), what of it is trained (:meth:`tuned`, :meth:`expected_tuned`), and where
    the blocks see other tokens than words and patches, how they run (:meth:`run`).
    """

    kinds: ClassVar[tuple[str, ...]] = ("vilt",)
    Config: ClassVar[type[MethodConfig]] = FrozenViltConfig

    def __init__(self, config: MethodConfig | None = None, loss: LossConfig | None = None):
        super().__init__(config, loss)
        self.training_only = 0
        """Scalars that :meth:`build` added for a loss and that scoring does without."""

    # --- for subclasses ---

    def extend(self, vilt: ViltEncoder) -> nn.Module:
        """Add modules; return the ViLT, or a module that holds it as ``.backbone``."""
        return vilt

    def tuned(self, model: nn.Module) -> Iterable[str]:
        """Names, as in ``model.named_parameters()``, of what is trained besides the heads and the pooler."""
        return ()

    def expected_tuned(self, vilt: ViltEncoder) -> int:
        """The number of scalars that :meth:`tuned` names, from the untouched ViLT."""
        return 0

    def run(self, model: nn.Module, hidden: Hidden) -> Hidden:
        """All blocks; the result need hold the pooled token only, at position ``prefix``."""
        return self.vilt(model).joint.run_pooled(hidden)

    # --- the contract ---

    def refuse(self, backbone: Backbone) -> str | None:
        """Also what calls itself a ViLT but is not built as one."""
        if reason := super().refuse(backbone):
            return reason
        if not isinstance(backbone, ViltEncoder):
            return f"it needs the modules of a ViltEncoder, and {backbone.name} is a {type(backbone).__name__}"
        return None

    def build(self, backbone: Backbone) -> nn.Module:
        """The ViLT with what the method adds, and the matching head where that is trained.

        Raises:
            MethodError: The backbone is no ViLT.
        """
        vilt = self.vilt(backbone)
        model = self.extend(vilt)
        if self.config.itm_weight:
            head = _matching_head(vilt)
            vilt.add_module(ITM_HEAD, head)
            self.training_only = sum(p.numel() for p in head.parameters())
        return model

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """What the method tunes, the ranking head, and the pooler and the matching head where they are trained."""
        vilt = self.vilt(model)
        heads = names_in(model, vilt, parameters_under(vilt, *self.head_modules()))
        return list(dict.fromkeys([*self.tuned(model), *heads]))

    def expected_trainable(self, backbone: Backbone) -> int:
        """:meth:`expected_tuned`, W + 1 of the ranking head, W^2 + W of the pooler and 2 W + 2 of the matching head."""
        vilt = self.vilt(backbone)
        width, heads = vilt.width, self.head_modules()
        sizes = {RANK_HEAD: width + 1, POOLER: width * width + width, ITM_HEAD: 2 * width + 2}
        return self.expected_tuned(vilt) + sum(sizes[name] for name in heads)

    def added_at_inference(self, added: int) -> int:
        """All but the matching head."""
        return added - self.training_only

    def image_states(self, model: nn.Module, images: Tensor) -> States:
        """``x``: (B, 1 + P, W) image token and patches, as they enter the blocks."""
        return {"x": self.vilt(model).embed_image(images)}

    def text_states(self, model: nn.Module, tokens: Tokens) -> States:
        """``x``: (B, L, W) words, as they enter the blocks; ``mask``: (B, L)."""
        return {"x": self.vilt(model).embed_text(tokens), "mask": tokens.mask}

    def score(self, model: nn.Module, image: States, text: States) -> Tensor:
        """(B,) outputs of the ranking head."""
        return self.vilt(model).rank(self.pooled(model, image, text))

    def pooled(self, model: nn.Module, image: States, text: States) -> Tensor:
        """(B, W) pooled states of B pairs: what the heads read."""
        vilt = self.vilt(model)
        mask = text["mask"]
        hidden = vilt.join(text["x"], None if bool(mask.all()) else mask, image["x"])
        return vilt.joint.pool(self.run(model, hidden))

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """``ranking`` among the candidates, and ``matching`` where it has a weight."""
        image, text = self.prepared(model, batch)
        rows = len(batch)
        each = len(text["x"]) // rows
        pooled = self.pooled(model, repeated(image, each), text).unflatten(0, (rows, each))
        vilt = self.vilt(model)
        terms = {"ranking": ranking(vilt.rank(pooled))}
        if self.config.itm_weight:
            logits = vilt.get_submodule(ITM_HEAD)(pooled[:, :2])
            terms["matching"] = self.config.itm_weight * matching(logits)
        return terms

    def vilt(self, model: nn.Module) -> ViltEncoder:
        """The ViLT of what :meth:`build` returned.

        Raises:
            MethodError: It neither is nor holds one.
        """
        inner = model if isinstance(model, ViltEncoder) else getattr(model, "backbone", None)
        if isinstance(inner, ViltEncoder):
            return inner
        raise MethodError(
            f"method {self.name}: found a {type(model).__name__}, expected a ViltEncoder or a module that holds one as "
            "`.backbone`; choose a ViLT backbone such as vilt-b32 or tiny-vilt"
        )

    def head_modules(self) -> list[str]:
        """Names, within the ViLT, of the modules behind the blocks that are trained whole."""
        pooler = isinstance(self.config, FrozenViltConfig) and self.config.train_pooler
        return [RANK_HEAD, *([POOLER] if pooler else []), *([ITM_HEAD] if self.config.itm_weight else [])]


def matching(logits: Tensor) -> Tensor:
    """Mean cross-entropy of (B, 2, 2) match logits, in fp32: the first pair of each picture matches, the second does not.

    The second logit is that of a match, as in ViLT's ITM head.
    """
    target = torch.tensor([1, 0], device=logits.device).expand(len(logits), 2)
    return F.cross_entropy(logits.float().flatten(0, 1), target.flatten())


def _matching_head(vilt: ViltEncoder) -> nn.Linear:
    """The head of the checkpoint where it has one, else a random one."""
    head = nn.Linear(vilt.width, 2)
    if vilt.itm_head is not None and not vilt.itm_head[0].is_meta:
        weight, bias = vilt.itm_head
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
    return head


def peft_pairs(
    method: ViltMethod, model: nn.Module, keys: Mapping[str, str], config: Mapping[str, Any]
) -> PeftFormat | None:
    """peft's format for ``transformers.ViltForImageAndTextRetrieval``: its module names are those of a ViltEncoder.

    Args:
        method: Its heads go along as modules that are saved whole.
        model: Built and injected.
        keys: Parameter name to the name that peft's own injection would give it, adapter name ``default`` included.
        config: Entries of ``adapter_config.json`` besides the targets and the heads.

    Returns:
        None where a matching head is trained, for which that model has no place.
    """
    heads = method.head_modules()
    if ITM_HEAD in heads:
        return None
    vilt: Any = method.vilt(model)
    plain = peft_format(vilt, keys, config)
    return PeftFormat(
        config={**plain.config, "modules_to_save": heads},
        keys={**plain.keys, **{name: f"base_model.model.{name}" for name in parameters_under(model, *heads)}},
    )
