"""Run CLIP-Adapter's own model on filled weights and write what it gives to tests/golden/clip_adapter.json.

Usage: ``python scripts/golden/clip_adapter.py --official FOLDER``, a checkout of gaopengcuhk/CLIP-Adapter at COMMIT.

The released model is fixed to embeddings of width 1024. Its two encoders are replaced by given features, and the packages
that its training loop needs (Dassl, OpenAI's clip) by empty ones: only the adapter and what follows it are run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "08d07f8b2ecafc6f1479fe636b26d464d7a5574e"
SEED = 13
WIDTH, ROWS, LOG_SCALE = 1024, 4, 3.0


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    sys.path[:0] = [str(p.resolve()) for p in (ROOT / "tests", parser.parse_args().official)]
    _stand_in_for_the_training_loop()
    from clip_adapter import CustomCLIP
    from golden.fill import filled, inputs

    torch.set_num_threads(1)
    features, texts = inputs((ROWS, WIDTH), SEED), inputs((ROWS, WIDTH), SEED + 1)
    frozen = SimpleNamespace(visual=nn.Identity(), logit_scale=torch.tensor(LOG_SCALE), dtype=torch.float32)
    model = CustomCLIP(None, [], frozen)
    model.text_encoder = _Given(texts)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.adapter.state_dict().items()}
    model.adapter.load_state_dict(filled(shapes, SEED))
    adapted = model.adapter(features)
    logits = model(features)
    target = torch.arange(ROWS)
    loss = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
    loss.backward()
    result: dict[str, Any] = {
        "source": {"gaopengcuhk/CLIP-Adapter": COMMIT},
        "seed": SEED,
        "sizes": {"width": WIDTH, "rows": ROWS, "log_scale": LOG_SCALE},
        "shapes": shapes,
        "adapted_norms": _rounded(adapted.norm(dim=1)),
        "adapted_sample": _rounded(adapted[:, :16]),
        "logits": _rounded(logits),
        "infonce": _rounded(loss),
        "gradient_norms": {n: _rounded(p.grad.norm()) for n, p in model.adapter.named_parameters()},
    }
    path = ROOT / "tests" / "golden" / "clip_adapter.json"
    path.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size} bytes")


class _Given(nn.Module):
    """Stands in for the text encoder."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = features

    def forward(self) -> Tensor:
        return self.features


class _Registry:
    def register(self) -> Any:
        return lambda trainer: trainer


def _stand_in_for_the_training_loop() -> None:
    names = {
        "dassl": (),
        "dassl.engine": ("TrainerX",),
        "dassl.metrics": ("compute_accuracy",),
        "dassl.utils": ("load_pretrained_weights", "load_checkpoint"),
        "dassl.optim": ("build_optimizer", "build_lr_scheduler"),
        "clip": ("clip",),
        "clip.simple_tokenizer": ("SimpleTokenizer",),
    }
    for name, attributes in names.items():
        module = ModuleType(name)
        for attribute in attributes:
            setattr(module, attribute, object)
        sys.modules[name] = module
    sys.modules["dassl.engine"].TRAINER_REGISTRY = _Registry()  # type: ignore[attr-defined]


def _rounded(tensor: Tensor) -> Any:
    """Nested lists of numbers with 8 significant digits."""
    values = tensor.detach()
    if values.dim() == 0:
        return float(f"{values.item():.8g}")
    return [_rounded(row) for row in values]


if __name__ == "__main__":
    main()
