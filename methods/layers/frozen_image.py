"""For methods that train nothing in the image tower: what it says of a picture is computed once, not once an epoch."""

from __future__ import annotations

from torch import Tensor, nn

from petlbench.methods.base import Method


class FrozenImageTower(Method):
    """Promises that the image tower's pooled outputs never change; heads above it may."""

    def side_features(self, model: nn.Module, images: Tensor) -> Tensor | None:
        """(B, P_image) pooled outputs of the image tower."""
        return self._dual(model).image.pooled(images)

    def encode_image_beside(self, model: nn.Module, images: Tensor, side: Tensor | None) -> Tensor:
        """(B, E) from pictures, or from their kept pooled outputs."""
        return self.encode_image(model, images) if side is None else self.head_image(model, side)
