"""PIR-CLIP here against the authors' code: equal numbers, and the cost of a training step as a ratio, in one process.

Both hold the same weights (CLIP ViT-B/32 and the ResNet-50 prior, 188,939,105 parameters, all trained) and run on the same
batch in alternation: forward of both towers, contrastive and affiliation loss, backward. Counted is the processor time of
the process. Theirs runs in evaluation mode, in which its batch norms use their stored statistics as ours always do. Also
timed here: ``fixed``, and ``as_described``, where prior and text tower are frozen, with the prior computed in every step and
with its output kept.

    python benchmarks/pir_clip_official.py --official FOLDER [--batch 8] [--rounds 7] [--threads 1]

FOLDER is a checkout of jaychempan/PIR-CLIP. Random pictures, no decoding or augmentation on either side.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 4


@dataclass(frozen=True)
class Run:
    """One side: its loss, its embeddings and loss terms for comparison, and what is trained."""

    loss: Callable[[], Tensor]
    values: Callable[[], list[Tensor]]
    model: nn.Module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)

    images, ids = torch.randn(asked.batch, 3, 224, 224), _captions(asked.batch)
    labels = torch.arange(asked.batch) % CLASSES
    runs = {"authors' code": _theirs(asked.official, images, ids, labels)}
    state = {name: tensor.clone() for name, tensor in runs["authors' code"].model.state_dict().items()}
    _forget_their_packages(asked.official)
    runs["petlbench, as_released"] = _ours("as_released", state, images, ids, labels)
    runs["petlbench, fixed"] = _ours("fixed", None, images, ids, labels)
    runs["petlbench, as_described"] = _ours("as_described", None, images, ids, labels)
    runs["the same, kept prior"] = _ours("as_described", None, images, ids, labels, keep=True)

    names = list(runs)
    print(f"ViT-B/32, batch {asked.batch}, fp32, {asked.threads} threads, median of {asked.rounds} rounds")
    expected, found = runs[names[0]].values(), runs[names[1]].values()
    for part, one, other in zip(("image", "text", "contrastive", "affiliation"), expected, found, strict=True):
        print(f"  {part:<12} differs by {float((one - other).abs().max() / one.abs().max()):.1e} of its largest value")

    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for round_ in range(asked.rounds + 1):  # one round warms up
        for name in names if round_ % 2 else reversed(names):  # neither side always goes first
            times = _step(runs[name])
            if round_:
                spent[name].append(times)
    base = [statistics.median(t[part] for t in spent[names[0]]) for part in (0, 1)]
    print(f"{'processor time':<26}{'forward s':>11}{'step s':>11}{'ratio forward':>15}{'ratio step':>12}")
    for name in names:
        forward, step = (statistics.median(t[part] for t in spent[name]) for part in (0, 1))
        print(f"{name:<26}{forward:>11.3f}{step:>11.3f}{forward / base[0]:>15.3f}{step / base[1]:>12.3f}")


def _step(run: Run) -> tuple[float, float]:
    """Seconds of processor time of the forward pass, and with the backward pass."""
    run.model.zero_grad(set_to_none=True)
    began = time.process_time()
    loss = run.loss()
    forward = time.process_time() - began
    loss.backward()
    step = time.process_time() - began
    run.model.zero_grad(set_to_none=True)
    return forward, step


def _captions(batch: int) -> Tensor:
    """(batch, 77) ids of 8 to 22 words, padded with 0."""
    ids = torch.zeros(batch, 77, dtype=torch.int64)
    for row in range(batch):
        length = 8 + 2 * row % 16
        ids[row, 0], ids[row, length + 1] = 49406, 49407
        ids[row, 1 : length + 1] = torch.randint(300, 40000, (length,))
    return ids


def _theirs(folder: Path, images: Tensor, ids: Tensor, labels: Tensor) -> Run:
    script = runpy.run_path(str(ROOT / "scripts" / "golden" / "pir_clip.py"))
    model: Any = script["official_model"](folder, *script["released_sizes"](folder)).eval()
    losses = script["affiliation_loss"](folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bn3.weight"):  # they start at 0, which would hide most of the prior
                parameter.fill_(0.5)

    def terms() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        found = model(images, ids)
        pair = found["image_features"], found["text_features"]
        return found, losses(*pair, labels, found["logit_scale"], output_dict=True)

    def values() -> list[Tensor]:
        with torch.no_grad():
            found, parts = terms()
            return [found["image_features"], found["text_features"], *parts.values()]

    return Run(lambda: torch.stack(list(terms()[1].values())).sum(), values, model)


def _forget_their_packages(folder: Path) -> None:
    """Their copy of open_clip must not stand in for the installed one; the model itself needs no import any more."""
    sys.path.remove(str((folder / "src").resolve()))
    for name in [n for n in sys.modules if n.partition(".")[0] == "open_clip"]:
        del sys.modules[name]


def _ours(
    form: str, state: dict[str, Tensor] | None, images: Tensor, ids: Tensor, labels: Tensor, keep: bool = False
) -> Run:
    from petlbench.harness import audit
    from petlbench.methods.backbones.base import Tokens
    from petlbench.methods.backbones.registry import load_backbone
    from petlbench.methods.base import Batch
    from petlbench.methods.official import OfficialState, load_official
    from petlbench.methods.pir_clip import PirClip, PirClipConfig

    PirClip.name = "pir_clip"
    method = PirClip(PirClipConfig(form=form))  # type: ignore[arg-type]
    model = method.build(load_backbone("ViT-B-32", pretrained="random"))
    audit.freeze_all_but(model, method.trainable(model), "pir_clip")
    if state is not None:
        official = OfficialState(state)
        load_official(model, method.import_official(model, official), official, list(method.trainable(model)))
    rows = torch.arange(len(ids))
    tokens = Tokens(ids, torch.arange(ids.shape[1]) <= ids.argmax(1, keepdim=True)).trimmed()
    batch = Batch(images, tokens, rows, rows, labels)
    if keep:
        with torch.no_grad():
            batch = replace(batch, image_side=method.side_features(model, images))

    def values() -> list[Tensor]:
        with torch.no_grad():
            embeddings = [nn.functional.normalize(e, dim=-1) for e in method.embed(model, batch)]
            return [*embeddings, *method.loss(model, batch).values()]

    return Run(lambda: torch.stack(list(method.loss(model, batch).values())).sum(), values, model)


if __name__ == "__main__":
    main()
