"""Broken on purpose: promises to start as the untouched backbone, yet initialises its map at random."""

from torch import nn

from petlbench.methods.base import Method, parameters_under


class _Mapped(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.map = nn.Linear(backbone.embed_dim, backbone.embed_dim)


class RandomStart(Method):
    title = "Random start"
    family = "baseline"
    identity_start = True

    def build(self, backbone):
        return _Mapped(backbone)

    def trainable(self, model):
        return parameters_under(model, "map")

    def head_image(self, model, pooled):
        return model.map(super().head_image(model, pooled))
