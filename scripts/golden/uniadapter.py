"""Run UniAdapter's own layers and vision transformer on small filled weights and write tests/golden/uniadapter.json.

Usage: ``python scripts/golden/uniadapter.py --official FOLDER``, a checkout of RERV/UniAdapter at COMMIT; also needs timm
and einops.

The adapters are shared with the text encoder, as in the original. That encoder is a post-norm BERT, which no CLIP tower
can stand in for, so of the text side the layer alone is run.
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
COMMIT = "796c12492964ff40e75d1de38dc0876e0dddf5a1"
SEED = 14
WIDTH, DEPTH, HEADS, BOTTLENECK = 32, 2, 2, 8
SHAPE = (2, 5, WIDTH)
START_BOTTLENECK, START_WIDTH = 64, 256
"""Sizes of a second model that is only initialised, large enough to measure the deviation of its weights."""


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    sys.path[:0] = [str(p.resolve()) for p in (ROOT / "tests", parser.parse_args().official)]
    from golden.fill import filled, inputs

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    start = _model(START_WIDTH, START_BOTTLENECK)
    for adapter in start.adapters:
        adapter.init_adapter_weights()
    model = _model(WIDTH, BOTTLENECK).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # Names of the same layer must hold the same values, so they are filled under one name.
    model.load_state_dict(filled({n: s for n, s in shapes.items() if not _alias(n)}, SEED, scale=0.2), strict=False)
    x = inputs(SHAPE, SEED)
    image = x
    for block in model.visual_encoder.blocks:
        image = block(image)
    text = model.adapters[1](x, add_residual=False, mode="text")
    (image.square().mean() + text.square().mean()).backward()
    result: dict[str, Any] = {
        "source": {"RERV/UniAdapter": COMMIT},
        "seed": SEED,
        "sizes": {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "bottleneck": BOTTLENECK, "input": SHAPE},
        "shapes": shapes,
        "start_image_up_std": _rounded(start.adapters[0].visual_up_proj.weight.std()),
        "image": _rounded(image),
        "text_layer_1": _rounded(text),
        "gradient_norms": {
            n: _rounded(p.grad.norm()) for n, p in model.adapters.named_parameters() if p.grad is not None
        },
    }
    target = ROOT / "tests" / "golden" / "uniadapter.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


def _model(width: int, bottleneck: int) -> Any:
    """Adapters and vision transformer, under the names that the retrieval model gives them."""
    fairscale = {
        n: ModuleType(n) for n in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint")
    }  # memory savings only
    wrapper = ModuleType("fairscale.nn.checkpoint.checkpoint_activations")
    wrapper.checkpoint_wrapper = lambda module: module  # type: ignore[attr-defined]
    sys.modules.update({**fairscale, wrapper.__name__: wrapper})
    # The package's __init__ files import nothing, but its text encoder needs an old transformers; it is left out.
    from models.adapter import UniAdapter
    from models.vit import VisionTransformer

    model = nn.Module()
    model.adapters = nn.ModuleList([UniAdapter(d_model=width, bottleneck=bottleneck) for _ in range(DEPTH)])
    model.visual_encoder = VisionTransformer(
        img_size=32,
        embed_dim=width,
        depth=DEPTH,
        num_heads=HEADS,
        norm_layer=nn.LayerNorm,
        config={"adapter_visual": True},
        adapters=model.adapters,
    )
    return model


def _alias(name: str) -> bool:
    return name.startswith("visual_encoder.") and ("adapters." in name or ".adapter." in name)


def _rounded(tensor: Tensor) -> Any:
    """Nested lists of numbers with 8 significant digits."""
    values = tensor.detach()
    if values.dim() == 0:
        return float(f"{values.item():.8g}")
    return [_rounded(row) for row in values]


if __name__ == "__main__":
    main()
