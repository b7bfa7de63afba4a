"""SSF: a learned scale and shift behind every operation of the towers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from petlbench.methods.backbones.base import DualEncoder, Tower
from petlbench.methods.base import Domain, Method, MethodConfig, MethodError, Preset, Variant
from petlbench.methods.layers.bottleneck import Towers, chosen_towers
from petlbench.methods.layers.packed_attention import PackedAttention
from petlbench.methods.layers.places import block_names, ends, under
from petlbench.methods.official import OfficialState


class SsfConfig(MethodConfig):
    """Where features are scaled, and from which start."""

    towers: Towers = "both"
    init_std: float = Field(0.02, ge=0)
    """Deviation of the scales about 1 and of the shifts about 0 at the start."""


class _ScaleShift(nn.Module):
    """x * scale + shift, per feature."""

    def __init__(self, width: int, std: float):
        super().__init__()
        self.scale = nn.Parameter(nn.init.normal_(torch.empty(width), 1.0, std))
        self.shift = nn.Parameter(nn.init.normal_(torch.empty(width), 0.0, std))

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) to (..., W)."""
        return torch.addcmul(self.shift, x, self.scale)


class _Scaled(nn.Module):
    """An operation with its scale and shift; reads like the operation where callers look at its weights."""

    def __init__(self, base_layer: nn.Module, width: int, std: float):
        super().__init__()
        self.base_layer = base_layer
        self.ssf = _ScaleShift(width, std)

    @property
    def weight(self) -> Tensor:
        """Of the operation."""
        return self.base_layer.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """Of the operation."""
        return getattr(self.base_layer, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Features last, except behind a convolution, (B, W, H, W')."""
        y = self.base_layer(x)
        return self.ssf(y.movedim(1, -1)).movedim(-1, 1) if isinstance(self.base_layer, nn.Conv2d) else self.ssf(y)


class _PackedSsf(PackedAttention):
    """Packed attention with a scale and shift behind q, k, v together (3 W) and behind the output (W)."""

    def __init__(self, attention: nn.MultiheadAttention, std: float):
        super().__init__(attention)
        self.ssf_qkv = _ScaleShift(3 * self.width, std)
        self.ssf_out = _ScaleShift(self.width, std)

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, W) input to scaled queries, keys and values, (B, N, W) each."""
        return self.ssf_qkv(torch.cat(super().qkv(x), -1)).chunk(3, -1)

    def out(self, x: Tensor) -> Tensor:
        """(B, N, W) joined heads to (B, N, W)."""
        return self.ssf_out(super().out(x))


class Ssf(Method):
    """x * scale + shift behind the embedding, every norm, q/k/v, output and both MLP layers (Lian et al. 2022).

    All of them merge into the operation that they follow. Step 0 is near the untouched backbone, not at it: the authors
    draw scales and shifts with deviation 0.02.
    """

    title = "SSF"
    paper = "Lian et al., Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning, NeurIPS 2022"
    code = "dongzelian/SSF"
    licence = "MIT"
    family = "reparameterisation"
    Config = SsfConfig
    official = (
        "the authors' VisionTransformer, frozen weights included, on a CLIP image tower without a norm before its blocks: "
        "patch_embed.*, blocks.N.{attn,mlp}.*, norm.*, each with ssf_scale_K and ssf_shift_K"
    )
    choices = (
        "The authors tune vision towers for classification; no retrieval paper of the field has an SSF row. The text tower "
        "follows the same rule, with the word table in the place of the patch embedding.",
        "CLIP's norm before the first image block, which the authors' ViT lacks, gets a scale and shift like every norm.",
        "Preset `paper` takes the authors' CIFAR-100 recipe without its moving average of the weights and without its "
        "augmentation.",
        "The learning rate of `matched` is ours.",
    )
    variants = {
        "both": Variant({}, 344_576, "22 W per block, 2 W for the embedding and each norm outside the blocks"),
        "image": Variant({"towers": "image"}, 207_360, "vision tower: 22 W per block and 6 W outside"),
        "text": Variant({"towers": "text"}, 137_216, "text tower: 22 W per block and 4 W outside"),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(
            train={
                "optimizer": "adamw",
                "lr": 1e-3,
                "weight_decay": 0.05,
                "schedule": "cosine",
                "final_lr": 1e-8,
                "warmup": 0.1,
                "clip_norm": 0.0,
                "batch_size": 32,
                "epochs": 100,
            }
        ),
    }
    space = {
        "method.towers": Domain("choice", ("image", "text", "both")),
        "train.lr": Domain("loguniform", (1e-4, 1e-2)),
    }

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with every operation of the towers wrapped in place."""
        config = self._config()
        for tower in chosen_towers(backbone, config.towers):
            for name in _operations(backbone, tower):
                module: Any = backbone.get_submodule(name)
                if isinstance(module, nn.MultiheadAttention):
                    backbone.set_submodule(name, _PackedSsf(module, config.init_std))
                else:
                    backbone.set_submodule(name, _Scaled(module, _features(module), config.init_std))
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """Scales and shifts."""
        return [n for n, _ in model.named_parameters() if n.endswith((".scale", ".shift")) and ".ssf" in n]

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """2 (7 W + M) per block of MLP width M (22 W for M = 4 W), 2 W for the embedding and each norm outside."""
        total = 0
        for tower in chosen_towers(backbone, self._config().towers):
            widening: Any = backbone.get_submodule(tower.linears(0, "mlp")[0])
            edge = ends(backbone, tower)
            outside = 1 + len(edge.first_norm) + len(edge.final_norm)
            total += 2 * (tower.depth * (7 * tower.width + widening.out_features) + outside * tower.width)
        return total

    def added_at_inference(self, added: int) -> int:
        """None: scales and shifts merge into the operations before them."""
        return 0

    def import_official(self, model: nn.Module, state: OfficialState) -> dict[str, Tensor]:
        """A whole checkpoint of the authors' ViT; its convolution's bias, which CLIP lacks, goes into the shift.

        Raises:
            MethodError: The image tower is built differently, or the text tower is tuned too.
        """
        backbone = self._dual(model)
        edge = ends(backbone, backbone.image)
        if backbone.provenance.kind != "open_clip" or edge.first_norm or self._config().towers != "image":
            raise MethodError(
                f"method ssf: {state.source} is a vision transformer without a norm before its blocks; it needs "
                "method.ssf.towers=image and an open_clip backbone whose image tower has no ln_pre"
            )
        state.drop(r"(head|fc_norm)\..*", "the classifier")
        view: Any = backbone.image
        root = str(view.prefix).removesuffix(".transformer")
        pairs = {"weight": "base_layer.weight", "bias": "base_layer.bias"}
        found = {
            f"{root}.class_embedding": state.take("cls_token").flatten(),
            f"{root}.positional_embedding": state.take("pos_embed")[0],
            f"{root}.conv1.base_layer.weight": state.take("patch_embed.proj.weight"),
        }
        scale, shift = (state.take(f"patch_embed.ssf_{kind}_1") for kind in ("scale", "shift"))
        found[f"{root}.conv1.ssf.scale"] = scale
        found[f"{root}.conv1.ssf.shift"] = shift + scale * state.take("patch_embed.proj.bias")
        for part, ours in pairs.items():
            found[f"{edge.final_norm[0]}.{ours}"] = state.take(f"norm.{part}")
        found |= _taken(state, "", 1, f"{edge.final_norm[0]}.ssf")
        for i, block in enumerate(block_names(backbone, backbone.image)):
            theirs = f"blocks.{i}."
            for norm, name in (
                ("norm1", "ln_1"),
                ("norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                for part, ours in pairs.items():
                    found[f"{block}.{name}.{ours}"] = state.take(f"{theirs}{norm}.{part}")
            for part in pairs:
                found[f"{block}.attn.base_layer.in_proj_{part}"] = state.take(f"{theirs}attn.qkv.{part}")
                found[f"{block}.attn.base_layer.out_proj.{part}"] = state.take(f"{theirs}attn.proj.{part}")
            found |= _taken(state, theirs, 1, f"{block}.ln_1.ssf") | _taken(state, theirs, 2, f"{block}.ln_2.ssf")
            found |= _taken(state, f"{theirs}attn.", 1, f"{block}.attn.ssf_qkv")
            found |= _taken(state, f"{theirs}attn.", 2, f"{block}.attn.ssf_out")
            found |= _taken(state, f"{theirs}mlp.", 1, f"{block}.mlp.c_fc.ssf")
            found |= _taken(state, f"{theirs}mlp.", 2, f"{block}.mlp.c_proj.ssf")
        return found

    def _config(self) -> SsfConfig:
        assert isinstance(self.config, SsfConfig)
        return self.config


def _taken(state: OfficialState, prefix: str, number: int, ours: str) -> dict[str, Tensor]:
    return {f"{ours}.{kind}": state.take(f"{prefix}ssf_{kind}_{number}") for kind in ("scale", "shift")}


def _operations(backbone: DualEncoder, tower: Tower) -> list[str]:
    """Names of the embedding, the norms, the attentions and the linear layers of a tower."""
    edge, blocks = ends(backbone, tower), block_names(backbone, tower)
    packed = [n for n, m in backbone.named_modules() if isinstance(m, nn.MultiheadAttention)]
    inside = [
        name
        for name, module in backbone.named_modules()
        if under(name, blocks)
        and isinstance(module, (nn.Linear, nn.LayerNorm, nn.MultiheadAttention))
        and not (under(name, packed) and name not in packed)
    ]
    return [edge.embedding, *edge.first_norm, *inside, *edge.final_norm]


def _features(module: nn.Module) -> int:
    """Width of what an operation gives."""
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    return module.get_parameter("weight").shape[0]
