"""Broken on purpose: declares a small bias, trains the whole backbone."""

import torch
from torch import nn

from petlbench.methods.base import Method


class _Shift(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.shift = nn.Parameter(torch.zeros(backbone.embed_dim))


class FreezesNothing(Method):
    title = "Freezes nothing"
    family = "baseline"
    identity_start = True

    def build(self, backbone):
        return _Shift(backbone)

    def trainable(self, model):
        return [name for name, _ in model.named_parameters()]

    def expected_trainable(self, backbone):
        return backbone.embed_dim

    def head_image(self, model, pooled):
        return super().head_image(model, pooled) + model.shift
