"""LoRA and its kin as the tests build them."""

import torch

from petlbench.harness import audit
from petlbench.methods.backbones.random_models import random_clip, random_two_tower

RANDOM = {"open_clip": random_clip, "two_tower": random_two_tower}
CPU = torch.device("cpu")


def built(method, backbone, seed=0):
    torch.manual_seed(seed)
    model = method.build(backbone)
    audit.freeze_all_but(model, method.trainable(model), type(method).__name__)
    return model.eval()


def disturb(model, seed=1):
    """Move every trained tensor away from where it starts."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)


def embed(method, model, batch):
    return audit.embed_for_audit(method, model, batch, CPU)
