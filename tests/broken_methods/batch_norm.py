"""Broken on purpose: a frozen batch norm, whose running statistics move all the same."""

from torch import nn

from petlbench.methods.base import Method, parameters_under


class _Normed(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.norm = nn.BatchNorm1d(backbone.embed_dim)
        self.map = nn.Linear(backbone.embed_dim, backbone.embed_dim)


class BatchNorm(Method):
    title = "Batch norm in the frozen part"
    family = "baseline"

    def build(self, backbone):
        return _Normed(backbone)

    def trainable(self, model):
        return parameters_under(model, "map")

    def head_image(self, model, pooled):
        return model.map(model.norm(super().head_image(model, pooled)))
