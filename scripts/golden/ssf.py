"""Run SSF's own vision transformer on small filled weights and write what it gives to tests/golden/ssf.json.

Usage: ``python scripts/golden/ssf.py --official FOLDER --timm FOLDER``: a checkout of dongzelian/SSF at COMMIT, and a folder
with timm 0.6.5, on which it builds (``pip install --no-deps --target FOLDER timm==0.6.5``).

The norms get CLIP's epsilon of 1e-5 in place of 1e-6; the rest is the authors' default.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "e94e0e704a4ece1986a537c97a95158b46838f71"
SEED = 13
SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
ROWS = 4


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    parser.add_argument("--timm", type=Path, required=True)
    chosen = parser.parse_args()
    sys.path[:0] = [str(p.resolve()) for p in (ROOT / "tests", chosen.official, chosen.timm)]
    sys.modules.setdefault("ipdb", ModuleType("ipdb"))  # a debugger that the code imports and does not use
    from golden.fill import filled, inputs
    from models.vision_transformer import VisionTransformer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Any = VisionTransformer(
        **SIZES, num_classes=0, tuning_mode="ssf", norm_layer=partial(nn.LayerNorm, eps=1e-5), weight_init="skip"
    )
    start = {n: p.detach() for n, p in model.named_parameters() if "ssf_" in n}
    scales = torch.cat([p for n, p in start.items() if "scale" in n])
    shifts = torch.cat([p for n, p in start.items() if "shift" in n])
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(filled(shapes, SEED, scale=0.2))
    model.eval()
    pooled = model(inputs((ROWS, 3, SIZES["img_size"], SIZES["img_size"]), SEED))
    result = {
        "source": {"dongzelian/SSF": COMMIT, "timm": "0.6.5"},
        "seed": SEED,
        "sizes": SIZES,
        "rows": ROWS,
        "shapes": shapes,
        "trainable": sum(p.numel() for p in start.values()),
        "start": {
            "scale": [_rounded(scales.mean()), _rounded(scales.std())],
            "shift": [_rounded(shifts.mean()), _rounded(shifts.std())],
        },
        "pooled": _rounded(pooled),
    }
    target = ROOT / "tests" / "golden" / "ssf.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


def _rounded(tensor: Tensor) -> Any:
    """Nested lists of numbers with 8 significant digits."""
    values = tensor.detach()
    if values.dim() == 0:
        return float(f"{values.item():.8g}")
    return [_rounded(row) for row in values]


if __name__ == "__main__":
    main()
