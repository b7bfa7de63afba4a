"""Run the missing-aware prompts' own code on small filled weights and write tests/golden/vilt_prompt.json.

Usage: ``python scripts/golden/vilt_prompt.py --official FOLDER``, a checkout of YiLunLee/missing_aware_prompts at COMMIT.
Its ViLT with prompts is built in small, filled, and asked for the pooled states of pairs of which nothing is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "9aa538159f4623de1936d25daee880ec47c062be"
SEED, SCALE = 27, 0.15
SIZES = {
    "image_size": 48,
    "patch_size": 16,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,  # a constant in the code of its attention prompts
    "intermediate_size": 96,
    "vocab_size": 64,
    "max_position_embeddings": 8,
}
TOKENS, LAYERS, LENGTHS = 4, 2, (8, 5, 3)


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    sys.path[:0] = [str(p.resolve()) for p in (ROOT / "tests", parser.parse_args().official)]
    _stand_in()
    from golden.fill import filled, inputs, integers

    torch.set_num_threads(1)
    rows, side = len(LENGTHS), SIZES["image_size"]
    ids = integers((rows, SIZES["max_position_embeddings"]), SIZES["vocab_size"], SEED)
    mask = torch.arange(SIZES["max_position_embeddings"]) < torch.tensor(LENGTHS)[:, None]
    batch = {
        "image": [inputs((rows, 3, side, side), SEED)],
        "text_ids": ids,
        "text_labels": ids,
        "text_masks": mask.long(),
        "missing_type": [0] * rows,
    }
    cases = {}
    for kind in ("input", "attention"):
        with redirect_stdout(StringIO()):  # it prints its prompts
            model = _model(kind)
        start = model.complete_prompt.detach().clone()
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if "position_ids" not in name}
        state = {
            n: 1 + t if "norm" in n.lower() and "weight" in n else t for n, t in filled(shapes, SEED, SCALE).items()
        }
        model.load_state_dict(state, strict=False)
        torch.manual_seed(0)  # it permutes the patches
        with torch.no_grad():
            pooled = model.infer(batch)["cls_feats"]
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        cases[kind] = {
            "shapes": shapes,
            "pooled": [[round(v, 7) for v in row] for row in pooled.tolist()],
            "ones": [[i, j] for i, j in torch.argwhere(start[:, :, 0] == 1).tolist()],
            "start_sum": float(start.sum()),
            "trained": trained,
        }
    result = {
        "source": {"YiLunLee/missing_aware_prompts": COMMIT},
        "seed": SEED,
        "scale": SCALE,
        "sizes": SIZES,
        "tokens": TOKENS,
        "layers": LAYERS,
        "lengths": LENGTHS,
        "ids": ids.tolist(),
        "cases": cases,
    }
    target = ROOT / "tests" / "golden" / "vilt_prompt.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes")


def _model(kind: str) -> Any:
    """Its ViLT with prompts of one type, in evaluation mode."""
    from vilt.modules import vision_transformer_prompts as vit
    from vilt.modules.vilt_missing_aware_prompt_module import ViLTransformerSS

    vit.small = lambda pretrained, config: vit.VisionTransformer(
        img_size=SIZES["image_size"],
        patch_size=SIZES["patch_size"],
        embed_dim=SIZES["hidden_size"],
        depth=SIZES["num_hidden_layers"],
        num_heads=SIZES["num_attention_heads"],
        mlp_ratio=SIZES["intermediate_size"] / SIZES["hidden_size"],
        config=config,
    )
    return ViLTransformerSS(
        {
            "vocab_size": SIZES["vocab_size"],
            "hidden_size": SIZES["hidden_size"],
            "num_layers": SIZES["num_hidden_layers"],
            "num_heads": SIZES["num_attention_heads"],
            "mlp_ratio": SIZES["intermediate_size"] // SIZES["hidden_size"],
            "max_text_len": SIZES["max_position_embeddings"],
            "max_image_len": -1,
            "drop_rate": 0.0,
            "vit": "small",
            "load_path": "",
            "finetune_first": False,
            "test_only": False,
            "loss_names": dict.fromkeys(("mlm", "itm", "mpp", "hatememes", "food101", "mmimdb"), 0),
            "prompt_type": kind,
            "prompt_length": TOKENS,
            "learnt_p": True,
            "prompt_layers": list(range(LAYERS)),
            "multi_layer_prompt": True,
        }
    ).eval()


def _stand_in() -> None:
    """Small modules for what its imports name and the forward pass does not use."""

    class LightningModule(nn.Module):
        """Holds the configuration, as ``save_hyperparameters`` does."""

        def save_hyperparameters(self) -> None:
            """Take it from the caller, the constructor."""
            self.hparams = SimpleNamespace(config=sys._getframe(1).f_locals["config"])

    lightning = ModuleType("pytorch_lightning")
    lightning.LightningModule = LightningModule  # type: ignore[attr-defined]
    sys.modules["pytorch_lightning"] = lightning
    objectives = ModuleType("vilt.modules.objectives")
    objectives.init_weights = lambda module: None  # type: ignore[attr-defined]
    utils = ModuleType("vilt.modules.vilt_utils")
    utils.set_metrics = lambda module: None  # type: ignore[attr-defined]
    sys.modules |= {"vilt.modules.objectives": objectives, "vilt.modules.vilt_utils": utils}


if __name__ == "__main__":
    main()
