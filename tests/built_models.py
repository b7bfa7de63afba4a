"""A method's model as a trial builds it, and one that has moved away from where it starts."""

import torch

from petlbench.harness import audit


def assembled(method, backbone, seed=0):
    """The method's model, frozen but for what it trains."""
    torch.manual_seed(seed)
    model = method.build(backbone)
    audit.freeze_all_but(model, method.trainable(model), type(method).__name__)
    return model


def built(method, backbone, seed=0):
    """The same in evaluation mode."""
    return assembled(method, backbone, seed).eval()


def disturb(model, seed=1):
    """Move every trained tensor away from where it starts, zeros of output layers among them."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model
