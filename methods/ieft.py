"""IEFT: half of ViLT's trunk, with blocks over channels and gated convolutions on the patches before three of its blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import xxhash
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from petlbench.methods.backbones.base import Hidden, Provenance
from petlbench.methods.backbones.vilt import ViltEncoder
from petlbench.methods.base import Domain, MethodConfig, MethodError, Preset, States, Variant
from petlbench.methods.layers.gated_conv import GatedConv
from petlbench.methods.layers.transposed_block import TransposedBlock, heads_for
from petlbench.methods.layers.vilt_pairs import ITM_CHOICE, RANK_HEAD, VILT_TRAIN, ViltConfig, ViltMethod

ENHANCERS = "enhancers"
"""Name within a :class:`ViltEncoder`; below it the block's index, then ``channels`` or ``patches``."""

RELEASED_PLACES = (1, 2, 3)
EXPANSION = 2.66
"""Of the gated convolution: hidden channels by width, as in Restormer."""

RELEASED_TRAIN = {**VILT_TRAIN, "epochs": 50}
"""Its configurations for RSICD and RSITMD, which are ViLT's but for the epochs."""


class EnhancerConfig(ViltConfig):
    """Place and size of what is put before blocks of the trunk."""

    enhance_at: tuple[int, ...] | None = None
    """Blocks, counted from 0, before which the patches are enhanced; None: 1, 2 and 3, as far as blocks run."""
    se_heads: PositiveInt | None = None
    """Heads of the blocks over channels; None: the largest divisor of the number of patches up to 12."""
    gdfn_hidden: PositiveInt | None = None
    """Channels behind the gate of the convolutions; None: 2.66 times the width."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of the blocks over channels, while training."""


class CutConfig(EnhancerConfig):
    """The same where the trunk is cut."""

    depth: PositiveInt | None = None
    """Blocks that run; the others are dropped. None: half of the trunk, and at least two."""


class IeftConfig(CutConfig):
    """The same where the patches are shuffled."""

    order_seed: int = Field(0, ge=0, lt=2**32)
    """Changes the patch order of every picture in evaluation: to measure how far scores depend on it."""


class Ieft(ViltMethod):
    """ViLT's first blocks; before blocks 1, 2, 3 ``patches = GDFN(SE(patches))``, words and class token untouched.

    SE is a transformer block over the transposed patch matrix (:class:`TransposedBlock`), GDFN a gated feed-forward with a
    convolution on the grid (:class:`GatedConv`). Everything trains. As released, the patches reach them shuffled: ViLT's
    sampler permutes them, which ViLT does not see, but these layers do. Equations and constants are those of the released
    code; the paper's text was not available.
    """

    title = "IEFT"
    paper = (
        "Tang et al., Interacting-Enhancing Feature Transformer for Cross-Modal Remote-Sensing Image and Text Retrieval, "
        "TGRS 2023"
    )
    code = "TangXu-Group/Cross-modal-remote-sensing-image-and-text-retrieval-models"
    licence = "Apache-2.0; the file of the GDFN under Restormer's academic licence (non-commercial)"
    family = "fusion"
    Config: ClassVar[type[MethodConfig]] = IeftConfig
    choices: ClassVar[tuple[str, ...]] = (
        "The equations are those of the released code; no published row could be read, so none is shown.",
        "The released code draws the patch order of a test picture anew at each evaluation; here it follows from the "
        "picture's own 8-bit values and order_seed, so that scores are repeatable and do not depend on the batch.",
        "The six blocks that the released code holds but never runs are dropped, and so are the layers of its local nets that "
        "its forward pass leaves out.",
        "The released sizes are fixed to 12 x 12 patches; here the width of the blocks over channels is the number of "
        "patches, and trunks of other depths keep their first half.",
        "In training, the copies of a picture share the dropout of its embedded patches; released, each copy has its own.",
        "The released recipe trains on the train and validation splits together and chooses its epoch on the test split; no "
        "preset does.",
        "Preset `paper` is the released recipe for RSICD and RSITMD; for UCM it has 100 epochs, for Sydney 100 epochs at a "
        "batch of 512.",
        "Preset `paper`: false captions are drawn from all captions, the picture's own among them, as released; precision is "
        "fp32, which its README offers beside fp16.",
        "Preset `paper`: RandAugment keeps the released strength, 9 on a scale to 30, and two changes per picture, but has this "
        "project's kinds, which lack posterise, solarise, solarise-add, colour and contrast and include leaving the picture "
        "alone; a shift is 3 of 224 pixels, where it is 30 of the stored picture's there.",
        "Preset `paper`: the norm before a gated convolution is exempt from weight decay; in the released code its name "
        "escapes the list of exemptions.",
        "matched: the learning rate is the released one.",
        ITM_CHOICE,
    )
    variants = {
        "released": Variant({}, 84_049_837, "counted by running the authors' code on ViLT-B/32: what gets a gradient"),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-4}),
        "paper": Preset(method={"own_as_false": True}, train=RELEASED_TRAIN),
    }
    space = {"train.lr": Domain("loguniform", (1e-5, 3e-4))}

    shuffles: ClassVar[bool] = True
    """Whether the patches are permuted before the first block."""
    zero_init: ClassVar[bool] = False
    """Whether SE and GDFN start as the identity."""

    # --- what is built ---

    def refuse(self, backbone: Any) -> str | None:
        """Also a trunk of one block, before which nothing has been mixed yet."""
        if reason := super().refuse(backbone):
            return reason
        if backbone.joint.depth < 2:
            return f"it puts modules between blocks, and {backbone.name} has {backbone.joint.depth} block"
        return None

    def extend(self, vilt: ViltEncoder) -> nn.Module:
        """The ViLT, cut to the blocks that run, with what enhances the patches before some of them.

        Raises:
            MethodError: A block is asked for that does not run.
            HeadsError: The heads do not divide the number of patches.
        """
        places, depth = self.places(vilt), self.depth(vilt)
        se = partial(TransposedBlock, vilt.patches, self._heads(vilt), self.config.dropout, self.zero_init)
        gdfn = partial(GatedConv, vilt.width, self._hidden(vilt), vilt.grid, self.zero_init)
        del vilt.vilt.encoder.layer[depth:]
        parts = {str(index): nn.Sequential(OrderedDict(channels=se(), patches=gdfn())) for index in places}
        vilt.add_module(ENHANCERS, nn.ModuleDict(parts))
        return vilt

    def tuned(self, model: nn.Module) -> Iterable[str]:
        """Everything."""
        return [name for name, _ in model.named_parameters()]

    def expected_tuned(self, vilt: ViltEncoder) -> int:
        """The embeddings, the blocks that run, the final norm and the pooler, and :meth:`enhancers_size`."""
        apart = set(vilt.new_parameters())
        kept = sum(p.numel() for n, p in vilt.named_parameters() if n not in apart and not n.startswith(RANK_HEAD))
        dropped = sum(p.numel() for block in vilt.joint.blocks[self.depth(vilt) :] for p in block.parameters())
        return kept - dropped + self.enhancers_size(vilt)

    def enhancers_size(self, vilt: ViltEncoder) -> int:
        """12 P^2 + 13 P of SE and 3 W h + 18 h + 2 W of GDFN, at each place."""
        each = TransposedBlock.size(vilt.patches) + GatedConv.size(vilt.width, self._hidden(vilt))
        return len(self.places(vilt)) * each

    def depth(self, vilt: ViltEncoder) -> int:
        """Number of blocks that run, from the untouched ViLT.

        Raises:
            MethodError: The trunk has fewer than were asked for.
        """
        held, asked = vilt.joint.depth, self.config.depth
        if asked is None:
            return min(held, max(2, (held + 1) // 2))
        if asked > held:
            raise MethodError(
                f"method {self.name}: depth={asked}, but {vilt.name} has {held} blocks; ask for at most that"
            )
        return asked

    def places(self, vilt: ViltEncoder) -> tuple[int, ...]:
        """The blocks before which patches are enhanced, from the untouched ViLT, ascending.

        Raises:
            MethodError: One of them does not run, or is named twice.
        """
        depth, asked = self.depth(vilt), self.config.enhance_at
        if asked is None:
            return tuple(index for index in RELEASED_PLACES if index < depth)
        if len(set(asked)) != len(asked) or not all(0 <= index < depth for index in asked):
            raise MethodError(
                f"method {self.name}: enhance_at={list(asked)}, expected different blocks from 0 to {depth - 1}, the last of "
                f"{vilt.name} that runs"
            )
        return tuple(sorted(asked))

    def _heads(self, vilt: ViltEncoder) -> int:
        return self.config.se_heads or heads_for(vilt.patches)

    def _hidden(self, vilt: ViltEncoder) -> int:
        return self.config.gdfn_hidden or int(vilt.width * EXPANSION)

    # --- how it runs ---

    def image_states(self, model: nn.Module, images: Tensor) -> States:
        """``x``: (B, 1 + P, W) class token and patches; out of training, in each picture's own order."""
        states = super().image_states(model, images)
        if not self.shuffles or model.training:
            return states
        x, provenance = states["x"], self.vilt(model).provenance
        return {"x": reordered(x, content_orders(images, x.shape[1] - 1, provenance, self.config.order_seed))}

    def pooled(self, model: nn.Module, image: States, text: States) -> Tensor:
        """(B, W) pooled states of B pairs; in training, every pair sees its patches in an order of its own."""
        if self.shuffles and model.training:
            x = image["x"]
            image = {"x": reordered(x, torch.rand(x.shape[0], x.shape[1] - 1, device=x.device).argsort(1))}
        return super().pooled(model, image, text)

    def run(self, model: nn.Module, hidden: Hidden) -> Hidden:
        """The blocks, with the patches enhanced before some; the last for the pooled token alone."""
        vilt = self.vilt(model)
        last = vilt.joint.depth - 1
        for index in range(last):
            hidden = vilt.joint.run_block(index, _enhanced(vilt, index, hidden))
        return vilt.joint.run_pooled(_enhanced(vilt, last, hidden), start=last)


def _enhanced(vilt: ViltEncoder, index: int, hidden: Hidden) -> Hidden:
    """The input of block ``index`` with its patches, which stand last, enhanced where something is there to do it."""
    parts: nn.ModuleDict = getattr(vilt, ENHANCERS)
    if str(index) not in parts:
        return hidden
    before = hidden.x.shape[1] - vilt.patches
    others, patches = hidden.x[:, :before], hidden.x[:, before:]
    return hidden.with_x(torch.cat([others, parts[str(index)](patches)], 1))


def reordered(x: Tensor, orders: Tensor) -> Tensor:
    """(B, 1 + P, W) class token and patches, the patches of each row taken in its order, (B, P) int64."""
    patches = x[:, 1:].gather(1, orders[..., None].expand(-1, -1, x.shape[2]))
    return torch.cat([x[:, :1], patches], 1)


def content_orders(images: Tensor, patches: int, provenance: Provenance, seed: int = 0) -> Tensor:
    """(B, P) permutations, each drawn from a hash of one picture's 8-bit values and ``seed``.

    Args:
        images: (B, 3, H, W), normalised; the 8-bit values they were made of decide, so that rounding does not.
        patches: Number of patches P.
        provenance: Of the backbone, for mean and deviation.
        seed: Another one gives other permutations.
    """
    mean, std = (images.new_tensor(values)[:, None, None] for values in (provenance.mean, provenance.std))
    pixels = ((images * std + mean) * 255).round().short().cpu().contiguous().numpy()
    draws = [np.random.RandomState(xxhash.xxh32_intdigest(picture.tobytes(), seed)) for picture in pixels]
    return torch.from_numpy(np.stack([draw.permutation(patches) for draw in draws])).to(images.device, torch.int64)
