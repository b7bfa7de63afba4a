"""The fine-tuning methods of ViLT as the tests build them."""

import torch

from petlbench.methods.vilt_adapter import ViltAdapter
from petlbench.methods.vilt_full import ViltFull
from petlbench.methods.vilt_lora import ViltLora
from petlbench.methods.vilt_prompt import ViltPrompt

CLASSES = (ViltFull, ViltLora, ViltAdapter, ViltPrompt)
FORMS = [(cls, name) for cls in CLASSES for name in cls.variants]


def of(cls, form, **options):
    return cls(cls.Config.model_validate({**cls.variants[form].method, **options}))


def scores(method, model, batch, tokens=None):
    with torch.no_grad():
        return method.score_pairs(model, batch.images, batch.tokens if tokens is None else tokens)
