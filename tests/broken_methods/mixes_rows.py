"""Broken on purpose: centres each embedding on the mean of its batch, but only once a gate has left zero."""

import torch
from torch import nn

from petlbench.methods.base import Method, parameters_under


class _Centred(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.gate = nn.Parameter(torch.zeros(1))


class MixesRows(Method):
    title = "Mixes rows"
    family = "baseline"
    identity_start = True

    def build(self, backbone):
        return _Centred(backbone)

    def trainable(self, model):
        return parameters_under(model, "gate")

    def expected_trainable(self, backbone):
        return 1

    def head_image(self, model, pooled):
        embedding = super().head_image(model, pooled)
        return embedding - model.gate * embedding.mean(0)
