"""Fine-tuning of ViLT itself: every weight, or only its ranking head, its layer norms or its biases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from petlbench.methods.backbones.vilt import ViltEncoder
from petlbench.methods.base import Domain, PeftFormat, Preset, Variant
from petlbench.methods.layers.vilt_pairs import ITM_CHOICE, VILT_TRAIN, FrozenViltConfig, ViltMethod, peft_pairs

Parts = Literal["all", "head", "layer_norm", "bias"]


class ViltFullConfig(FrozenViltConfig):
    """Which weights of ViLT are trained."""

    parts: Parts = "all"
    """``all``: every weight. ``head``: the ranking head alone. ``layer_norm``: also scale and shift of every layer norm.
    ``bias``: also every bias (BitFit). The pooler's map is trained with ``all``, or where ``train_pooler`` says so."""


class ViltFull(ViltMethod):
    """ViLT fine-tuned for retrieval as by its authors: one true caption is ranked above 15 others (Kim et al. 2021).

    The forms that train less are the selective baselines of the same trunk: what a linear map, the norms or the biases
    can do without a module being added.
    """

    title = "ViLT fine-tuning"
    paper = "Kim et al., ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision, ICML 2021"
    code = "dandelin/ViLT"
    licence = "Apache-2.0"
    Config = ViltFullConfig
    identity_start = True
    choices = (
        "Preset `paper` is the repository's retrieval fine-tuning on Flickr30K and COCO with RandAugment: it draws false "
        "captions from all captions, the picture's own among them (own_as_false), and clips no gradient.",
        "Its RandAugment has 14 kinds of change; those of the harness's ten that it shares are made, at its strength.",
        "Its half precision is left to train.precision=bf16; its resizing keeps the shape of a picture, that of the harness is "
        "square, which is the same for the square pictures of the field.",
        "The forms `head`, `layer_norm` and `bias` are not ViLT's: they are the linear probe, LayerNorm tuning and BitFit on "
        "its trunk, as baselines of this project.",
        ITM_CHOICE,
        "`matched`: the learning rate 1e-4 is that of ViLT's fine-tuning; forms that train less may want a higher one.",
    )
    variants = {
        "all": Variant({}, 111_595_777, "every weight, the ranking head included"),
        "head": Variant({"parts": "head"}, 769, "linear probe on the pooled state"),
        "head_pooler": Variant({"parts": "head", "train_pooler": True}, 591_361, "the same behind a trained pooler"),
        "layer_norm": Variant({"parts": "layer_norm"}, 40_705, "26 layer norms (39,936) and the head"),
        "bias": Variant({"parts": "bias"}, 105_217, "BitFit: every bias (104,448) and the head"),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-4}),
        "paper": Preset(method={"own_as_false": True}, train=VILT_TRAIN),
    }
    space = {"train.lr": Domain("loguniform", (1e-6, 1e-3))}

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """Every weight, or what ``parts`` names with the heads."""
        return [n for n, _ in model.named_parameters()] if self._parts() == "all" else super().trainable(model)

    def tuned(self, model: nn.Module) -> Iterable[str]:
        """Layer norms or biases of ViLT."""
        if self._parts() == "layer_norm":
            norms = {name for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
            return [n for n, _ in model.named_parameters() if n.rpartition(".")[0] in norms]
        if self._parts() == "bias":
            return [n for n, _ in model.named_parameters() if n.startswith("vilt.") and n.endswith("bias")]
        return ()

    def expected_trainable(self, backbone: Any) -> int:
        """All weights; or 2 W per layer norm; or 7 W + M per block of MLP width M and 4 W around them; and the heads."""
        if self._parts() != "all":
            return super().expected_trainable(backbone)
        matching = 2 * backbone.width + 2 if self.config.itm_weight else 0
        return sum(p.numel() for p in backbone.parameters()) + matching

    def expected_tuned(self, vilt: ViltEncoder) -> int:
        """2 W in each of 2 N + 2 layer norms of N blocks, or N (7 W + M) + 4 W biases."""
        width, depth = vilt.width, vilt.joint.depth
        if self._parts() == "layer_norm":
            return 2 * width * (2 * depth + 2)
        if self._parts() == "bias":
            widening: Any = vilt.get_submodule(vilt.joint.linears(0, "mlp")[0])
            outside = 3 if self.config.train_pooler else 4  # the pooler's own bias is counted with it
            return depth * (7 * width + widening.out_features) + outside * width
        return 0

    def peft_format(self, model: nn.Module) -> PeftFormat | None:
        """peft's LNTuning for the layer norms; peft knows none of the other forms."""
        if self._parts() != "layer_norm":
            return None
        names = {name: name.rpartition(".") for name in self.tuned(model)}
        keys = {name: f"{norm}.ln_tuning_layers.default.{part}" for name, (norm, _, part) in names.items()}
        return peft_pairs(self, model, keys, {"peft_type": "LN_TUNING"})

    def _parts(self) -> Parts:
        assert isinstance(self.config, ViltFullConfig)
        return self.config.parts
