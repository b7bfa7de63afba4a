"""Run CUP's own model and losses on small filled weights and write tests/golden/cup.json.

Usage: ``python scripts/golden/cup.py --official FOLDER``, the folder CUP of a checkout of
TangXu-Group/Cross-modal-remote-sensing-image-and-text-retrieval-models at COMMIT; also needs einops, timm and matplotlib.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from prompt_learners import CAPTIONS, ROOT, SEED, rounded, weights, write
from torch import Tensor, nn

COMMIT = "8475de09e7c6fb56350199b662ef476859cd3fa3"
SIZES = {
    "embed_dim": 64,
    "image_resolution": 224,
    "vision_layers": 2,
    "vision_width": 128,
    "vision_patch_size": 56,
    "context_length": 32,
    "vocab_size": 64,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 2,
}
"""Full pictures, so that the cluster network has its regions; CUP takes E to be the text width."""
TOKENS, SAMPLES, DRAWS = 4, 10, 6
START = {r"cluster_mapping\.bias": 0.5, r"adapter_\w+_mapping\.0\.bias": 0.05}
"""Added to filled values: gates inside their bounds."""
NARROW = r"(cluster|adapter_\w+)_mapping\..*"
"""Filled values of these are a hundredth, for the same reason."""


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    sys.path[:0] = [str(p.resolve()) for p in (ROOT / "tests", parser.parse_args().official)]
    _stand_in()
    from golden.fill import inputs
    from prompt_clip.model import CLIP
    from vilt.modules import objectives
    from vilt.modules.vilt_module import ViLTransformerSS

    from petlbench.methods.backbones.tokenizers import HashingTokenizer

    torch.set_num_threads(1)
    full = _model(ViLTransformerSS, CLIP, tokens=16, image=768, text=512)
    count = sum(p.numel() for n, p in full.named_parameters() if not n.startswith("model."))
    model = _model(ViLTransformerSS, CLIP, TOKENS, SIZES["vision_width"], SIZES["transformer_width"]).eval()
    shapes = {n: list(t.shape) for n, t in model.state_dict().items()}
    state = weights(shapes)
    for name in state:
        if re.fullmatch(NARROW, name):
            state[name] /= 100
        for pattern, term in START.items():
            if re.fullmatch(pattern, name):
                state[name] += term
    model.load_state_dict(state)
    pictures = inputs((len(CAPTIONS), 3, SIZES["image_resolution"], SIZES["image_resolution"]), SEED)
    ids = HashingTokenizer(SIZES["vocab_size"], SIZES["context_length"] - TOKENS)(CAPTIONS).ids
    noise = inputs((SAMPLES, DRAWS, len(CAPTIONS), SIZES["embed_dim"]), SEED + 1)
    with torch.no_grad():
        found = model.infer((pictures, ids))
        with _given(noise):
            losses = objectives.compute_clip(model, {"clip_img": pictures, "clip_text_token": ids})
        case = {
            "tokens": TOKENS,
            "shapes": shapes,
            "start": START,
            "narrow": NARROW,
            "trained_on_vit_b_32": count,
            "image_in_loss": rounded(found["image_features"]),
            "text_in_loss": rounded(found["text_features"]),
            "prior": rounded(found["visual_prior_prompt"]),
            "image_at_evaluation": rounded(model.img_embeds(pictures)["image_feats"]),
            "text_at_evaluation": rounded(model.txt_embeds(ids)["text_feats"]),
            "losses": {name: float(f"{float(value):.8g}") for name, value in losses.items()},
        }
    source = {"TangXu-Group/Cross-modal-remote-sensing-image-and-text-retrieval-models": COMMIT}
    write("cup", source, {"cup": case}, SIZES)


def _model(official: Any, clip: Any, tokens: int, image: int, text: int) -> nn.Module:
    """Their model around a small CLIP of theirs; only the widths of what is added follow the arguments."""
    sys.modules["prompt_clip.clip"].load = lambda name: (clip(*SIZES.values()), None)  # type: ignore[attr-defined]
    patch = SIZES["vision_patch_size"]
    config = {
        "clip_model": "ViT-B/32",
        "prompt_length": tokens,
        "txt_features_dim": text,
        "img_features_dim": image,
        "image_size": [patch, patch],
        "loss_scale": 1,
        "loss_scale_kl": 1,
        "loss_scale_un": 1,
        "load_path": "",
        "test_only": False,
    }
    official.hparams = SimpleNamespace(config=config)
    with contextlib.redirect_stdout(io.StringIO()):
        return official(config)


@contextlib.contextmanager
def _given(noise: Tensor) -> Iterator[None]:
    """``torch.randn`` gives these draws in turn."""
    left = iter(noise.flatten(0, 1))
    drawn = torch.randn
    torch.randn = lambda *_, **__: next(left)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn = drawn


def _stand_in() -> None:
    """Stand-ins for what the model's imports name and its arithmetic does not use; everything stays on the CPU."""

    class Lightning(nn.Module):
        def save_hyperparameters(self) -> None: ...

        def log(self, *_: Any) -> None: ...

    def metrics(module: Any) -> None:
        for phase in ("train", "val"):
            for name in ("clip", "prior", "uncertainty"):
                setattr(module, f"{phase}_{name}_loss", lambda value: value)

    nothing: dict[str, Any] = {}
    for name, attributes in {
        "pytorch_lightning": {"LightningModule": Lightning},
        "torch_ema": {"ExponentialMovingAverage": None},
        "timm.models.layers.helpers": {"to_2tuple": lambda n: (n, n)},
        "sklearn": nothing,
        "sklearn.manifold": {"TSNE": None},
        "sklearn.metrics": dict.fromkeys(
            f"{kind}_score" for kind in ("f1", "average_precision", "precision", "recall", "balanced_accuracy")
        ),
        "prompt_clip.clip": nothing,
        "model.clip": nothing,
        "vilt.modules.heads": nothing,
        "vilt.modules.vilt_utils": {"set_metrics": metrics},
    }.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for key, value in attributes.items():
            setattr(module, key, value)
        sys.modules[name] = module
    torch.Tensor.cuda = lambda self, *_: self  # type: ignore[method-assign, assignment, misc]
    nn.Module.cuda = lambda self, *_: self  # type: ignore[method-assign, assignment, misc]


if __name__ == "__main__":
    main()
