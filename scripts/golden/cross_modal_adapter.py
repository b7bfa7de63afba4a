"""Run Cross-Modal Adapter's own code on small filled weights and write tests/golden/cross_modal_adapter.json.

Usage: ``python scripts/golden/cross_modal_adapter.py --official FOLDER``, a checkout of
LeapLabTHU/Cross-Modal-Adapter at COMMIT. The keys are those of its checkpoints, where CLIP is the submodule ``clip``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "07b2203c92dcf7a8c3e3c99e968164d32208c9a9"
SEED = 5
SIZES = {
    "embed_dim": 16,
    "image_resolution": 16,
    "vision_layers": 2,
    "vision_width": 192,
    "vision_patch_size": 8,
    "context_length": 12,
    "vocab_size": 64,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 2,
}
FORMS = {"official": (8, 16), "unshared": (8, 0), "all_text": (4, 128)}
"""Bottleneck and shared width; the last shares every channel of the text tower."""
LOG_SCALE = 3.0
ROWS = 4


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    sys.path[:0] = [str(p.resolve()) for p in (ROOT / "tests", parser.parse_args().official)]
    from golden.fill import inputs, integers

    torch.set_num_threads(1)
    pictures = inputs((ROWS, 3, SIZES["image_resolution"], SIZES["image_resolution"]), SEED)
    ids = integers((ROWS, SIZES["context_length"]), SIZES["vocab_size"] - 1, SEED)
    for row in range(ROWS):
        ids[row, 4 + row] = SIZES["vocab_size"] - 1  # the end token has the largest id
    result: dict[str, Any] = {
        "source": {"LeapLabTHU/Cross-Modal-Adapter": COMMIT},
        "seed": SEED,
        "sizes": SIZES,
        "rows": ROWS,
        "log_scale": LOG_SCALE,
        "ids": ids.tolist(),
        "forms": {name: _form(*form, pictures, ids) for name, form in FORMS.items()},
    }
    target = ROOT / "tests" / "golden" / "cross_modal_adapter.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


def _stand_in_for_downloads() -> None:
    """The module with the loss imports Amazon's client at its top, for downloads that are not made here.

    To be called when transformers is imported, which asks whether that client is installed.
    """
    for name in ("boto3", "botocore", "botocore.exceptions"):
        sys.modules.setdefault(name, ModuleType(name))
    sys.modules["botocore.exceptions"].ClientError = Exception  # type: ignore[attr-defined]


def _form(bottleneck: int, shared: int, pictures: Tensor, ids: Tensor) -> dict[str, Any]:
    from golden.fill import filled
    from modules.module_clip_jointvt_upshare_adapter import CLIP

    _stand_in_for_downloads()
    from modules.until_module import CrossEn

    clip = CLIP(
        **SIZES,
        adapter_reduction_dims=bottleneck,
        adapter_share_dim=shared,
        adapter_non_linearity="quick_gelu",
        adapter_init_std=0.01,
    )
    holder = nn.ModuleDict({"clip": clip})
    start = {n: p.detach() for n, p in clip.named_parameters() if "adapter" in n}
    start_std = torch.cat([p.flatten() for n, p in start.items() if "weight" in n]).std()
    start_biases = sum(p.abs().sum().item() for n, p in start.items() if "bias" in n)
    shapes = {name: tuple(tensor.shape) for name, tensor in holder.state_dict().items()}
    holder.load_state_dict(filled(shapes, SEED, scale=0.2) | {"clip.logit_scale": torch.tensor(LOG_SCALE)})
    holder.eval()
    image, text = clip.encode_image(pictures), clip.encode_text(ids)
    by_image, by_text = clip(pictures, ids)
    loss = (CrossEn()(by_image) + CrossEn()(by_text)) / 2
    loss.backward()
    return {
        "bottleneck": bottleneck,
        "shared": shared,
        "shapes": shapes,
        "trainable": sum(p.numel() for p in start.values()),
        "start_std": _rounded(start_std),
        "start_biases": start_biases,
        "image": _rounded(image),
        "text": _rounded(text),
        "infonce": _rounded(loss),
        "gradient_norms": {n: _rounded(p.grad.norm()) for n, p in clip.named_parameters() if "adapter" in n},
    }


def _rounded(tensor: Tensor) -> Any:
    """Nested lists of numbers with 8 significant digits."""
    values = tensor.detach()
    if values.dim() == 0:
        return float(f"{values.item():.8g}")
    return [_rounded(row) for row in values]


if __name__ == "__main__":
    main()
