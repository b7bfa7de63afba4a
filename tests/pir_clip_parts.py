"""PIR-CLIP as the tests build it."""

import torch

from petlbench.harness import audit
from petlbench.methods.pir_clip import PirClip

SMALL = {"prior_layers": (1, 1, 1, 1), "prior_width": 8}


def method_of(config=None, loss=None):
    PirClip.name = "pir_clip"
    return PirClip(config, loss)


def built(method, backbone, seed=0):
    torch.manual_seed(seed)
    model = method.build(backbone)
    audit.freeze_all_but(model, method.trainable(model), "pir_clip")
    return model
