"""Train tiny-clip, the shipped backbone, on the `pretrain` world of the synthetic scenes.

    python scripts/pretrain_tiny_clip.py
    python scripts/pretrain_tiny_clip.py --pictures 500 --epochs 1 --output try.safetensors

Takes about 12 minutes on one core. The benchmarked `scenes` set has no part in it: `pretrain` has other colours, lighting
and noise, and ten of the classes never occur there as such. Nothing is selected; the test split is evaluated once, at
the end. The same arguments on the same kind of machine give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from petlbench.datasets.augment import Augmentation, augment, normalise
from petlbench.datasets.preprocess import prepare_picture
from petlbench.datasets.scenes.captions import captions
from petlbench.datasets.scenes.generator import describe, draw
from petlbench.datasets.scenes.model import GENERATOR_VERSION
from petlbench.datasets.scenes.worlds import PRETRAIN
from petlbench.methods.backbones import tiny_clip
from petlbench.methods.backbones.base import DualEncoder, Hidden, Tokens
from petlbench.methods.backbones.registry import load_backbone
from petlbench.methods.backbones.tokenizers import cut_clip_tokenizer, end_padded
from petlbench.methods.losses import infonce, same_pair

CHUNK = 64
LARGEST_SCALE = math.log(100.0)  # as CLIP: keeps the temperature from collapsing
JITTER = Augmentation(brightness=0.3, contrast=0.3, saturation=0.3)  # captions tell places: no flips, no crops


@dataclass(frozen=True)
class Corpus:
    """N pictures with five captions each.

    Attributes:
        pictures: (N, 3, R, R) uint8.
        tokens: Tokens of the distinct captions.
        text_ids: (N, 5) rows of ``tokens``.
    """

    pictures: Tensor
    tokens: Tokens
    text_ids: Tensor


def render_chunk(seed: int, start: int, stop: int) -> tuple[NDArray[np.uint8], list[tuple[str, ...]]]:
    """Pictures ``start`` to ``stop`` at tiny-clip's resolution, prepared as in the benchmark, and their captions."""
    scenes = [describe(PRETRAIN, seed, index) for index in range(start, stop)]
    pictures = np.stack([prepare_picture(draw(scene), tiny_clip.RESOLUTION) for scene in scenes])
    return pictures, [captions(scene) for scene in scenes]


def make_corpus(count: int, seed: int, workers: int) -> Corpus:
    """Render in parallel and tokenise every distinct caption once."""
    starts = range(0, count, CHUNK)
    stops = [min(start + CHUNK, count) for start in starts]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(render_chunk, [seed] * len(stops), starts, stops))
    pictures = torch.from_numpy(np.concatenate([part[0] for part in parts])).permute(0, 3, 1, 2).contiguous()
    texts = [five for part in parts for five in part[1]]
    index: dict[str, int] = {}
    text_ids = torch.tensor([[index.setdefault(text, len(index)) for text in five] for five in texts])
    tokenizer = cut_clip_tokenizer(tiny_clip.VOCAB_SIZE, tiny_clip.CONTEXT_LENGTH)
    return Corpus(pictures, end_padded(tokenizer(list(index))), text_ids)


def batches(corpus: Corpus, size: int, chance: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """(picture rows, text rows) of one epoch: every picture once, with one of its captions."""
    order = torch.randperm(len(corpus.pictures), generator=chance)
    which = torch.randint(corpus.text_ids.shape[1], (len(order),), generator=chance)
    for rows in order[: len(order) // size * size].split(size):
        yield rows, corpus.text_ids[rows, which[rows]]


def drop_patches(hidden: Hidden, keep: float, chance: torch.Generator) -> Hidden:
    """Keep the class token and a random share of the patches (Li et al., FLIP, CVPR 2023), to save time."""
    batch, length, width = hidden.x.shape
    kept = torch.rand(batch, length - 1, generator=chance).argsort(1)[:, : round(keep * (length - 1))] + 1
    index = torch.cat([torch.zeros(batch, 1, dtype=torch.int64), kept], 1)
    return hidden.with_x(hidden.x.gather(1, index[:, :, None].expand(-1, -1, width)))


def train(corpus: Corpus, encoder: DualEncoder, options: argparse.Namespace) -> float:
    """InfoNCE with AdamW, warm-up and cosine; patches are dropped except in the last epoch.

    Returns:
        Mean loss of the last hundred steps.
    """
    chance = torch.Generator().manual_seed(options.seed)
    mean, std = encoder.provenance.mean, encoder.provenance.std
    decayed = [p for p in encoder.parameters() if p.ndim > 1]
    others = [p for p in encoder.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, options.lr, betas=(0.9, 0.98), fused=True)
    steps = options.epochs * (len(corpus.pictures) // options.batch)
    warmup = max(1, steps // 20)

    def factor(step: int) -> float:
        return min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    encoder.train()
    started, losses = time.monotonic(), []
    for epoch in range(options.epochs):
        keep = 1.0 if epoch == options.epochs - 1 else options.keep
        for rows, texts in batches(corpus, options.batch, chance):
            pixels = normalise(augment(corpus.pictures[rows], JITTER, chance), mean, std)
            # The fused attention is slower than plain products at these lengths, above all backward.
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                hidden = encoder.image.embed(pixels)
                if keep < 1:
                    hidden = drop_patches(hidden, keep, chance)
                image = encoder.project_image(encoder.image.pool(encoder.image.run(hidden)))
                text = encoder.encode_text(corpus.tokens[texts].trimmed())
            logits = encoder.logit_scale.exp() * F.normalize(image.float()) @ F.normalize(text.float()).T
            loss = infonce(logits, same_pair(rows, texts))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            encoder.logit_scale.data.clamp_(max=LARGEST_SCALE)
            losses.append(loss.item())
            if len(losses) % 50 == 0:
                rate = len(losses) * options.batch / (time.monotonic() - started)
                line = f"step {len(losses)}/{steps}  loss {sum(losses[-50:]) / 50:.3f}  {rate:.0f} pictures/s"
                print(line, file=sys.stderr, flush=True)
    encoder.eval()
    return sum(losses[-100:]) / len(losses[-100:])


def zero_shot(path: Path) -> dict[str, float]:
    """Recalls in percent on the test split of `scenes`, with the weights as they are shipped."""
    from petlbench.datasets.load import load
    from petlbench.harness import evaluate, metrics
    from petlbench.harness.data import SplitData
    from petlbench.methods.zero_shot import ZeroShot

    backbone = load_backbone("tiny-clip", weights=path)
    data = SplitData.open(load("scenes")["test"], backbone)
    ranks = evaluate.evaluate(ZeroShot(), backbone, backbone, data, "fp32", torch.device("cpu")).ranks
    return metrics.recalls(ranks)


def main() -> None:
    """Render, train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=tiny_clip.WEIGHTS, help="safetensors file to write")
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--keep", type=float, default=0.5, help="share of patches kept in training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--threads", type=int, default=1, help="threads that train; the weights depend on it")
    options = parser.parse_args()
    if options.pictures < options.batch:
        parser.error(f"--pictures {options.pictures} is less than one batch of {options.batch}")

    torch.set_num_threads(options.threads)
    started = time.monotonic()
    corpus = make_corpus(options.pictures, options.seed, options.workers)
    rendered = time.monotonic() - started
    encoder = tiny_clip.untrained_tiny_clip(options.seed)
    loss = train(corpus, encoder, options)
    trained = time.monotonic() - started - rendered

    recipe = {key: value for key, value in vars(options).items() if key not in ("output", "workers")}
    state = {key: value.half() for key, value in encoder.clip.state_dict().items()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, options.output, {"recipe": json.dumps(recipe), "generator_version": str(GENERATOR_VERSION)})
    options.output.chmod(0o644)  # it is installed for every user
    report = {"recipe": recipe, "loss": loss, "seconds_rendering": rendered, "seconds_training": trained}
    print(json.dumps({**report, "scenes_test_zero_shot": zero_shot(options.output)}, indent=2))


if __name__ == "__main__":
    main()
