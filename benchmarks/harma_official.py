"""HarMA here against the authors' code: equal numbers, and the cost of a training step as a ratio, in one process.

Both hold the same filled weights (CLIP ViT-B/32, 5,934,397 trained scalars) and step on the same batch in alternation:
forward of both towers, contrastive and triplet loss, backward, AdamW. Theirs runs with torch's AdamW, as the one that they
import is gone from transformers. Also timed here: the form as_described, whose captions are cut to the longest one.

    python benchmarks/harma_official.py --official FOLDER [--batch 8] [--rounds 7] [--threads 1]

FOLDER is a checkout of seekerhuang/HarMA. Random pictures, no decoding or augmentation on either side.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)

    theirs = _theirs(asked.official)
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    _forget_their_packages(asked.official)
    images, ids = torch.randn(asked.batch, 3, 224, 224), _captions(asked.batch)
    image_ids = torch.arange(asked.batch)
    runs = {"authors' code": _their_run(theirs, images, ids, image_ids)}
    for form in ("as_released", "as_described"):
        runs[f"petlbench, {form}"] = _our_run(form, state, images, ids, image_ids)

    names = list(runs)
    expected, found = runs[names[0]]["values"](), runs[names[1]]["values"]()
    print(f"ViT-B/32, batch {asked.batch}, fp32, {asked.threads} threads, median of {asked.rounds} rounds")
    for part, one, other in zip(("image", "text", "contrastive", "triplet"), expected, found, strict=True):
        print(f"  {part:<12} differs by {float((one - other).abs().max() / one.abs().max()):.1e} of its largest value")

    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for round_ in range(asked.rounds + 2):  # two rounds warm up
        for name in names if round_ % 2 else reversed(names):  # neither side always goes first
            times = _step(runs[name])
            if round_ >= 2:
                spent[name].append(times)
    base = [statistics.median(t[part] for t in spent[names[0]]) for part in (0, 1)]
    print(f"{'':<24}{'forward s':>11}{'step s':>11}{'ratio forward':>15}{'ratio step':>12}")
    for name in names:
        forward, step = (statistics.median(t[part] for t in spent[name]) for part in (0, 1))
        print(f"{name:<24}{forward:>11.3f}{step:>11.3f}{forward / base[0]:>15.3f}{step / base[1]:>12.3f}")


def _step(run: dict[str, Any]) -> tuple[float, float]:
    """Seconds of the forward pass and of the whole step."""
    began = time.perf_counter()
    loss = run["loss"]()
    forward = time.perf_counter() - began
    run["optimizer"].zero_grad(set_to_none=True)
    loss.backward()
    run["optimizer"].step()
    return forward, time.perf_counter() - began


def _theirs(folder: Path) -> nn.Module:
    script = runpy.run_path(str(ROOT / "scripts" / "golden" / "harma.py"))
    model = script["official_model"](folder, *script["VIT_B_32"], quick_gelu=False)
    script["set_trainable"](folder)(model)
    with torch.no_grad():
        for parameter in model.parameters():  # zero-initialised maps would hide most of the adapters
            if parameter.requires_grad and parameter.ndim == 2:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def _forget_their_packages(folder: Path) -> None:
    """Their copy of open_clip must not stand in for the installed one; the model itself needs no import any more."""
    sys.path.remove(str(folder.resolve()))
    for name in [n for n in sys.modules if n.partition(".")[0] in ("open_clip", "models", "utils")]:
        del sys.modules[name]


def _captions(batch: int) -> Tensor:
    """(batch, 77) ids of 8 to 22 words, padded with 0."""
    ids = torch.zeros(batch, 77, dtype=torch.int64)
    for row in range(batch):
        length = 8 + 2 * row % 16
        ids[row, 0], ids[row, length + 1] = 49406, 49407
        ids[row, 1 : length + 1] = torch.randint(300, 40000, (length,))
    return ids


def _optimizer(groups: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=4e-4, betas=(0.9, 0.98), weight_decay=0.04, **options)


def _their_run(model: Any, images: Tensor, ids: Tensor, image_ids: Tensor) -> dict[str, Any]:
    def values() -> list[Tensor]:
        with torch.no_grad():
            return [model.get_vis_emb(images), model.get_txt_emb(ids), *model(images, ids, idx=image_ids)[:2]]

    def loss() -> Tensor:
        contrastive, triplet, _ = model(images, ids, idx=image_ids)
        return contrastive + triplet

    return {
        "values": values,
        "loss": loss,
        "optimizer": _optimizer([p for p in model.parameters() if p.requires_grad]),
    }


def _our_run(
    form: str, state: dict[str, Tensor], images: Tensor, ids: Tensor, image_ids: Tensor
) -> dict[str, Callable[[], Any] | Any]:
    from petlbench.harness import audit
    from petlbench.methods.backbones.base import Tokens
    from petlbench.methods.backbones.registry import load_backbone
    from petlbench.methods.base import Batch
    from petlbench.methods.harma import Harma, HarmaConfig
    from petlbench.methods.official import OfficialState, load_official
    from petlbench.methods.recipe import LossConfig

    Harma.name = "harma"
    method = Harma(HarmaConfig(form=form), LossConfig(**Harma.presets["paper"].train["loss"]))  # type: ignore[arg-type]
    backbone = load_backbone("ViT-B-32", pretrained="random")
    model = method.build(backbone)
    audit.freeze_all_but(model, method.trainable(model), "harma")
    if form == "as_released":
        official = OfficialState(state)
        load_official(model, method.import_official(model, official), official, list(method.trainable(model)))
    tokens = Tokens(ids, torch.arange(77) <= ids.argmax(1, keepdim=True))
    batch = Batch(images, tokens.trimmed() if backbone.trims_text else tokens, image_ids, torch.arange(len(ids)))

    def values() -> list[Tensor]:
        with torch.no_grad():
            embeddings = [nn.functional.normalize(e, dim=-1) for e in method.embed(model, batch)]
            return [*embeddings, *method.loss(model, batch).values()]

    return {
        "values": values,
        "loss": lambda: torch.stack(list(method.loss(model, batch).values())).sum(),
        "optimizer": _optimizer([p for p in model.parameters() if p.requires_grad], fused=True),
    }


if __name__ == "__main__":
    main()
