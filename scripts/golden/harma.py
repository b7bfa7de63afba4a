"""Run HarMA's own code on small filled weights and write tests/golden/harma.json.

Usage: ``python scripts/golden/harma.py --official FOLDER``, a checkout of seekerhuang/HarMA at COMMIT (its blob of
``data/finetune/rsicd_train.json`` is not public and not needed). Also imported by ``benchmarks/harma_official.py``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "d3f13f3387d718e4d07aa94c418e9e93f47d052e"
SEED = 3
VISION = {"layers": 2, "width": 768, "head_width": 64, "mlp_ratio": 1.0, "patch_size": 16, "image_size": 32}
TEXT = {"context_length": 16, "vocab_size": 64, "width": 512, "heads": 8, "layers": 2}
"""Small but for the widths, which the official adapters are made for."""
EMBED_DIM = 32
RULES = [[r".*\.ln_\w+\.weight", 1, 1.0], [r".*gate1", 1, 0.6], [r"temp", 1, 0.15], [r".*mmadapter.*weight", 1.5, 0.0]]
"""Factor on and then term added to the filled values of the names that match: norms near 1, gates near their start, a
positive temperature, and adapters that move the embeddings well."""
IMAGE_IDS = [0, 1, 1, 2]
VIT_B_32 = (
    512,
    {"layers": 12, "width": 768, "patch_size": 32, "image_size": 224},
    {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
)


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    official = parser.parse_args().official
    sys.path.insert(0, str(ROOT / "tests"))
    from golden.fill import inputs, integers

    torch.set_num_threads(1)
    side, length, end = VISION["image_size"], TEXT["context_length"], TEXT["vocab_size"] - 1
    pictures = inputs((len(IMAGE_IDS), 3, side, side), SEED)
    ids = integers((len(IMAGE_IDS), length), end, SEED)
    for row in range(len(IMAGE_IDS)):
        ids[row, 4 + 3 * row] = end  # the largest id
        ids[row, 5 + 3 * row :] = 0
    model = official_model(official, EMBED_DIM, VISION, TEXT, quick_gelu=False)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    result = {
        "source": {"seekerhuang/HarMA": COMMIT},
        "seed": SEED,
        "embed_dim": EMBED_DIM,
        "vision": VISION,
        "text": TEXT,
        "rules": RULES,
        "image_ids": IMAGE_IDS,
        "ids": ids.tolist(),
        "shapes": by_pattern(shapes),
        "activations": {
            "gelu": _values(model, shapes, pictures, ids),
            "quick_gelu": _values(official_model(official, EMBED_DIM, VISION, TEXT, True), shapes, pictures, ids),
        },
    }
    with torch.device("meta"):
        full = official_model(official, *VIT_B_32, quick_gelu=False)
    set_trainable(official)(full)
    state = full.state_dict()
    result["vit_b_32"] = {
        "tensors": len(state),
        "adapter_tensors": sum("adapter" in name or "gate" in name for name in state),
        "trained": sum(p.numel() for p in full.parameters() if p.requires_grad),
        "shapes": by_pattern({name: list(tensor.shape) for name, tensor in state.items()}),
    }
    target = ROOT / "tests" / "golden" / "harma.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


def official_model(folder: Path, embed_dim: int, vision: Mapping, text: Mapping, quick_gelu: bool) -> nn.Module:
    """The authors' model, untrained: their CLIP with adapters, the temperature and the losses.

    Their losses gather over a process group even where there is one process, so one is made. Two models share their
    adapters, which belong to the module; fill or copy one before building the next.
    """
    _import_official(folder)
    import open_clip.model
    from models import model_retrieval

    def create(*_: Any, **__: Any) -> tuple[nn.Module, None, None]:
        towers = open_clip.model.CLIPVisionCfg(**vision), open_clip.model.CLIPTextCfg(**text)
        return open_clip.model.CLIP(embed_dim, *towers, quick_gelu=quick_gelu), None, None

    model_retrieval.open_clip.create_model_and_transforms = create  # theirs downloads weights
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    config = {"is_harma": True, "embed_dim": embed_dim, "temp1": 0.07, "model": "vit", "if_evaluation": False}
    return model_retrieval.HarMA({**config, "use_affil_loss": False, "use_triplet_loss": False}).eval()


def set_trainable(folder: Path) -> Any:
    """The authors' function that freezes the backbone, out of a file whose imports need their data pipeline."""
    tree = ast.parse((folder / "Retrieval.py").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "set_trainable":
            exec(compile(ast.Module([node], []), "Retrieval.py", "exec"), names)

    def quiet(model: nn.Module) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            names["set_trainable"](model)

    return quiet


def by_pattern(shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """Shapes with the blocks of a tower written once, as ``resblocks.{}``, beside their number."""
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        pattern = re.sub(r"resblocks\.\d+", "resblocks.{}", name)
        times = found.get(pattern, [shape, 0])[1] + 1
        assert found.setdefault(pattern, [shape, 0])[0] == shape
        found[pattern] = [shape, times]
    return found


def _values(model: nn.Module, shapes: Mapping[str, list[int]], pictures: Tensor, ids: Tensor) -> dict[str, Any]:
    from golden.fill import filled

    state = filled(shapes, SEED)
    for pattern, factor, term in RULES:
        for name in state:
            if re.fullmatch(pattern, name):
                state[name] = factor * state[name] + term
    model.load_state_dict(state)
    image, text = model.get_vis_emb(pictures), model.get_txt_emb(ids)
    contrastive, triplet, _ = model(pictures, ids, idx=torch.tensor(IMAGE_IDS))
    model.zero_grad()
    (contrastive + triplet).backward()
    watched = [n for n, _ in model.named_parameters() if n == "temp" or ("resblocks.0." in n and "gate" in n)]
    watched += [n for n, _ in model.named_parameters() if re.fullmatch(r".*resblocks\.1\.mmadapter\..*weight", n)]
    parameters = dict(model.named_parameters())
    return {
        "image": rounded(image),
        "text": rounded(text),
        "contrastive": rounded(contrastive),
        "triplet": rounded(triplet),
        "gradient_norms": {name: rounded(parameters[name].grad.norm()) for name in watched},
    }


def rounded(values: Tensor) -> Any:
    """Nested lists of numbers with eight significant digits."""

    def cut(value: Any) -> Any:
        return [cut(v) for v in value] if isinstance(value, list) else float(f"{value:.8g}")

    return cut(values.detach().double().tolist())


def _import_official(folder: Path) -> None:
    """Put the checkout first on the path, with empty stand-ins for leftovers of PIR that this model never calls."""
    if str(folder.resolve()) in sys.path:
        return
    sys.path.insert(0, str(folder.resolve()))
    leftovers = {
        "utils": ("read_json",),
        "models.swin_transformer": ("SwinTransformer", "interpolate_relative_pos_embed"),
        "models.vit": ("VisionTransformer", "interpolate_pos_embed"),
        "models.bert": ("BertModel", "BertConfig"),
        "models.resnet": ("resnet50", "resnet101"),
    }
    for name, members in leftovers.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member, None)
        sys.modules[name] = module


if __name__ == "__main__":
    main()
