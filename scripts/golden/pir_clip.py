"""Run PIR-CLIP's own code on small filled weights and write tests/golden/pir_clip.json.

Usage: ``python scripts/golden/pir_clip.py --official FOLDER``, a checkout of jaychempan/PIR-CLIP at COMMIT. Also imported by
``benchmarks/pir_clip_official.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "9554baf882e81ff5b611bbe6a727c4318545a1af"
SEED = 4
EMBED_DIM = 512
VISION = {
    "layers": 2,
    "width": 768,
    "mlp_ratio": 1.0,
    "patch_size": 16,
    "image_size": 64,
    "output_tokens": True,
    "res_layers": [1, 2, 1, 1],
    "res_width": 8,
}
TEXT = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
"""Small but for the two widths of the prior's projection, which the official model fixes."""
RULES = [
    [r".*ln_\w+\.weight", 1, 1.0],
    [r".*(bn\d|downsample\.1)\.(weight|running_var)", 2, 1.0],
    [r"logit_scale", 1, 2.5],
    [r"res_visual\..*conv\d\.weight", 4, 0.0],
    [r"vision_proj_res\.weight", 0.12, 0.0],
]
"""Factor on and then term added to the filled values of the names that match: norms and variances near 1, a usual
temperature, and a prior whose signal passes on with beliefs that are neither flat nor all in one token."""
LABELS = [0, 1, 0, 2]
STRIDE = 4
"""Every fourth value of an embedding is stored."""
WATCHED = (
    r"visual\.(conv1|transformer\.resblocks\.1\.attn\.in_proj)_?\.?weight",
    r"visual\.(class|positional)_embedding",
    r"res_visual\.(conv1|layer4\.0\.bn3|attnpool\.(q|k|v|c)_proj)\.weight",
    r"res_visual\.attnpool\.(positional_embedding|v_proj\.bias)",
    r"vision_proj_res\.(weight|bias)",
    r"(token_embedding\.weight|text_projection|logit_scale)",
)


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    official = parser.parse_args().official
    sys.path.insert(0, str(ROOT / "tests"))
    from golden.fill import filled, inputs, integers

    torch.set_num_threads(1)
    model = official_model(official, EMBED_DIM, VISION, TEXT).eval()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    state = filled(shapes, SEED)
    for pattern, factor, term in RULES:
        for name in state:
            if re.fullmatch(pattern, name):
                state[name] = factor * state[name] + term
    model.load_state_dict(state)

    length, end = TEXT["context_length"], TEXT["vocab_size"] - 1
    ids = integers((len(LABELS), length), end, SEED)
    for row in range(len(LABELS)):
        ids[row, 3 + 2 * row] = end  # the largest id
        ids[row, 4 + 2 * row :] = 0
    pictures = smooth(inputs((len(LABELS), 3, 4, 4), SEED), VISION["image_size"])
    found = model(pictures, ids)
    terms = affiliation_loss(official)(
        found["image_features"], found["text_features"], torch.tensor(LABELS), found["logit_scale"], output_dict=True
    )
    model.zero_grad()
    sum(terms.values()).backward()
    parameters = dict(model.named_parameters())
    watched = [n for n in parameters if any(re.fullmatch(pattern, n) for pattern in WATCHED)]
    with torch.device("meta"):
        full = official_model(official, *released_sizes(official))
    result = {
        "source": {"jaychempan/PIR-CLIP": COMMIT},
        "seed": SEED,
        "embed_dim": EMBED_DIM,
        "vision": VISION,
        "text": TEXT,
        "rules": RULES,
        "labels": LABELS,
        "ids": ids.tolist(),
        "stride": STRIDE,
        "shapes": shapes,
        "belief": rounded(_belief(model, pictures)[:2]),
        "image_embeddings": rounded(found["image_features"][:, ::STRIDE]),
        "text_embeddings": rounded(found["text_features"][:, ::STRIDE]),
        "contrastive": rounded(terms["contrastive_loss"]),
        "affiliation": rounded(terms["affiliation_loss"]),
        "gradient_norms": {name: rounded(parameters[name].grad.norm()) for name in watched},
        "vit_b_32": {
            "tensors": len(full.state_dict()),
            "trained": sum(p.numel() for p in full.parameters() if p.requires_grad),
            "prior": sum(p.numel() for p in full.res_visual.parameters()),
            "sha256": layout({name: list(tensor.shape) for name, tensor in full.state_dict().items()}),
        },
    }
    target = ROOT / "tests" / "golden" / "pir_clip.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


def official_model(folder: Path, embed_dim: int, vision: Mapping[str, Any], text: Mapping[str, Any]) -> nn.Module:
    """The authors' model, untrained, giving a dictionary of outputs."""
    _import_official(folder)
    import open_clip.model as theirs

    towers: Any = theirs.CLIPVisionCfg(**vision), theirs.CLIPTextCfg(**text)
    return theirs.CLIP(embed_dim, *towers, output_dict=True)


def affiliation_loss(folder: Path) -> nn.Module:
    """The authors' two losses, in one process."""
    _import_official(folder)
    import open_clip.loss as theirs

    return theirs.ClipLoss(is_aff_loss=True)


def released_sizes(folder: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Embedding width and both configurations of the one model that the repository can build."""
    path = folder / "src" / "open_clip" / "model_configs" / "PIR.json"
    sizes = json.loads(path.read_text(encoding="utf-8"))
    return sizes["embed_dim"], sizes["vision_cfg"], sizes["text_cfg"]


def layout(shapes: Mapping[str, list[int]]) -> str:
    """SHA-256 of all names and shapes in order of name."""
    lines = [f"{name} {list(shapes[name])}" for name in sorted(shapes)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def smooth(coarse: Tensor, side: int) -> Tensor:
    """(B, 3, side, side) pictures from a few values each, by repetition, with a fixed grain on top."""
    times = side // coarse.shape[-1]
    pictures = coarse.repeat_interleave(times, 2).repeat_interleave(times, 3)
    grain = torch.arange(side * side).remainder(7).reshape(side, side) / 7
    return pictures + grain


def rounded(values: Tensor) -> Any:
    """Nested lists of numbers with eight significant digits."""

    def cut(value: Any) -> Any:
        return [cut(v) for v in value] if isinstance(value, list) else float(f"{value:.8g}")

    return cut(values.detach().double().tolist())


def _belief(model: Any, pictures: Tensor) -> Tensor:
    """(B, N) softmax of the tokens' products with the prior, read where the official forward takes it."""
    kept: list[Tensor] = []
    plain = nn.functional.softmax

    def listening(*args: Any, **options: Any) -> Tensor:
        kept.append(plain(*args, **options))
        return kept[-1]

    import open_clip.transformer as theirs

    theirs.F.softmax, before = listening, theirs.F.softmax
    try:
        model.encode_image(pictures)
    finally:
        theirs.F.softmax = before
    return next(b for b in kept if b.ndim == 2)


def _import_official(folder: Path) -> None:
    """Put the checkout's own copy of open_clip first on the path."""
    source = str((folder / "src").resolve())
    if source not in sys.path:
        sys.path.insert(0, source)


if __name__ == "__main__":
    main()
