"""Run PE-RSITR's own code on small filled weights and write what it gives to tests/golden/mrs_adapter.json.

Usage: ``python scripts/golden/mrs_adapter.py --official PE-RSITR --history PE-RSITR-dd24050 --clip CLIP``, three checkouts:
ZhanYang-nwpu/PE-RSITR at OFFICIAL (its ``layers/``), the same at HISTORY (its ``loss.py``) and openai/CLIP at CLIP.

The adapter's widths are hard-wired to 768 and 512, so the towers keep them; depth, vocabulary and picture are small.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
OFFICIAL = "db5fba3850cb82bddc644a24b48c3907f096ea2d"
HISTORY = "dd24050aa832ebff2308ac42b3576906858a28fc"
CLIP = "d05afc436d78f1c48dc0dbf8e5980a9d471f35f6"
SEED = 3
SIZES = {
    "embed_dim": 16,
    "image_resolution": 64,
    "vision_layers": 2,
    "vision_width": 768,
    "vision_patch_size": 32,
    "context_length": 12,
    "vocab_size": 64,
    "transformer_width": 512,
    "transformer_heads": 8,
    "transformer_layers": 2,
}
ROWS = 4
KEPT = 0.8


class _FixedDrop(nn.Module):
    """Stands in for the authors' dropout of the second view, with a mask that the test can make again."""

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask / KEPT


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("official", "history", "clip"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    folders = parser.parse_args()
    sys.path[:0] = [str(p.resolve()) for p in (ROOT / "tests", folders.official, folders.history, folders.clip)]
    import clip
    import clip.model
    import loss as official_loss
    from golden.fill import filled, inputs, integers
    from layers.MRS_Adapter import PE_RSITR

    torch.set_num_threads(1)
    clip.load = lambda _name: (clip.model.CLIP(**SIZES), None)
    model = PE_RSITR()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(filled(shapes, SEED))
    model.eval()
    model.dropout = _FixedDrop()

    pictures = inputs((ROWS, 3, SIZES["image_resolution"], SIZES["image_resolution"]), SEED)
    ids = integers((ROWS, SIZES["context_length"]), SIZES["vocab_size"] - 1, SEED)
    for row in range(ROWS):
        ids[row, 4 + row] = SIZES["vocab_size"] - 1  # the end token has the largest id
    image, text = model.forward_image(pictures), model.forward_text(ids)
    patches = (SIZES["image_resolution"] // SIZES["vision_patch_size"]) ** 2
    model.dropout.mask = inputs((ROWS, patches + 1, SIZES["vision_width"]), SEED + 1) > -0.84
    image_view = model.forward_image(pictures, True)
    model.dropout.mask = inputs((ROWS, SIZES["context_length"], SIZES["transformer_width"]), SEED + 2) > -0.84
    text_view = model.forward_text(ids, True)

    hinge = official_loss.ContrastiveLoss(opt=None, margin=0.2, max_violation=True)
    every = official_loss.ContrastiveLoss(opt=None, margin=0.2, max_violation=False)
    step = hinge(image, text) + hinge(image, image_view) + hinge(text, text_view)
    step.backward()

    result: dict[str, Any] = {
        "source": {"ZhanYang-nwpu/PE-RSITR": [OFFICIAL, HISTORY], "openai/CLIP": CLIP},
        "seed": SEED,
        "sizes": SIZES,
        "rows": ROWS,
        "shapes": shapes,
        "adapter": {"dropout": model.Uniadapt.dropout, "trainable": _count(model.Uniadapt)},
        "ids": ids.tolist(),
        "image": _rounded(image),
        "text": _rounded(text),
        "image_view": _rounded(image_view),
        "text_view": _rounded(text_view),
        "hmmc": _rounded(step),
        "gradient_norms": {n: _rounded(p.grad.norm()) for n, p in model.named_parameters() if "Uniadapt" in n},
        "losses": _losses(hinge, every, inputs),
    }
    target = ROOT / "tests" / "golden" / "mrs_adapter.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


def _losses(hinge: nn.Module, every: nn.Module, inputs: Any) -> list[dict[str, Any]]:
    """The loss on plain features; ``equal`` are two rows that are made the same in all four matrices."""
    cases = []
    for rows, width, seed, equal in ((6, 8, 11, None), (16, 32, 12, None), (6, 8, 13, (1, 4)), (1, 8, 14, None)):
        features = [inputs((rows, width), seed * 10 + k) for k in range(4)]
        if equal is not None:
            for matrix in features:
                matrix[equal[1]] = matrix[equal[0]]
        image, text, image_view, text_view = features
        parts = [hinge(image, text), hinge(image, image_view), hinge(text, text_view)]
        cases.append(
            {
                "rows": rows,
                "width": width,
                "seed": seed,
                "equal": equal,
                "terms": [_rounded(p) for p in parts],
                "hmmc": _rounded(sum(parts)),
                "hinge": _rounded(every(image, text)),
            }
        )
    return cases


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _rounded(tensor: Tensor) -> Any:
    """Nested lists of numbers with 8 significant digits."""
    values = tensor.detach()
    if values.dim() == 0:
        return float(f"{values.item():.8g}")
    return [_rounded(row) for row in values]


if __name__ == "__main__":
    main()
