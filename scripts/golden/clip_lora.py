"""Run CLIP-LoRA's own code on small filled weights and write what it gives to tests/golden/clip_lora.json.

Usage: ``python scripts/golden/clip_lora.py --official FOLDER``, a checkout of MaxZanella/CLIP-LoRA at COMMIT. Its copy of
OpenAI's CLIP model is filled, wrapped by its ``apply_lora`` and filled again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "358f0d7361f59e66c0b2d0b672a3dafb143a759b"
SEED = 11
SIZES = {
    "embed_dim": 16,
    "image_resolution": 16,
    "vision_layers": 2,
    "vision_width": 128,
    "vision_patch_size": 8,
    "context_length": 12,
    "vocab_size": 64,
    "transformer_width": 64,
    "transformer_heads": 2,
    "transformer_layers": 2,
}
FORMS = {"official": ["q", "k", "v"], "all": ["q", "k", "v", "o"]}
ROWS, RANK, ALPHA = 4, 2, 1


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    sys.path[:0] = [str(p.resolve()) for p in (ROOT / "tests", parser.parse_args().official)]
    from golden.fill import inputs, integers

    torch.set_num_threads(1)
    side = SIZES["image_resolution"]
    pictures = inputs((ROWS, 3, side, side), SEED)
    ids = integers((ROWS, SIZES["context_length"]), SIZES["vocab_size"] - 1, SEED)
    for row in range(ROWS):
        ids[row, 4 + row] = SIZES["vocab_size"] - 1  # the end token has the largest id
    result: dict[str, Any] = {
        "source": {"MaxZanella/CLIP-LoRA": COMMIT},
        "seed": SEED,
        "sizes": SIZES,
        "rows": ROWS,
        "rank": RANK,
        "alpha": ALPHA,
        "ids": ids.tolist(),
        "forms": {name: _form(parts, pictures, ids) for name, parts in FORMS.items()},
    }
    target = ROOT / "tests" / "golden" / "clip_lora.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


def _form(parts: list[str], pictures: Tensor, ids: Tensor) -> dict[str, Any]:
    from clip.model import CLIP
    from golden.fill import filled
    from loralib.utils import apply_lora

    model = CLIP(**SIZES).float()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(filled(shapes, SEED))
    model.eval()
    untouched = model.encode_image(pictures), model.encode_text(ids)
    options = SimpleNamespace(
        encoder="both", position="all", backbone="ViT-B/32", params=parts, r=RANK, alpha=ALPHA, dropout_rate=0.25
    )
    saved: dict[str, Tensor] = {}
    for number, layer in enumerate(apply_lora(options, model)):
        for letter in parts:
            name = f"{letter}_proj" if letter != "o" else "proj"
            for matrix in "AB":
                saved[f"weights.layer_{number}.{name}.w_lora_{matrix}"] = getattr(
                    getattr(layer, name), f"w_lora_{matrix}"
                )
    lora_shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    with torch.no_grad():
        for name, tensor in filled(lora_shapes, SEED, scale=0.3).items():
            saved[name].copy_(tensor)
    model.eval()  # here the updates are added to the weights
    image, text = model.encode_image(pictures), model.encode_text(ids)
    return {
        "parts": parts,
        "clip_shapes": shapes,
        "lora_shapes": lora_shapes,
        "trainable": sum(tensor.numel() for tensor in saved.values()),
        "untouched": [_rounded(part) for part in untouched],
        "image": _rounded(image),
        "text": _rounded(text),
    }


def _rounded(tensor: Tensor) -> Any:
    """Nested lists of numbers with 8 significant digits."""
    values = tensor.detach()
    if values.dim() == 0:
        return float(f"{values.item():.8g}")
    return [_rounded(row) for row in values]


if __name__ == "__main__":
    main()
