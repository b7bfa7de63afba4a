"""How much faster counting ranks is than sorting every query, at the sizes of the usual test splits.

Run ``python benchmarks/evaluation.py`` (``--quick`` for small sizes). Both sides get the same embeddings of distinct
captions, and both times include normalisation and the matrix product. The reference sorts the whole score list of
every query, as the evaluation loops of PIR and HarMA do. The best of several interleaved repeats counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from petlbench.harness.metrics import KS, recalls
from petlbench.harness.ranks import rank_all

SIZES = {"RSITMD": 452, "RSICD": 1093, "NWPU": 3150}
QUICK = {"tiny": 64, "small": 256}
CAPTIONS = 5  # per image in all of these sets
WIDTH = 512


def embeddings(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random captions scattered round random images, noisy enough that recalls lie well between 0 and 100."""
    draw = torch.Generator().manual_seed(seed)
    image_emb = torch.randn(images, WIDTH, generator=draw)
    noise = torch.randn(images * CAPTIONS, WIDTH, generator=draw)
    return image_emb, image_emb.repeat_interleave(CAPTIONS, dim=0) + 10.0 * noise


def by_sorting(image_emb: Tensor, text_emb: Tensor) -> dict[str, float]:
    """Recalls from an argsort per query; captions ``5i .. 5i+4`` belong to image i."""
    scores = (normalize(image_emb, dim=1) @ normalize(text_emb, dim=1).T).numpy()
    place = np.empty(scores.shape[1], dtype=np.int64)
    image_ranks = np.empty(scores.shape[0], dtype=np.int64)
    for image, row in enumerate(scores):
        order = np.argsort(row)[::-1]
        place[order] = np.arange(len(order))
        image_ranks[image] = place[CAPTIONS * image : CAPTIONS * (image + 1)].min()
    caption_ranks = np.empty(scores.shape[1], dtype=np.int64)
    for caption, column in enumerate(scores.T):
        order = np.argsort(column)[::-1]
        caption_ranks[caption] = np.flatnonzero(order == caption // CAPTIONS)[0]
    found = {f"i2t_r{k}": 100.0 * float((image_ranks < k).mean()) for k in KS}
    found |= {f"t2i_r{k}": 100.0 * float((caption_ranks < k).mean()) for k in KS}
    return found | {"mR": sum(found.values()) / len(found)}


def by_counting(image_emb: Tensor, text_emb: Tensor, owner: NDArray[np.int64]) -> dict[str, float]:
    return recalls(rank_all(image_emb, text_emb, owner, np.arange(len(owner))))


def best_of(repeats: int, *sides: Callable[[], dict[str, float]]) -> list[tuple[float, dict[str, float]]]:
    """(seconds, result) per side; the sides take turns, so that a busy moment of the machine hits all of them."""
    results = [side() for side in sides]  # also the warm-up
    seconds = [float("inf")] * len(sides)
    for _ in range(repeats):
        for number, side in enumerate(sides):
            start = time.perf_counter()
            side()
            seconds[number] = min(seconds[number], time.perf_counter() - start)
    return list(zip(seconds, results, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, a second in all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    print(f"torch {torch.__version__}, {arguments.threads} threads, {WIDTH}-d, best of {arguments.repeats}")
    print(f"{'split':8}{'images x captions':>20}{'counting':>12}{'argsort':>12}{'ratio':>8}   recalls")
    differ = False
    for seed, (name, images) in enumerate((QUICK if arguments.quick else SIZES).items()):
        image_emb, text_emb = embeddings(images, seed)
        owner = np.arange(images * CAPTIONS) // CAPTIONS
        (ours, found), (theirs, expected) = best_of(
            arguments.repeats,
            lambda i=image_emb, t=text_emb, o=owner: by_counting(i, t, o),  # type: ignore[misc]
            lambda i=image_emb, t=text_emb: by_sorting(i, t),  # type: ignore[misc]
        )
        equal = all(abs(found[key] - expected[key]) < 1e-9 for key in expected)
        differ |= not equal
        size = f"{images} x {images * CAPTIONS}"
        verdict = f"equal, mR {found['mR']:.2f}" if equal else f"DIFFER: {found} against {expected}"
        print(f"{name:8}{size:>20}{ours * 1e3:>9.1f} ms{theirs * 1e3:>9.1f} ms{theirs / ours:>7.1f}x   {verdict}")
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
