"""Run Convpass' own code on filled weights and write a sample of what it gives to tests/golden/convpass.json.

Usage: ``python scripts/golden/convpass.py --official FOLDER``, a checkout of JieShibo/PETL-ViT at COMMIT; also needs timm.

The released layers are fixed to width 768 and 14 x 14 patches, so the block keeps both; only some values are stored.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "026e4f12cfbe1e46bfb4d3ed5ba09f2d9f83e91e"
SEED = 12
HEADS = 2
SHAPE = (2, 197, 768)
SCALES = {"convpass": 0.5, "convpass_attn": 2.0}
TOKENS, CHANNELS = (0, 1, 2, 15, 100, 196), 12


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    sys.path[:0] = [str(p.resolve()) for p in (ROOT / "tests", parser.parse_args().official / "convpass" / "vtab")]
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "source": {"JieShibo/PETL-ViT": COMMIT},
        "seed": SEED,
        "sizes": {"heads": HEADS, "bottleneck": 8, "input": SHAPE, "tokens": TOKENS, "channels": CHANNELS},
        "forms": {name: _form(name, scale) for name, scale in SCALES.items()},
    }
    target = ROOT / "tests" / "golden" / "convpass.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


def _form(name: str, scale: float) -> dict[str, Any]:
    from convpass import set_Convpass
    from golden.fill import filled, inputs

    vit = timm.models.vision_transformer.VisionTransformer(
        depth=1, num_heads=HEADS, num_classes=3, norm_layer=nn.LayerNorm
    )
    vit.blocks[0].drop_path = nn.Identity()  # timm's name for it when the code was written
    set_Convpass(vit, name, dim=8, s=scale)
    start = {n: p for n, p in vit.named_parameters() if "adapter" in n}
    sums = {n: [_rounded(p.sum()), _rounded(p.square().sum())] for n, p in start.items() if "down.weight" not in n}
    shapes = {n: tuple(p.shape) for n, p in vit.state_dict().items()}
    vit.load_state_dict(filled(shapes, SEED))
    out = vit.eval().blocks(inputs(SHAPE, SEED))
    out.square().mean().backward()
    saved = {n: s for n, s in shapes.items() if "adapter" in n or "head" in n}  # as the repository's save() does
    return {
        "scale": scale,
        "block_shapes": {n: s for n, s in shapes.items() if n.startswith("blocks.") and n not in saved},
        "shapes": saved,
        "start_sums": sums,
        "sample": _rounded(out[:, list(TOKENS), :CHANNELS]),
        "token_norms": _rounded(out.norm(dim=-1)),
        "gradient_norms": {n: _rounded(p.grad.norm()) for n, p in start.items()},
    }


def _rounded(tensor: Tensor) -> Any:
    """Nested lists of numbers with 8 significant digits."""
    values = tensor.detach()
    if values.dim() == 0:
        return float(f"{values.item():.8g}")
    return [_rounded(row) for row in values]


if __name__ == "__main__":
    main()
