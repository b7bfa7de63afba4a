"""Runs the authors' code of IEFT on filled weights and writes what it computes to ``tests/golden/ieft.json``.

    python scripts/golden/ieft.py --official FOLDER

FOLDER is a checkout of TangXu-Group/Cross-modal-remote-sensing-image-and-text-retrieval-models. Their code fixes 144
patches and the width 768; one run keeps both, one is made narrow by giving their classes a smaller width and patch. The
sampler that permutes the patches is given its permutations. Also written: plain ViLT, from their embeddings, blocks, pooler
and head, and the number of parameters that get a gradient at full size. Stand-ins replace what they import and this never
calls. Needs einops and timm.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "8475de09e7c6fb56350199b662ef476859cd3fa3"


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    official = parser.parse_args().official
    sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]
    torch.set_num_threads(1)
    from golden.ieft_weights import SIZES

    code = _import_official(official / "IEFT" / "IEFT")
    result: dict[str, Any] = {
        "source": {"TangXu-Group/Cross-modal-remote-sensing-image-and-text-retrieval-models": COMMIT},
        "runs": {name: _run(code, size, gradients=name == "narrow") for name, size in SIZES.items()},
        "counts": _counts(code),
    }
    target = ROOT / "tests" / "golden" / "ieft.json"
    target.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes, {result['counts']}")


def _run(code: Any, size: Mapping[str, Any], gradients: bool) -> dict[str, Any]:
    """Scores of all pairs, shuffled, in raster order and by plain ViLT; the loss of the shuffled form."""
    from golden import ieft_weights as given
    from pir import rounded, shapes_by_pattern

    model = _model(code, size["width"], size["patch"], given.VOCAB, given.LENGTH)
    shapes = {n: list(t.shape) for n, t in model.state_dict().items() if t.is_floating_point()}
    state = given.weights(shapes, size["scale"])
    model.load_state_dict({**{n: t for n, t in model.state_dict().items() if n not in state}, **state})
    images, (ids, mask) = given.pictures(size), given.captions(size)
    texts = {"text_ids": ids, "text_masks": mask.long(), "text_labels": ids}
    orders = list(given.orders(size["pictures"]))
    raster = [torch.arange(given.PATCHES)] * len(orders)
    with torch.no_grad():
        result = {
            "shuffled": rounded(_scores(model, images, texts, orders)),
            "raster": rounded(_scores(model, images, texts, raster)),
            "vanilla": rounded(_vanilla(model, images, texts, orders)),
        }
    with torch.set_grad_enabled(gradients):
        loss = _loss(code, model, images, texts, orders)
    result["loss"] = rounded(loss)
    if gradients:
        loss.backward()
        result["gradient_norms"] = {
            n: rounded(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None
        }
    # What never runs is of no use to whoever reads this.
    dead = r"local_net\.\d\.(norm1|attn|gata_tra)\..*|itm_score\..*"
    result["shapes"] = shapes_by_pattern({n: s for n, s in shapes.items() if not re.fullmatch(dead, n)})
    return result


def _counts(code: Any) -> dict[str, int]:
    """Parameters at full size: all, and those that the loss reaches."""
    model = _model(code, 768, 32, vocab=30522, length=40)
    texts = {k: torch.tensor([[1] * 40, [2] * 40]) for k in ("text_ids", "text_masks", "text_labels")}
    _loss(code, model, torch.ones(1, 3, 384, 384), texts, [torch.arange(144)]).backward()
    return {
        "held": sum(p.numel() for p in model.parameters()),
        "with_gradient": sum(p.numel() for p in model.parameters() if p.grad is not None),
    }


def _scores(model: Any, pictures: Tensor, texts: Mapping[str, Tensor], orders: list[Tensor]) -> Tensor:
    """(N, M) scores as their evaluation computes them: a picture is embedded once, and expanded over all captions."""
    rows = []
    with _sampler(orders):
        for picture in pictures:
            embeds, masks, _, _ = model.transformer.visual_embed(picture[None], max_image_len=-1)
            count = len(texts["text_ids"])
            found = model.infer(
                dict(texts), image_embeds=embeds.expand(count, -1, -1), image_masks=masks.expand(count, -1)
            )
            rows.append(model.rank_output(found["cls_feats"])[:, 0])
    return torch.stack(rows)


def _vanilla(model: Any, pictures: Tensor, texts: Mapping[str, Tensor], orders: list[Tensor]) -> Tensor:
    """(N, M) scores of all twelve blocks without enhancement."""
    rows = []
    with _sampler(orders):
        for picture in pictures:
            embeds, masks, _, _ = model.transformer.visual_embed(picture[None], max_image_len=-1)
            count = len(texts["text_ids"])
            image = (embeds + model.token_type_embeddings.weight[1]).expand(count, -1, -1)
            text = model.text_embeddings(texts["text_ids"]) + model.token_type_embeddings.weight[0]
            x, mask = torch.cat([text, image], 1), torch.cat([texts["text_masks"], masks.expand(count, -1)], 1)
            for block in model.transformer.blocks:
                x, _ = block(x, mask=mask)
            rows.append(model.rank_output(model.pooler(model.transformer.norm(x)))[:, 0])
    return torch.stack(rows)


def _loss(code: Any, model: Any, pictures: Tensor, texts: Mapping[str, Tensor], orders: list[Tensor]) -> Tensor:
    """Their ranking loss; captions stand picture by picture, the true one first, and a picture's copies share its order."""
    each = len(texts["text_ids"]) // len(pictures)
    grouped = {name: value.unflatten(0, (len(pictures), each)) for name, value in texts.items()}
    batch: dict[str, Any] = {"image": [pictures], **{name: value[:, 0] for name, value in grouped.items()}}
    for index in range(each - 1):
        for part in ("ids", "masks", "labels"):
            batch[f"false_text_{index}_{part}"] = grouped[f"text_{part}"][:, index + 1]
    model.hparams.config["draw_false_text"] = each - 1
    with _sampler([order for order in orders for _ in range(each)]):
        return code.objectives.compute_irtr(model, batch)["irtr_loss"]


@contextmanager
def _sampler(orders: list[Tensor]) -> Iterator[None]:
    """Within this block, their sampler takes its permutations from a list, one for each picture."""
    left = iter(orders)
    with mock.patch.object(torch, "multinomial", lambda *_: next(left)):
        yield
    assert next(left, None) is None


def _model(code: Any, width: int, patch: int, vocab: int, length: int) -> Any:
    """Their model, untrained, in evaluation mode."""
    vit, module = code.vision_transformer, code.vilt_module
    sized = {"img_size": 12 * patch, "patch_size": patch, "embed_dim": width, "depth": 12, "num_heads": 12}
    local_net = module.localTransformer
    config = {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_layers": 12,
        "num_heads": 12,
        "mlp_ratio": 4,
        "max_text_len": length,
        "drop_rate": 0.1,
        "load_path": "",
        "test_only": False,
        "vit": "sized",
        "max_image_len": -1,
        "loss_names": {"itm": 0.5, "irtr": 1, "mlm": 0, "mpp": 0, "vqa": 0, "nlvr2": 0},
    }
    with (
        mock.patch.object(
            vit, "sized", lambda pretrained, config: vit.VisionTransformer(**sized, config=config), create=True
        ),
        mock.patch.object(module, "localTransformer", lambda **options: local_net(**{**options, "dim": width})),
    ):
        return module.ViLTransformerSS(config).eval()


class _Lightning(nn.Module):
    """What their model uses of pytorch_lightning."""

    def save_hyperparameters(self) -> None:
        self.hparams = SimpleNamespace(config=sys._getframe(1).f_locals["config"])

    def log(self, name: str, value: Any) -> None:
        pass


class _Metric(nn.Module):
    """What their metrics use of pytorch_lightning: a loss passes through."""

    def __init__(self, **_: Any):
        super().__init__()

    def add_state(self, name: str, default: Tensor, **_: Any) -> None:
        setattr(self, name, default)

    def forward(self, *_: Any) -> None:
        pass


def _import_official(folder: Path) -> Any:
    """Their modules, imported with stand-ins for packages of their time, which are taken away again."""
    from timm import layers
    from transformers import optimization

    unused: Any = None
    stand_ins: dict[str, dict[str, Any]] = {
        "pytorch_lightning": {"LightningModule": _Lightning},
        "pytorch_lightning.metrics": {"Metric": _Metric},
        "timm.models.helpers": {"load_pretrained": unused},
        "timm.models.layers": {
            n: getattr(layers, n) for n in ("StdConv2dSame", "DropPath", "to_2tuple", "trunc_normal_")
        },
        "timm.models.resnet": {"resnet26d": unused, "resnet50d": unused},
        "timm.models.resnetv2": {"ResNetV2": unused},
        "timm.models.registry": {"register_model": lambda function: function},
        "transformers.optimization": {**vars(optimization), "AdamW": unused},
    }
    before = {name: sys.modules.pop(name) for name in stand_ins if name in sys.modules}
    for name, members in stand_ins.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(members)
    sys.path.insert(0, str(folder.resolve()))
    try:
        from IEFT.modules import objectives, vilt_module, vision_transformer
    finally:
        sys.path.remove(str(folder.resolve()))
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(before)
    return SimpleNamespace(objectives=objectives, vilt_module=vilt_module, vision_transformer=vision_transformer)


if __name__ == "__main__":
    main()
