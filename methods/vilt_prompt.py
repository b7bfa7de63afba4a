"""Prompts in a frozen ViLT, in the two forms of missing-aware prompting: before the tokens, or before keys and values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from petlbench.methods.backbones.base import Hidden
from petlbench.methods.backbones.open_clip_towers import attended
from petlbench.methods.backbones.vilt import ViltEncoder
from petlbench.methods.backbones.vilt_tower import ViltTower
from petlbench.methods.base import Domain, Preset, Variant
from petlbench.methods.layers.prompts import normal
from petlbench.methods.layers.vilt_pairs import ITM_CHOICE, MATCHED_RATE, FrozenViltConfig, ViltMethod


class ViltPromptConfig(FrozenViltConfig):
    """Number, place and start of the prompts."""

    tokens: PositiveInt = 16
    """Prompts of each prompted block; with ``type=attention`` half of them are keys and half are values."""
    layers: PositiveInt = 6
    """How many blocks, from the first on, are prompted; at most all."""
    type: Literal["input", "attention"] = "input"
    """``input``: before the tokens of every prompted block, where they stay, so that the sequence grows block by block.
    ``attention``: before the projected keys and values, so that it does not."""
    init: Literal["one_row", "normal"] = "one_row"
    """``one_row``: a row of ones (in keys and values one each), all other rows zero, the original. ``normal``: deviation
    0.02."""

    @model_validator(mode="after")
    def _halves(self) -> ViltPromptConfig:
        if self.type == "attention" and self.tokens % 2:
            raise ValueError(
                f"tokens is {self.tokens}, but type=attention needs as many keys as values; set an even number of tokens"
            )
        return self


class _PromptedVilt(nn.Module):
    """A ViLT beside its prompts, (D, n, W) for the first D blocks."""

    def __init__(self, backbone: ViltEncoder, prompts: Tensor):
        super().__init__()
        self.backbone = backbone
        self.prompts = nn.Parameter(prompts)


class _PrefixedTower(ViltTower):
    """The blocks with learned rows before the projected keys and values.

    Args:
        model: Of the tower that stands without them.
        keys: (D, n, W) for the first D blocks.
        values: (D, n, W) likewise.
    """

    def __init__(self, model: Any, keys: Tensor, values: Tensor):
        super().__init__(model)
        self.keys, self.values = keys, values

    def _attention(self, index: int, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        if index >= len(self.keys):
            return super()._attention(index, queries, keys, mask)
        block: Any = self.blocks[index]
        part, end = block.attention.attention, block.attention.output
        k = torch.cat([_rows(self.keys[index], keys), part.key(keys)], 1)
        v = torch.cat([_rows(self.values[index], keys), part.value(keys)], 1)
        visible = None if mask is None else _seen(mask, self.keys.shape[1])[:, None, None]
        return end.dropout(end.dense(attended(part.query(queries), k, v, self.heads, visible)))


class ViltPrompt(ViltMethod):
    """Learned tokens in the first blocks of a frozen ViLT (Lee et al. 2023), for retrieval.

    The caption's class token is pooled as before: prompts stand before it and are skipped by position, and they are seen by
    words and patches alike. The original keeps one set of prompts per way in which a modality is missing.
    """

    title = "ViLT + prompts"
    paper = "Lee et al., Multimodal Prompting with Missing Modalities for Visual Recognition, CVPR 2023"
    code = "YiLunLee/missing_aware_prompts"
    licence = "none stated"
    Config = ViltPromptConfig
    choices = (
        "The original has three sets of prompts: nothing missing, no text, no picture. A pair to be scored has both, so there "
        "is one set here, a third of the original's size.",
        "The original classifies (MM-IMDb, Food-101, Hateful Memes) with a new two-layer classifier; here ViLT's ranking head "
        "is trained.",
        "Preset `paper` trains the pooler, as the released code does, and takes optimiser, rate 1e-2, decay, batch and epochs of "
        "its three tasks, which share them.",
        "Rows that start equal (all but one in init=one_row) have equal gradients, as tokens without a position do. Dropout "
        "tells them apart with type=input, nothing does with type=attention; init=normal starts them apart.",
        ITM_CHOICE,
        MATCHED_RATE,
    )
    variants = {
        "input": Variant({}, 74_497, "16 x 6 x 768 (73,728) and the head of 769"),
        "attention": Variant({"type": "attention"}, 74_497, "8 keys and 8 values in 6 blocks, and the head"),
        "pooler": Variant({"train_pooler": True}, 665_089, "with the pooler, as released"),
    }
    presets = {
        "matched": Preset(train={"lr": 1e-3}),
        "paper": Preset(
            method={"train_pooler": True},
            train={
                "optimizer": "adamw",
                "lr": 1e-2,
                "weight_decay": 0.02,
                "betas": (0.9, 0.98),
                "schedule": "linear",
                "warmup": 0.1,
                "clip_norm": 0.0,
                "batch_size": 256,
                "epochs": 20,
            },
        ),
    }
    space = {
        "method.tokens": Domain("choice", (4, 8, 16, 32)),
        "method.layers": Domain("choice", (1, 3, 6, 12)),
        "method.init": Domain("choice", ("one_row", "normal")),
        "train.lr": Domain("loguniform", (1e-4, 3e-2)),
    }

    def extend(self, vilt: ViltEncoder) -> nn.Module:
        """The ViLT beside its prompts."""
        config = self._config()
        sets = min(config.layers, vilt.joint.depth)
        if config.init == "normal":
            return _PromptedVilt(vilt, normal(sets, config.tokens, vilt.width))
        prompts = torch.zeros(sets, config.tokens, vilt.width)
        prompts[:, 0] = 1
        if config.type == "attention":
            prompts[:, config.tokens // 2] = 1
        return _PromptedVilt(vilt, prompts)

    def tuned(self, model: nn.Module) -> Iterable[str]:
        """The prompts."""
        return ("prompts",)

    def expected_tuned(self, vilt: ViltEncoder) -> int:
        """n W per prompted block."""
        return min(self._config().layers, vilt.joint.depth) * self._config().tokens * vilt.width

    def run(self, model: nn.Module, hidden: Hidden) -> Hidden:
        """All blocks, with the prompts where they belong."""
        assert isinstance(model, _PromptedVilt)
        tower = self.vilt(model).joint
        if self._config().type == "attention":
            keys, values = model.prompts.chunk(2, 1)
            return _PrefixedTower(tower.model, keys, values).run_pooled(hidden)
        last = len(model.prompts) - 1
        for index, rows in enumerate(model.prompts):
            hidden = _before(hidden, rows)
            if index < last:
                hidden = tower.run_block(index, hidden)
        return tower.run_pooled(hidden, start=last)

    def _config(self) -> ViltPromptConfig:
        assert isinstance(self.config, ViltPromptConfig)
        return self.config


def _before(hidden: Hidden, prompts: Tensor) -> Hidden:
    """The sequence behind (n, W) prompts; mask and pooled token move along."""
    length = len(prompts)
    x = torch.cat([_rows(prompts, hidden.x), hidden.x], 1)
    mask = None if hidden.mask is None else _seen(hidden.mask, length)
    return replace(hidden, x=x, mask=mask, prefix=hidden.prefix + length)


def _rows(prompts: Tensor, like: Tensor) -> Tensor:
    """(n, W) to (B, n, W), in the precision of the states."""
    return prompts.to(like.dtype).expand(len(like), -1, -1)


def _seen(mask: Tensor, length: int) -> Tensor:
    """(B, N) to (B, length + N): prompts are always seen."""
    return torch.cat([mask.new_ones(len(mask), length), mask], 1)
