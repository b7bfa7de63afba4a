"""Scoring every pair of a split: one forward per pair as usual, against petlbench with the same weights, in one process.

The usual way is that of ViLT's and IEFT's evaluation: transformers' ``ViltForImageAndTextRetrieval`` gets the pixels and one
caption padded to 40 tokens, for every caption slot. Each further row adds one saving, all of them exact: distinct strings
only, captions at their own length, blocks of pairs, the picture embedded once, the last block for the
pooled token only, and packed weights and fused attention, which is ``score_all``. The last rows are ``score_all``
under bf16, and the fusion head of ``clip_fusion`` at the shapes of ViT-B/32. Random weights: cost does not depend on them.

    python benchmarks/pair_scoring.py [--resolution 384] [--pictures 8] [--rounds 2] [--threads 1] [--json FILE] [--tiny]

Lengths and repetition are those of RSICD's test captions: 11.5 words on average, 1.64 slots to a string. Rows take turns, so
that a busy moment hits all; counted is processor time of the process, the median over rounds. ``pairs/s`` counts caption
slots, since the usual way must score each; ``ms/pair`` is per pair that is scored. Exits with 1 where scores differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from petlbench.datasets.readers.scenes import read_scenes
from petlbench.datasets.split import Split
from petlbench.harness import pair_scores
from petlbench.harness.data import SplitData, normalised
from petlbench.harness.device import choose_device, device_name, tune_process
from petlbench.harness.metrics import KS, Ranks, recalls
from petlbench.harness.ranks import rank_scores
from petlbench.methods import registry
from petlbench.methods.backbones.random_models import random_clip, random_vilt
from petlbench.methods.backbones.registry import load_backbone

TOLERANCE = 1e-4
CPU = torch.device("cpu")
STRINGS, SLOTS = 14, 23
"""1.643 slots to a string; RSICD's test split has 5,465 slots and 3,331 strings, 1.641."""
WORDS = (11.5, 3.5)
"""Mean and deviation of a caption's words; the mean is RSICD's, the deviation a guess."""
SENTENCE = (
    "many planes are parked next to a long building in an airport near green trees and some white cars on the road"
)


@dataclass
class Row:
    """One way of scoring: what it adds, how to run it, and how many pairs a run scores."""

    name: str
    run: Callable[[], Tensor]
    pairs: int
    per_string: bool = True
    """False where every slot is scored."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=384)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true", help="random models of width 32, to try the script")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    tune_process(CPU)
    torch.manual_seed(0)

    vilt: Any = random_vilt(context_length=40) if asked.tiny else _vilt_b32(asked.resolution)
    data = split_of(vilt, asked.pictures)
    rows, bench = vilt_rows(vilt, data)
    fusion = fusion_bench(asked.tiny)
    pairs = len(fusion[3].split.images) * len(fusion[3].tokens)
    rows.append(Row("clip_fusion, width 256 x 2", lambda: _all(fusion, "fp32"), pairs))
    rows.append(Row("clip_fusion under bf16", lambda: _all(fusion, "bf16"), pairs))
    seconds, results = in_turns(rows, asked.rounds)

    words = statistics.mean(len(text.split()) for text in data.split.distinct)
    print(f"{vilt.provenance.architecture} at {vilt.resolution} px, {asked.pictures} pictures x {SLOTS} caption slots")
    print(
        f"({STRINGS} distinct strings, {words:.1f} words on average), {asked.threads} threads, {device_name(choose_device())},"
    )
    print(f"torch {torch.__version__}, processor time, median of {asked.rounds} rounds")
    print(f"{'':<34}{'ms/pair':>10}{'pairs/s':>10}{'per pair':>10}{'in all':>8}")
    report: dict[str, Any] = {"rows": {}, "rounds": asked.rounds, "threads": asked.threads, "torch": torch.__version__}
    plain = seconds[0] / rows[0].pairs
    for row, spent in zip(rows, seconds, strict=True):
        each = spent / row.pairs
        slots = SLOTS / STRINGS if row.per_string else 1.0
        line = {"ms_per_pair": 1e3 * each, "pairs_per_s": slots / each, "per_pair": plain / each}
        report["rows"][row.name] = line | {"in_all": slots * plain / each}
        print(
            f"{row.name:<34}{1e3 * each:>10.2f}{slots / each:>10.2f}{plain / each:>9.2f}x{slots * plain / each:>7.2f}x"
        )

    expected = results[0]
    worst = 0.0
    for row, found in zip(rows, results, strict=True):
        if row.name.startswith("+"):
            worst = max(worst, float((found.flatten()[: len(expected)] - expected).abs().max()))
    report["largest_difference"] = worst
    spread = float(expected.std())
    print(
        f"scores of the exact rows differ by {worst:.1e} at most (allowed {TOLERANCE:.0e}; they spread by {spread:.1e})"
    )
    report["bf16"] = {"random weights": bf16_effect(bench)}
    if not asked.tiny:
        report["bf16"]["tiny-vilt, trained"] = bf16_effect(trained_bench())
    for name, effect in report["bf16"].items():
        print(f"bf16 on {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in effect.items()))
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(worst > TOLERANCE)


def vilt_rows(vilt: Any, data: SplitData) -> tuple[list[Row], tuple[Any, ...]]:
    """The ways of scoring with a ViLT, the usual one first, and what score_all takes.

    The usual way is timed on the first picture: its cost does not depend on the picture or the caption.
    """
    from transformers import ViltForImageAndTextRetrieval

    theirs = ViltForImageAndTextRetrieval(vilt.vilt.config).eval()
    theirs.vilt, theirs.rank_output = vilt.vilt, vilt.rank_output
    cls = registry.load(registry.discover()["vilt_full"])
    method = cls(cls.Config())
    bench = (method, method.build(vilt).eval(), vilt, data)
    images = normalised(data.images.gather(range(len(data.split.images))), vilt)
    tokens, whole = data.tokens, len(images) * len(data.tokens)

    def per_pair(trimmed: bool) -> Tensor:
        found = []
        for text in range(len(tokens)):
            one = tokens[[text]].trimmed() if trimmed else tokens[[text]]
            with torch.inference_mode():
                scores = theirs(pixel_values=images[:1], input_ids=one.ids, attention_mask=one.mask.long()).logits
            found.append(scores.flatten())
        return torch.cat(found)

    def blocks(cached: bool, last_block: bool) -> Tensor:
        scores = torch.empty(len(images), len(tokens))
        with torch.inference_mode():
            pictures = vilt.embed_image(images) if cached else None
            for ids in pair_scores.length_groups(tokens, True):
                words = vilt.embed_text(tokens[ids].trimmed())
                pairs = torch.cartesian_prod(torch.arange(len(images)), torch.arange(len(ids)))
                for block in pairs.split(8):
                    image, text = block.unbind(1)
                    patches = vilt.embed_image(images[image]) if pictures is None else pictures[image]
                    hidden = vilt.join(words[text], None, patches)
                    hidden = vilt.joint.run(hidden) if last_block else vilt.joint.run_pooled(hidden)
                    scores[image, ids[text]] = vilt.head(hidden)
        return scores

    rows = [
        Row("one forward per pair and slot", lambda: per_pair(False), len(tokens), per_string=False),
        Row("+ distinct strings only", lambda: per_pair(False), len(tokens)),
        Row("+ captions at their own length", lambda: per_pair(True), len(tokens)),
        Row("+ blocks of 8 pairs", lambda: blocks(False, True), whole),
        Row("+ pictures embedded once", lambda: blocks(True, True), whole),
        Row("+ last block for one token", lambda: blocks(True, False), whole),
        Row("+ fast kernels = score_all", lambda: _all(bench, "fp32"), whole),
        Row("score_all under bf16", lambda: _all(bench, "bf16"), whole),
    ]
    return rows, bench


def in_turns(rows: list[Row], rounds: int) -> tuple[list[float], list[Tensor]]:
    """Median processor seconds and the result of every row; the second row runs the first one's code, so takes its time."""
    spent: list[list[float]] = [[] for _ in rows]
    results: list[Tensor] = [torch.empty(0)] * len(rows)
    for _ in range(rounds):
        for number, row in enumerate(rows):
            if number == 1:
                continue
            began = time.process_time()
            results[number] = row.run()
            spent[number].append(time.process_time() - began)
    spent[1], results[1] = spent[0], results[0]
    return [statistics.median(times) for times in spent], results


def split_of(backbone: Any, pictures: int, strings: int = STRINGS, slots: int = SLOTS) -> SplitData:
    """Random pictures, and captions whose words are spread evenly over the quantiles of the lengths."""
    rng = np.random.default_rng(0)
    quantiles = [statistics.NormalDist(*WORDS).inv_cdf((i + 0.5) / strings) for i in range(strings)]
    texts = [" ".join(rng.choice(SENTENCE.split(), max(3, round(n)))) for n in rng.permutation(quantiles)]
    texts += [texts[i] for i in rng.integers(0, strings, slots - strings)]
    array = torch.randint(0, 256, (pictures, 3, backbone.resolution, backbone.resolution), dtype=torch.uint8)
    names: Any = tuple(SimpleNamespace(name=str(i)) for i in range(pictures))
    split = Split("test", names, tuple(texts), np.arange(slots) % pictures)
    images: Any = SimpleNamespace(gather=lambda rows: array[list(rows)])
    return SplitData(split, images, backbone.tokenize(split.distinct))


class RandomStates:
    """Kept states of the shapes of a dual encoder's tokens, without running it."""

    def __init__(self, backbone: Any, data: SplitData):
        with torch.inference_mode():
            patches = backbone.image.embed(torch.zeros(1, 3, backbone.resolution, backbone.resolution)).x.shape[1]
        self.mask, count = data.tokens.mask, len(data.split.images)
        self.image = {
            "tokens": torch.randn(count, patches, backbone.image.width),
            "pooled": torch.randn(count, backbone.image.pooled_width),
        }
        self.text = {
            "tokens": torch.randn(*self.mask.shape, backbone.text.width),
            "pooled": torch.randn(len(self.mask), backbone.text.pooled_width),
        }

    def images(self, rows: Tensor) -> dict[str, Tensor]:
        """States of (B,) pictures."""
        return {name: value[rows] for name, value in self.image.items()}

    def texts(self, ids: Tensor) -> dict[str, Tensor]:
        """States of (B,) captions, cut to the longest of them."""
        mask = self.mask[ids, : int(self.mask[ids].sum(1).max())]
        return {"tokens": self.text["tokens"][ids, : mask.shape[1]], "pooled": self.text["pooled"][ids], "mask": mask}


def fusion_bench(tiny: bool) -> tuple[Any, ...]:
    """Method, model, backbone, split and kept states of a fusion head whose output is not zero."""
    backbone: Any = random_clip() if tiny else load_backbone("ViT-B-32", pretrained="random")
    cls = registry.load(registry.discover()["clip_fusion"])
    method: Any = cls(cls.Config())
    model = method.build(backbone).eval()
    nn.init.normal_(model.head.rank_output.weight)
    size = 8 if tiny else 48
    data = split_of(backbone, size, size, size + 1)
    return method, model, backbone, data, RandomStates(backbone, data)


def trained_bench() -> tuple[Any, ...]:
    """The shipped ViLT, zero-shot on rendered scenes: scores that mean something, to see what bf16 does to their order."""
    backbone: Any = load_backbone("tiny-vilt")
    cls = registry.load(registry.discover()["vilt_full"])
    method = cls(cls.Config())
    split = read_scenes({"train": 30, "val": 30, "test": 60})["test"]
    return method, method.build(backbone).eval(), backbone, SplitData.open(split, backbone, workers=1)


def bf16_effect(bench: tuple[Any, ...]) -> dict[str, float]:
    """What bf16 changes in the ranks of a split: shares in percent, recalls in points."""
    split = bench[3].split
    found = [_all(bench, precision) for precision in ("fp32", "bf16")]
    full, half = (rank_scores(scores, split.owner, split.text_ids, columns="strings") for scores in found)
    pairs = [(getattr(full, f"{way}_index"), getattr(half, f"{way}_index")) for way in ("i2t", "t2i")]
    before, after = recalls(full), recalls(half)
    return {
        "changed ranks %": 100 * float(np.mean(np.concatenate([a != b for a, b in pairs]))),
        "largest change of a rank": float(max(np.abs(a - b).max() for a, b in pairs)),
        **{
            f"largest change of R@{k}": max(abs(before[f"{way}_r{k}"] - after[f"{way}_r{k}"]) for way in ("i2t", "t2i"))
            for k in KS
        },
        "change of mR": after["mR"] - before["mR"],
        "tied queries % (fp32)": 100 * _tied(full),
        "tied queries %": 100 * _tied(half),
    }


def _tied(ranks: Ranks) -> float:
    return float(np.mean(np.concatenate([ranks.i2t_tied, ranks.t2i_tied]) > 0))


def _all(bench: tuple[Any, ...], precision: str) -> Tensor:
    method, model, backbone, data, *kept = bench
    return pair_scores.score_all(method, model, backbone, data, precision, CPU, kept=kept[0] if kept else None)


def _vilt_b32(resolution: int) -> Any:
    return load_backbone("vilt-b32", pretrained="random", resolution=resolution)


if __name__ == "__main__":
    sys.exit(main())
