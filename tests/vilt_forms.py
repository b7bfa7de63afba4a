"""The fine-tuning methods of ViLT as the tests build them."""

import torch

from petlbench.harness import audit
from petlbench.methods.vilt_adapter import ViltAdapter
from petlbench.methods.vilt_full import ViltFull
from petlbench.methods.vilt_lora import ViltLora
from petlbench.methods.vilt_prompt import ViltPrompt

CLASSES = (ViltFull, ViltLora, ViltAdapter, ViltPrompt)
FORMS = [(cls, name) for cls in CLASSES for name in cls.variants]


def of(cls, form, **options):
    return cls(cls.Config.model_validate({**cls.variants[form].method, **options}))


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


def scores(method, model, batch, tokens=None):
    with torch.no_grad():
        return method.score_pairs(model, batch.images, batch.tokens if tokens is None else tokens)
