"""PIR as the tests build it."""

import torch

from petlbench.harness import audit
from petlbench.methods.pir import PIR_TRAIN, Pir, PirConfig
from petlbench.methods.recipe import LossConfig

LOSS = LossConfig(**PIR_TRAIN["loss"])
SMALL = {"prior": "resnet18"}
RELEASED = dict(Pir.presets["paper"].method)


def method_of(loss=LOSS, **config):
    Pir.name = "pir"
    return Pir(PirConfig(**config), loss)


def built(method, backbone, seed=0):
    torch.manual_seed(seed)
    model = method.build(backbone)
    names = {*method.trainable(model), *audit_names(backbone)}
    audit.freeze_all_but(model, names, "pir")
    return model


def audit_names(backbone):
    return [f"backbone.{n}" for n in backbone.new_parameters()]
