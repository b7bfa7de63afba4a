"""LoRA and its kin as the tests build them."""

import torch

from petlbench.harness import audit
from petlbench.methods.backbones.random_models import random_clip, random_two_tower

RANDOM = {"open_clip": random_clip, "two_tower": random_two_tower}
CPU = torch.device("cpu")


def embed(method, model, batch):
    return audit.embed_for_audit(method, model, batch, CPU)
