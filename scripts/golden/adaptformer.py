"""Run AdaptFormer's own vision transformer on small filled weights and write tests/golden/adaptformer.json.

Usage: ``python scripts/golden/adaptformer.py --official FOLDER``, a checkout of ShoufaChen/AdaptFormer at COMMIT.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "6967d676c1a5e5a11be2e2768a6e5c604bb043ed"
SEED = 11
WIDTH, DEPTH, HEADS, BOTTLENECK = 32, 2, 2, 8
SHAPE = (2, 5, WIDTH)
"""Pictures, tokens (one class token and four patches), width."""


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    sys.path[:0] = [str(p.resolve()) for p in (ROOT / "tests", parser.parse_args().official)]
    from golden.fill import filled, inputs
    from models.vit_image import VisionTransformer

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tuning = SimpleNamespace(
        ffn_adapt=True,
        ffn_option="parallel",
        ffn_adapter_layernorm_option="none",
        ffn_adapter_init_option="lora",
        ffn_adapter_scalar="0.1",
        ffn_num=BOTTLENECK,
        d_model=WIDTH,
        vpt_on=False,
        vpt_num=0,
    )
    vit = VisionTransformer(
        img_size=32,
        patch_size=16,
        num_classes=3,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        norm_layer=nn.LayerNorm,
        tuning_config=tuning,
    ).eval()
    start = {n: p.abs().max() for n, p in vit.blocks[0].adaptmlp.named_parameters()}
    shapes = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    vit.load_state_dict(filled(shapes, SEED, scale=0.2))
    out = vit.blocks(inputs(SHAPE, SEED))
    loss = out.square().mean()
    loss.backward()
    gradients = {n: _rounded(p.grad.norm()) for n, p in vit.named_parameters() if "adaptmlp" in n}
    result: dict[str, Any] = {
        "source": {"ShoufaChen/AdaptFormer": COMMIT},
        "seed": SEED,
        "sizes": {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "bottleneck": BOTTLENECK, "input": SHAPE},
        "shapes": shapes,
        "start_largest": {name: _rounded(value) for name, value in start.items()},
        "out": _rounded(out),
        "gradient_norms": gradients,
    }
    target = ROOT / "tests" / "golden" / "adaptformer.json"
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
