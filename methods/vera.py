"""VeRA: one frozen random pair of low-rank matrices for the whole model, and two learned vectors per matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.base import Domain, Method, MethodConfig, PeftFormat, Preset, Variant
from petlbench.methods.layers.bottleneck import Towers, chosen_towers
from petlbench.methods.layers.low_rank import Projections, Targets, low_rank_places
from petlbench.methods.layers.packed_attention import PackedAttention
from petlbench.methods.layers.peft_names import peft_format
from petlbench.methods.layers.places import packed_parts


class VeraConfig(MethodConfig):
    """Rank, start and place of the vectors."""

    rank: PositiveInt = 256
    d_initial: PositiveFloat = 0.1
    """Start of the r factors between the two matrices; the factors behind them start at zero."""
    targets: Targets = "attention"
    towers: Towers = "both"
    projections: Projections = "qv"
    key: NonNegativeInt | None = None
    """Seeds the frozen matrices; None draws a key from the run's seed."""


class _Pair(nn.Module):
    """The frozen A (r, in) and B (out, r) for the largest layer; smaller ones use their first columns and rows.

    Kaiming-uniform with gain sqrt 2, A drawn before B from one generator: with the same key, peft's values.
    """

    A: Tensor
    B: Tensor

    def __init__(self, rank: int, width: int, key: int):
        super().__init__()
        generator = torch.Generator().manual_seed(key)
        self.register_buffer("A", _uniform((rank, width), math.sqrt(6 / width), generator))
        self.register_buffer("B", _uniform((width, rank), math.sqrt(6 / rank), generator))


class _PackedVera(PackedAttention):
    """Every chosen projection W becomes W + diag(b) B diag(d) A; only b (W,) and d (r,) are trained."""

    def __init__(self, attention: nn.MultiheadAttention, pair: _Pair, parts: tuple[str, ...], d_initial: float):
        super().__init__(attention)
        self.pair = pair
        self.vera_lambda_b = nn.ParameterDict({part: torch.zeros(self.width) for part in parts})
        self.vera_lambda_d = nn.ParameterDict({part: torch.full((len(pair.A),), d_initial) for part in parts})

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, W) input to updated queries, keys and values, (B, N, W) each."""
        return tuple(self._updated(*pair, x) for pair in zip("qkv", super().qkv(x), strict=True))

    def out(self, x: Tensor) -> Tensor:
        """(B, N, W) joined heads to (B, N, W), updated where chosen."""
        return self._updated("out_proj", super().out(x), x)

    def _updated(self, part: str, frozen: Tensor, x: Tensor) -> Tensor:
        if part not in self.vera_lambda_b:
            return frozen
        low = functional.linear(x, self.pair.A[:, : self.width]) * self.vera_lambda_d[part]
        return torch.addcmul(frozen, functional.linear(low, self.pair.B[: self.width]), self.vera_lambda_b[part])


class Vera(Method):
    """W + diag(b) B diag(d) A with one frozen random A and B for all layers of both towers (Kopiczko et al. 2024).

    peft refuses nn.MultiheadAttention for this method, so packed attention has a module of its own, with peft's matrices
    for the same key; linear layers are peft's. Where both occur, each kind has one pair. The frozen matrices follow from
    the key and are not stored with an adapter.
    """

    title = "VeRA"
    paper = "Kopiczko et al., VeRA: Vector-based Random Matrix Adaptation, ICLR 2024"
    code = "huggingface/peft"
    licence = "Apache-2.0"
    family = "reparameterisation"
    Config = VeraConfig
    identity_start = True
    choices = (
        "No retrieval paper of the field has a VeRA row; the learning rate of `matched` is ours.",
        "Preset `paper` is the authors' ViT-B on RESISC45, scenes from above (sec. 4.4 and Table 11 of the paper; no code was "
        "found): rank 256 on q and v, in both towers. The rate of their class head goes to new joining heads.",
        "The paper states neither batch, warm-up, gradient clipping nor augmentation for it; these are the common protocol's.",
        "One pair of frozen matrices serves both towers, cut to each layer's size, as peft does within a model.",
        "The frozen matrices are drawn from the run's seed, so that seeds cover them too; peft fixes a key.",
    )
    variants = {
        "r256_qv": Variant({}, 43_008, "W + r per projection, two projections in 24 blocks"),
        "r256_qkvo": Variant({"projections": "qkvo"}, 86_016, "W + r per projection, four projections in 24 blocks"),
    }
    presets = {
        "matched": Preset(train={"lr": 5e-3}),
        "paper": Preset(
            method={"rank": 256, "d_initial": 0.1, "projections": "qv"},
            train={
                "optimizer": "adamw",
                "lr": 7e-2,
                "new_lr": 5e-3,
                "weight_decay": 0.01,
                "schedule": "linear",
                "epochs": 10,
            },
        ),
    }
    space = {"method.rank": Domain("choice", (64, 128, 256, 512)), "train.lr": Domain("loguniform", (1e-3, 3e-2))}

    _key: int | None = None
    """Of the frozen matrices, once they are built."""

    def build(self, backbone: DualEncoder) -> nn.Module:
        """The backbone with vectors injected in place."""
        config = self._config()
        key = int(torch.randint(2**31, ())) if config.key is None else config.key
        found = low_rank_places(backbone, config.targets, config.projections, config.towers)
        if found.packed:
            parts = packed_parts(config.projections)
            attentions: list[Any] = [backbone.get_submodule(target) for target in found.packed]
            pair = _Pair(config.rank, max(a.embed_dim for a in attentions), key)
            for target, attention in zip(found.packed, attentions, strict=True):
                backbone.set_submodule(target, _PackedVera(attention, pair, parts, config.d_initial))
        if found.linear:
            import peft

            options = peft.VeraConfig(
                r=config.rank, target_modules=found.linear, d_initial=config.d_initial, projection_prng_key=key
            )
            peft.VeraModel(backbone, options, "default")
        self._key = key
        return backbone

    def trainable(self, model: nn.Module) -> Iterable[str]:
        """The two vectors of every matrix."""
        return [name for name, _ in model.named_parameters() if ".vera_lambda_" in name]

    def expected_trainable(self, backbone: DualEncoder) -> int:
        """out + r per matrix."""
        config, total = self._config(), 0
        for tower in chosen_towers(backbone, config.towers):
            widening: Any = backbone.get_submodule(tower.linears(0, "mlp")[0])
            attention = len(config.projections) * (tower.width + config.rank) if config.targets != "mlp" else 0
            mlp = widening.out_features + tower.width + 2 * config.rank if config.targets != "attention" else 0
            total += tower.depth * (attention + mlp)
        return total

    def added_at_inference(self, added: int) -> int:
        """None: the update merges into the weights."""
        return 0

    def peft_format(self, model: nn.Module) -> PeftFormat | None:
        """peft's VeRA, where it has one: not inside packed attention. Its matrices are drawn anew from the key."""
        backbone, config = self._dual(model), self._config()
        if backbone.provenance.kind == "open_clip" and config.targets != "mlp":
            return None
        entries = {
            "peft_type": "VERA",
            "r": config.rank,
            "d_initial": config.d_initial,
            "projection_prng_key": self._key,
            "save_projection": False,
        }
        return peft_format(backbone, {n: n for n in self.trainable(model)}, entries)

    def _config(self) -> VeraConfig:
        assert isinstance(self.config, VeraConfig)
        return self.config


def _uniform(shape: tuple[int, int], bound: float, generator: torch.Generator) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
