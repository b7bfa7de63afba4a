"""What the golden scripts of CoOp's family share: stand-ins for their training framework, small sizes, filled weights."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
SEED = 21
SCALE = 0.2
SIZES = {
    "embed_dim": 128,
    "image_resolution": 32,
    "vision_layers": 3,
    "vision_width": 128,
    "vision_patch_size": 16,
    "context_length": 24,
    "vocab_size": 64,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 3,
}
"""In the words of OpenAI's `CLIP` constructor, in its order. CoCoOp's bottleneck is a sixteenth of the first."""
CAPTIONS = ["many planes near a large terminal", "a bridge", "two boats in the harbour of a small town"]


def prepare(official: Path) -> None:
    """Make the official folder importable: names of its training framework, no casts to half precision."""
    sys.path[:0] = [str(ROOT / "tests"), str(official.resolve())]
    registry = SimpleNamespace(register=lambda: lambda cls: cls)
    for name, attributes in {
        "dassl": {},
        "dassl.engine": {"TRAINER_REGISTRY": registry, "TrainerX": object},
        "dassl.metrics": {"compute_accuracy": None},
        "dassl.utils": {"load_pretrained_weights": None, "load_checkpoint": None},
        "dassl.optim": {"build_optimizer": None, "build_lr_scheduler": None},
    }.items():
        module = ModuleType(name)
        for key, value in attributes.items():
            setattr(module, key, value)
        sys.modules[name] = module
    # The official prompts are cast to fp16 wherever they run; the comparison is of the arithmetic, in fp32.
    torch.Tensor.half = lambda self: self  # type: ignore[method-assign, assignment, misc]
    nn.Module.half = lambda self: self  # type: ignore[method-assign, assignment, misc]


def tokenizer() -> Any:
    """A tokenizer that needs no vocabulary file, instead of the official one."""
    from petlbench.methods.backbones.tokenizers import HashingTokenizer

    own = HashingTokenizer(SIZES["vocab_size"], SIZES["context_length"])
    return lambda text: own([text]).ids


def fill(model: nn.Module, skip: str = r"(?!)") -> dict[str, list[int]]:
    """Give a module the filled weights; shapes of what was filled. Norms get weights near 1."""
    shapes = {n: list(t.shape) for n, t in model.state_dict().items() if not re.fullmatch(skip, n)}
    model.load_state_dict(weights(shapes), strict=False)
    return shapes


def weights(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Filled weights with norms near 1; the test does the same."""
    from golden.fill import filled

    state = filled(shapes, SEED, SCALE)
    return {n: 1 + t if re.search(r"(^|\.)ln_\w+\.weight$", n) else t for n, t in state.items()}


def settings(group: str, **values: Any) -> SimpleNamespace:
    """The few settings that a prompt learner reads."""
    return SimpleNamespace(
        TRAINER=SimpleNamespace(**{group: SimpleNamespace(PREC="fp32", CTX_INIT="", **values)}),
        INPUT=SimpleNamespace(SIZE=(SIZES["image_resolution"],) * 2),
    )


def pictures() -> Tensor:
    """(3, 3, R, R) inputs."""
    from golden.fill import inputs

    return inputs((len(CAPTIONS), 3, SIZES["image_resolution"], SIZES["image_resolution"]), SEED)


def write(name: str, source: Mapping[str, str], cases: Mapping[str, Any], sizes: Mapping[str, int] = SIZES) -> None:
    """The golden file, compact."""
    result = {"source": source, "seed": SEED, "scale": SCALE, "sizes": sizes, "captions": CAPTIONS, "cases": cases}
    target = ROOT / "tests" / "golden" / f"{name}.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


def rounded(tensor: Tensor) -> list[Any]:
    """Nested lists of 8 significant digits."""
    if tensor.ndim > 1:
        return [rounded(row) for row in tensor]
    return [float(f"{value:.8g}") for value in tensor.tolist()]
