"""timm's Swin transformer as an image tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from petlbench.methods.backbones.base import BackboneError, BranchKind, Hidden, Tower

PATCH = 4
WINDOW = 7
SWIN_T: dict[str, Any] = {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)}


class SwinTower(Tower):
    """Windowed attention over a map that is merged between stages; the mean of the last map stands first, as a class token.

    Between blocks the map travels as (B, H W, C) tokens, with C doubling at each merging. Widths differ between blocks, so
    nothing can be attached to them or inserted between them.
    """

    modality = "image"

    def __init__(self, model: Any, prefix: str = "vision"):
        self.model = model
        self.prefix = prefix
        self.width = self.pooled_width = int(model.num_features)
        self.heads = int(model.layers[-1].blocks[-1].attn.num_heads)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of all stages in order."""
        return [block for stage in self.model.layers for block in stage.blocks]

    def attach(self, index: int, kind: BranchKind, module: nn.Module) -> None:
        """Not possible here.

        Raises:
            BackboneError: Always.
        """
        raise BackboneError(
            "nothing can be attached to the blocks of Swin, whose widths differ between stages; use an open_clip backbone"
        )

    def _embed(self, inputs: Tensor) -> Hidden:
        """(B, 3, R, R) pictures to (B, R^2 / 16, C) patches after their norm."""
        return Hidden(self.model.patch_embed(inputs).flatten(1, 2))

    def _block(self, index: int, hidden: Hidden) -> Tensor:
        stage, place = self._place(index)
        module: Any = self.model.layers[stage]
        side = round(hidden.x.shape[1] ** 0.5)
        x = hidden.x.unflatten(1, (side, side))
        if place == 0:
            x = module.downsample(x)
        return module.blocks[place](x).flatten(1, 2)

    def _place(self, index: int) -> tuple[int, int]:
        """Stage of a block, and its number within the stage."""
        for stage, layer in enumerate(self.model.layers):
            if index < len(layer.blocks):
                return stage, index
            index -= len(layer.blocks)
        raise IndexError(index)

    def _normed(self, index: int, kind: BranchKind, x: Tensor) -> Tensor:
        raise BackboneError("the branches of Swin's blocks cannot be computed on their own")

    def _contribution(self, index: int, kind: BranchKind, normed: Tensor, hidden: Hidden) -> Tensor:
        raise BackboneError("the branches of Swin's blocks cannot be computed on their own")

    def _joined(self, index: int, kind: BranchKind, x: Tensor, out: Tensor) -> Tensor:
        raise BackboneError("the branches of Swin's blocks cannot be computed on their own")

    def finish(self, hidden: Hidden) -> Tensor:
        """(B, 1 + N, W): the mean of the normalised tokens, then the tokens themselves."""
        x = self.model.norm(hidden.x)
        return torch.cat([x.mean(1, keepdim=True), x], 1)

    def pool(self, hidden: Hidden) -> Tensor:
        """(B, W) mean of the normalised tokens."""
        return self.model.norm(hidden.x).mean(1)

    def linears(self, index: int, kind: BranchKind) -> list[str]:
        """Packed query-key-value and output projections, or the two layers of the MLP."""
        stage, place = self._place(index)
        block = f"{self.prefix}.layers.{stage}.blocks.{place}"
        parts = ("attn.qkv", "attn.proj") if kind == "attention" else ("mlp.fc1", "mlp.fc2")
        return [f"{block}.{part}" for part in parts]


def build_swin(width: int, depths: Sequence[int], heads: Sequence[int], resolution: int, drop_path: float = 0.0) -> Any:
    """An untrained ``timm`` Swin transformer without classifier, patch 4, window 7."""
    from timm.models.swin_transformer import SwinTransformer

    model: Any = SwinTransformer(
        img_size=resolution,
        patch_size=PATCH,
        num_classes=0,
        embed_dim=width,
        depths=tuple(depths),
        num_heads=tuple(heads),
        window_size=WINDOW,
        drop_path_rate=drop_path,
    )
    for stage in model.layers:
        for block in stage.blocks:
            block.attn.fused_attn = True  # off by default in timm; a step of the tower is 8 % cheaper with it
    return model


def check_side(name: str, side: int, depths: Sequence[int]) -> None:
    """The map of every stage has to be cut into whole windows.

    Raises:
        BackboneError: It cannot.
    """
    unit = PATCH * WINDOW * 2 ** (len(depths) - 1)
    if side < unit or side % unit:
        below = max(1, side // unit) * unit
        raise BackboneError(
            f"{name}: resolution={side} is not a multiple of {unit}, as windows of {WINDOW} on maps merged "
            f"{len(depths) - 1} times need; give {below} or {below + unit}"
        )
