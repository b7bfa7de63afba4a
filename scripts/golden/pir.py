"""Runs the authors' code of PIR and writes what it computes to ``tests/golden/pir.json``.

    python scripts/golden/pir.py --official FOLDER

FOLDER is a checkout of jaychempan/PIR. Their towers are made small through their own configuration files, but for the
ResNet-50, whose shape their code fixes; the affiliation loss, which fixes the width 512, is run on embeddings of that
width. Also written: the names and shapes of the full model. Stand-ins replace what they import and this model never calls.
Also imported by ``benchmarks/pir_official.py``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "e3faeda27f8ae390332e4079fc3e8bed6ff7f98c"
SEED = 5
SWIN = {"vision_width": 32, "image_res": 56, "window_size": 7, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2]}
BERT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}
FULL_SWIN = {
    "vision_width": 768,
    "image_res": 224,
    "window_size": 7,
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
}
FULL_BERT = {
    **BERT,
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
EMBED_DIM = 64
ROWS, LENGTH = 4, 12
IMAGE_IDS = [0, 1, 1, 2]
RULES = [
    [r".*(norm\d?|LayerNorm|ffn\.1|patch_embed\.norm|downsample\.norm)\.weight", 1, 1.0],
    [r"conv_encoder\.(1|\d\.\d\.bn\d|\d\.\d\.downsample\.1)\.weight", 1, 1.0],
    [r".*running_var", 0.2, 1.0],
    [r"temp2?", 1, 0.15],
    [r"conv_proj\.weight", 0.01, 0.0],
    [r"(img|txt)_[sc]a\..*linear.*weight", 3, 0.0],
]
"""Factor on and then term added to the filled values of the names that match: norms near 1, positive variances and
temperatures, attention that is not flat, and beliefs whose softmax does not underflow (tokens would tie)."""
LOSS_LABELS = [0, 0, 1, 2, 2, 2, 3, 4]
LOSS_TEMPERATURE = 0.09


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    official = parser.parse_args().official
    sys.path.insert(0, str(ROOT / "tests"))
    from golden.fill import filled, inputs, integers

    torch.set_num_threads(1)
    model = official_model(official, SWIN, BERT, EMBED_DIM)
    shapes = {n: list(t.shape) for n, t in model.state_dict().items()}
    state = filled({n: s for n, s in shapes.items() if model.state_dict()[n].is_floating_point()}, SEED)
    for pattern, factor, term in RULES:
        for name in state:
            if re.fullmatch(pattern, name):
                state[name] = factor * state[name] + term
    state = {n: t.abs() if n.endswith("running_var") else t for n, t in state.items()}
    kept = {n: t for n, t in model.state_dict().items() if n not in state or "attn_mask" in n}
    model.load_state_dict({**state, **kept})
    pictures = inputs((ROWS, 3, SWIN["image_res"], SWIN["image_res"]), SEED)
    ids = integers((ROWS, LENGTH), BERT["vocab_size"], SEED)
    with torch.no_grad():
        image = model.get_vision_fusion_embeds(pictures, model.config)
        text = model.get_text_fusion_embeds(ids, model.config)
        contrastive = model.get_contr_loss(image, text, idx=torch.tensor(IMAGE_IDS))
    result = {
        "source": {"jaychempan/PIR": COMMIT},
        "seed": SEED,
        "swin": SWIN,
        "bert": BERT,
        "embed_dim": EMBED_DIM,
        "rules": RULES,
        "image_ids": IMAGE_IDS,
        "length": LENGTH,
        "shapes": shapes_by_pattern(shapes),
        "image": rounded(image),
        "text": rounded(text),
        "contrastive": rounded(contrastive),
        "affiliation": _affiliation(model, inputs),
    }
    full = official_model(official, FULL_SWIN, FULL_BERT, 512)
    result["full"] = {
        "shapes": shapes_by_pattern({n: list(t.shape) for n, t in full.state_dict().items()}),
        "total": sum(p.numel() for p in full.parameters()),
        "trained": sum(p.numel() for n, p in full.named_parameters() if not n.startswith("conv_encoder.")),
    }
    target = ROOT / "tests" / "golden" / "pir.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes, full model {result['full']['total']:,} parameters")


def _affiliation(model: Any, inputs: Any) -> dict[str, Any]:
    """Their loss on embeddings of width 512: value and norms of the gradients."""
    rows = len(LOSS_LABELS)
    image = inputs((rows, 512), SEED + 1).requires_grad_()
    text = (image + 0.5 * inputs((rows, 512), SEED + 2)).detach().requires_grad_()
    temperature = torch.tensor(LOSS_TEMPERATURE, requires_grad=True)
    stand_in = SimpleNamespace(embed_dim=512, temp2=temperature)
    unit = nn.functional.normalize
    loss = type(model).get_affil_loss(stand_in, unit(image), unit(text), label=torch.tensor(LOSS_LABELS))
    loss.backward()
    return {
        "labels": LOSS_LABELS,
        "temperature": LOSS_TEMPERATURE,
        "loss": rounded(loss),
        "gradient_norms": [rounded(t.grad.norm()) for t in (image, text, temperature)],
    }


def official_model(folder: Path, swin: Mapping, bert: Mapping, embed_dim: int) -> Any:
    """The authors' model, untrained, in evaluation mode; a process group of one is made, over which their losses gather."""
    pir = _import_official(folder)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as name:
        files = {"vision_config": swin, "text_config": bert}
        for key, content in files.items():
            (Path(name) / f"{key}.json").write_text(json.dumps(content), encoding="utf-8")
        config = {
            **{key: f"{name}/{key}.json" for key in files},
            "image_res": swin["image_res"],
            "patch_size": 32,
            "use_swin": True,
            "is_baseline": False,
            "resnet_ckpt": None,
            "finetune_conv": False,
            "embed_dim": embed_dim,
            "max_tokens": 47,
            "temp1": 0.07,
            "temp2": 0.07,
            "use_affil_loss": True,
            "use_triplet_loss": False,
            "filter_size": 40,
            "instru_num": 2,
            "cycle_num": 3,
            "dropout_r": 0.2,
            "head": 8,
        }
        model = pir.PIRBase(config, load_vision_params=False, load_text_params=False)
    model.config = config
    model.conv_encoder.requires_grad_(False)  # theirs does so where it loads a file
    return model.eval()


def shapes_by_pattern(shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """Shapes with numbered places written once, beside the numbers that occur."""
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        numbers = re.findall(r"(?<=\.)\d+(?=\.)", name)
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{}", name)
        found.setdefault(f"{pattern}|{','.join(map(str, shape))}", []).append(",".join(numbers))
    return {key: " ".join(value) for key, value in found.items()}


def rounded(values: Tensor) -> Any:
    """Nested lists of numbers with eight significant digits."""

    def cut(value: Any) -> Any:
        return [cut(v) for v in value] if isinstance(value, list) else float(f"{value:.8g}")

    return cut(values.detach().double().tolist())


def _import_official(folder: Path) -> Any:
    """Their module, imported with stand-ins for packages of its time, which are taken away again."""
    from timm import layers

    if "models.pir" in sys.modules:
        return sys.modules["models.pir"]
    stand_ins: dict[str, dict[str, Any]] = {
        "six": {"iteritems": lambda table: table.items()},
        "scipy": {"interpolate": None},
        "utils": {"read_json": lambda path: json.loads(Path(path).read_text(encoding="utf-8"))},
        "timm.models.layers": {n: getattr(layers, n) for n in ("DropPath", "to_2tuple", "trunc_normal_")},
        "models.vit": {"VisionTransformer": None, "interpolate_pos_embed": None},
    }
    before = {name: sys.modules.pop(name) for name in stand_ins if name in sys.modules}
    for name, members in stand_ins.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(members)
    sys.path.insert(0, str(folder.resolve()))
    try:
        from models import pir
    finally:
        sys.path.remove(str(folder.resolve()))
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(before)
    return pir


if __name__ == "__main__":
    main()
