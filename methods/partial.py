"""Partial fine-tuning: the last blocks of each tower, with what follows them."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import PositiveInt
from torch import nn

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import Domain, Method, MethodConfig, Preset, Variant, names_in, parameters_under
from petlbench.methods.layers.bottleneck import Towers, chosen_towers
from petlbench.methods.layers.places import block_names, ends, projection_size

_CROP = (224 / 256) ** 2
"""Share of the area that VPT's random crop keeps."""


class PartialConfig(MethodConfig):
    """How much of the towers is trained."""

    blocks: PositiveInt = 1
    """Counted from the end, in each tower."""
    towers: Towers = "both"
    norms: bool = True
    """Also the norm behind the last block, where the tower has one."""
    projections: bool = True
    """Also the pretrained projection into the joint space, where the backbone has one."""


class Partial(Method):
    """The last n blocks, the final norm and the projection of each tower; Partial-k of Jia et al. 2022 on a dual encoder."""

    title = "Partial fine-tuning"
    paper = "Jia et al., Visual Prompt Tuning, ECCV 2022 (baseline Partial-k)"
    code = "KMnP/vpt"
    licence = "CC-BY-NC-4.0"
    family = "selective"
    Config = PartialConfig
    identity_start = True
    choices = (
        "Partial-k trains the last blocks, the final norm and a new classifier; here the pretrained projections stand in for "
        "the classifier (projections=false leaves them frozen).",
        "The same number of blocks is trained in both towers; the temperature stays frozen; the learning rate of "
        "`matched` is ours.",
        "No retrieval paper of the field has this row; preset `paper` is the command for Partial-1 of KMnP/vpt (demo.ipynb on "
        "configs/finetune), which classifies pictures with a supervised ViT-B/16.",
        "VPT searches rate and decay for each task and keeps what it found in a table elsewhere that was not read; the rate is "
        "that of three of its five finetune files (CUB, dogs, NABirds), the decay the 0.01 that its AdamW has for any decay "
        "asked for.",
        "Its random crop of 224 from 256 pixels is taken as a square crop of fixed share, and its cosine per epoch as one per "
        "step.",
    )
    variants = {
        "last_1": Variant(
            {}, 10_898_176, "one block of each tower (10,240,256), final norms 2,560, projections 655,360"
        ),
        "last_2": Variant({"blocks": 2}, 21_138_432, "two blocks of each tower, final norms, projections"),
        "blocks_only": Variant(
            {"norms": False, "projections": False}, 10_240_256, "one block of each tower, 7,087,872 + 3,152,384"
        ),
        "image": Variant({"towers": "image", "projections": False}, 7_089_408, "Partial-1 of the vision tower"),
    }
    presets = {
        "matched": Preset(train={"lr": 5e-5, "new_lr": 1e-3, "weight_decay": 0.1}),
        "paper": Preset(
            method={"blocks": 1},
            train={
                "optimizer": "adamw",
                "lr": 3.75e-3,
                "eps": 1e-6,
                "weight_decay": 0.01,
                "decay": "not_bias",
                "schedule": "cosine",
                "warmup": 0.05,
                "clip_norm": 0.0,
                "batch_size": 384,
                "epochs": 100,
                "augmentation": {
                    "random_resized_crop": (_CROP, _CROP),
                    "crop_ratio": (1.0, 1.0),
                    "horizontal_flip": 0.5,
                },
            },
        ),
    }
    space = {"method.blocks": Domain("choice", (1, 2, 3)), "train.lr": Domain("loguniform", (1e-6, 1e-3))}

    def refuse(self, backbone: DualEncoder) -> str | None:
        """Also where a tower has fewer blocks than are to be trained."""
        if reason := super().refuse(backbone):
            return reason
        config = self._config()
        for tower in chosen_towers(backbone, config.towers):
            if config.blocks > tower.depth:
                return (
                    f"blocks is {config.blocks}, but the {tower.modality} tower of {backbone.name} has {tower.depth}; set "
                    f"method.partial.blocks to {tower.depth} or less, or use full_finetune"
                )
        return None

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone itself."""
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """Parameters of the last blocks, norms and projections."""
        config, backbone = self._config(), self._dual(model)
        chosen: list[str] = []
        for tower in chosen_towers(backbone, config.towers):
            edge = ends(backbone, tower)
            chosen += block_names(backbone, tower)[-config.blocks :]
            chosen += (edge.final_norm if config.norms else []) + (edge.projection if config.projections else [])
        return names_in(model, backbone, parameters_under(backbone, *chosen))

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """Per block of width W and MLP width M: 4 W^2 + 2 W M + 9 W + M (and 2 W of layer scales); 2 W per norm; P E."""
        config, total = self._config(), 0
        for tower in chosen_towers(backbone, config.towers):
            width, edge = tower.width, ends(backbone, tower)
            hidden = backbone.get_submodule(tower.linears(0, "mlp")[0]).get_parameter("bias").numel()
            scaled = backbone.provenance.kind == "two_tower" and tower.modality == "image"
            block = 4 * width * width + 2 * width * hidden + 9 * width + hidden + (2 * width if scaled else 0)
            total += config.blocks * block
            if config.norms and edge.final_norm:
                total += 2 * width
            total += projection_size(backbone, tower) if config.projections else 0
        return total

    def _config(self) -> PartialConfig:
        assert isinstance(self.config, PartialConfig)
        return self.config
