"""PIR here against the authors' code: equal numbers, and the cost of a training step as a ratio, in one process.

Both hold the same weights (Swin-T, BERT-base, ResNet-50 prior: 184,642,492 parameters, 161,134,460 of them trained) and run
on the same batch in alternation, in training mode: forward, contrastive and affiliation loss, backward. Counted is the
processor time of the process. Ours runs three ways: with the prior computed in every step, with the prior's output from the
cache, as where no augmentation changes the pictures, and with only that and the towers, to see where the time goes.

    python benchmarks/pir_official.py --official FOLDER [--batch 8] [--length 24] [--rounds 7] [--threads 1]

FOLDER is a checkout of jaychempan/PIR. Random pictures, no decoding or augmentation on either side.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)

    script = runpy.run_path(str(ROOT / "scripts" / "golden" / "pir.py"))
    theirs = script["official_model"](asked.official, script["FULL_SWIN"], script["FULL_BERT"], 512)
    with torch.no_grad():  # else the softmax of their beliefs underflows, and tied tokens come in any order
        theirs.conv_proj.weight.mul_(0.01)
    images = torch.randn(asked.batch, 3, 224, 224)
    ids = torch.randint(1000, 30000, (asked.batch, asked.length))
    labels = torch.arange(asked.batch) % CLASSES
    method, model, batch = _ours(theirs, images, ids, labels)
    _print_differences(theirs, method, model, batch, labels)
    theirs.train()
    model.train()

    side = method.side_features(model, images)
    cached = replace(batch, image_side=side)
    runs: dict[str, tuple[Callable[[], Tensor], nn.Module]] = {
        "authors' code": (lambda: _their_loss(theirs, images, ids, labels), theirs),
        "petlbench": (lambda: _total(method.loss(model, batch)), model),
        "petlbench, cached prior": (lambda: _total(method.loss(model, cached)), model),
        "petlbench, towers alone": (lambda: _towers(method, model, batch), model),
    }
    names = list(runs)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for round_ in range(asked.rounds + 1):  # one round warms up
        for name in names if round_ % 2 else reversed(names):
            times = _step(*runs[name])
            if round_:
                spent[name].append(times)
    print(f"batch {asked.batch}, {asked.length} tokens, fp32, {asked.threads} threads, median of {asked.rounds} rounds")
    base = [of(t[1] for t in spent[names[0]]) for of in (statistics.median, min)]
    print(f"{'':<26}{'forward CPU s':>14}{'step CPU s':>12}{'authors / this':>16}{'of least':>10}")
    for name in names:
        forward, step = (statistics.median(t[part] for t in spent[name]) for part in (0, 1))
        least = min(t[1] for t in spent[name])
        print(f"{name:<26}{forward:>14.3f}{step:>12.3f}{base[0] / step:>16.3f}{base[1] / least:>10.3f}")


def _step(loss: Callable[[], Tensor], model: nn.Module) -> tuple[float, float]:
    """Processor seconds of the forward pass, and with the backward pass."""
    model.zero_grad(set_to_none=True)
    began = time.process_time()
    value = loss()
    forward = time.process_time() - began
    value.backward()
    spent = time.process_time() - began
    model.zero_grad(set_to_none=True)
    return forward, spent


def _their_loss(model: Any, images: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    image = model.get_vision_fusion_embeds(images, model.config)
    text = model.get_text_fusion_embeds(ids, model.config)
    rows = torch.arange(len(ids))
    return model.get_contr_loss(image, text, idx=rows) + model.get_affil_loss(image, text, label=labels)


def _ours(theirs: nn.Module, images: Tensor, ids: Tensor, labels: Tensor) -> tuple[Any, nn.Module, Any]:
    from petlbench.harness import audit
    from petlbench.methods.backbones.base import Tokens
    from petlbench.methods.backbones.registry import load_backbone
    from petlbench.methods.base import Batch
    from petlbench.methods.official import OfficialState, load_official
    from petlbench.methods.pir import PIR_TRAIN, Pir, PirConfig
    from petlbench.methods.recipe import LossConfig

    Pir.name = "pir"
    config = PirConfig(padding="seen", text_term="transposed", class_less="own_class")
    method = Pir(config, LossConfig(**PIR_TRAIN["loss"]))  # type: ignore[arg-type]
    backbone = load_backbone("swin-bert", pretrained="random")
    model = method.build(backbone)
    audit.freeze_all_but(model, method.trainable(model), "pir")
    state = OfficialState(theirs.state_dict())
    load_official(model, method.import_official(model, state), state, list(method.trainable(model)))
    rows = torch.arange(len(ids))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    return method, model, Batch(images, tokens, rows, rows, labels)


def _print_differences(theirs: Any, method: Any, model: nn.Module, batch: Any, labels: Tensor) -> None:
    theirs.eval()
    model.eval()
    with torch.no_grad():
        expected = [
            theirs.get_vision_fusion_embeds(batch.images, theirs.config),
            theirs.get_text_fusion_embeds(batch.tokens.ids, theirs.config),
        ]
        found = [nn.functional.normalize(e, dim=-1) for e in method.embed(model, batch)]
        expected += [
            theirs.get_contr_loss(*expected, idx=batch.image_ids),
            theirs.get_affil_loss(*expected, label=labels),
        ]
        found += list(method.loss(model, batch).values())
    for part, one, other in zip(("image", "text", "contrastive", "affiliation"), expected, found, strict=True):
        print(f"  {part:<12} differs by {float((one - other).abs().max() / one.abs().max()):.1e} of its largest value")


def _towers(method: Any, model: Any, batch: Any) -> Tensor:
    """Full fine-tuning without prior and heads."""
    pair = model.backbone.encode_image(batch.images), model.backbone.encode_text(batch.tokens)
    return _total(method.compare(model, batch, *pair))


def _total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


if __name__ == "__main__":
    sys.exit(main())
