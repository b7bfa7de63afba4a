"""Run VPT's own vision transformer on small filled weights and write tests/golden/vpt.json.

Usage: ``python scripts/golden/vpt.py --official FOLDER``, a checkout of KMnP/vpt at COMMIT; also needs scipy.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "4410440ec1b489f24f66b9fad3d9b10ff3443567"
SEED, SCALE = 22, 0.2
WIDTH, DEPTH, HEADS, TOKENS, SIDE, PATCH = 32, 3, 2, 4, 32, 16


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    sys.path[:0] = [str(p.resolve()) for p in (ROOT / "tests", parser.parse_args().official)]
    _stand_in()
    from golden.fill import filled, inputs
    from src.models.vit_prompt.vit import PromptedTransformer

    torch.set_num_threads(1)
    transformer = {"mlp_dim": 4 * WIDTH, "num_heads": HEADS, "num_layers": DEPTH}
    vit = SimpleNamespace(
        patches={"size": (PATCH, PATCH)},
        hidden_size=WIDTH,
        transformer={**transformer, "attention_dropout_rate": 0.0, "dropout_rate": 0.0},
    )
    cases = {}
    for name, deep in (("shallow", False), ("deep", True)):
        prompt = SimpleNamespace(
            LOCATION="prepend",
            INITIATION="random",
            NUM_DEEP_LAYERS=None,
            DEEP_SHARED=False,
            NUM_TOKENS=TOKENS,
            DROPOUT=0.0,
            PROJECT=-1,
            DEEP=deep,
        )
        torch.manual_seed(0)
        model = PromptedTransformer(prompt, vit, SIDE, False)
        model.eval()  # theirs returns nothing
        largest = float(model.prompt_embeddings.detach().abs().max())
        shapes = {n: list(t.shape) for n, t in model.state_dict().items()}
        state = {n: 1 + t if "norm.weight" in n else t for n, t in filled(shapes, SEED, SCALE).items()}
        model.load_state_dict(state)
        with torch.no_grad():
            encoded, _ = model(inputs((3, 3, SIDE, SIDE), SEED))
        cases[name] = {"shapes": shapes, "class_token": _rounded(encoded[:, 0]), "largest_start": largest}
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "tokens": TOKENS, "side": SIDE, "patch": PATCH}
    result = {"source": {"KMnP/vpt": COMMIT}, "seed": SEED, "scale": SCALE, "sizes": sizes, "cases": cases}
    target = ROOT / "tests" / "golden" / "vpt.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


def _stand_in() -> None:
    """Empty modules for what its imports name and the transformer does not use."""
    configs = ModuleType("src.configs.vit_configs")
    for size in ("b8", "b16", "b32", "l16", "l32", "h14"):
        setattr(configs, f"get_{size}_config", lambda: None)
    sys.modules["src.configs.vit_configs"] = configs
    log = ModuleType("src.utils.logging")
    log.get_logger = lambda name: None  # type: ignore[attr-defined]
    sys.modules["src.utils.logging"] = log
    turtle = ModuleType("turtle")
    turtle.forward = None  # type: ignore[attr-defined]
    sys.modules["turtle"] = turtle


def _rounded(tensor: Any) -> list[Any]:
    if tensor.ndim > 1:
        return [_rounded(row) for row in tensor]
    return [float(f"{value:.8g}") for value in tensor.tolist()]


if __name__ == "__main__":
    main()
