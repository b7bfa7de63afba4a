"""Stand-ins for the tests of pair scoring: pictures in memory, and a small cross encoder on states that can be kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from petlbench.datasets.split import Split
from petlbench.harness.data import SplitData, normalised
from petlbench.harness.pair_scores import score_all
from petlbench.methods.backbones.base import Provenance, Tokens
from petlbench.methods.backbones.tokenizers import HashingTokenizer
from petlbench.methods.pair import PairMethod


class Pictures:
    """What SplitData needs of a picture cache."""

    def __init__(self, count: int, side: int):
        draw = torch.Generator().manual_seed(count)
        self.array = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draw)
        self.manifest = {"key": f"{count} random pictures of {side}"}
        self.asked: list[int] = []

    def gather(self, indices: Sequence[int]) -> Tensor:
        self.asked.extend(indices)
        return self.array[list(indices)]


def pair_data(backbone: Any, captions: Sequence[Sequence[str]]) -> SplitData:
    """A split of random pictures with the given captions each."""
    flat = tuple(text for own in captions for text in own)
    owner = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    split = Split("test", tuple(Named(i) for i in range(len(captions))), flat, owner)  # type: ignore[arg-type]
    pictures: Any = Pictures(len(captions), backbone.resolution)
    return SplitData(split, pictures, backbone.tokenize(split.distinct))


class Named:
    def __init__(self, number: int):
        self.name = f"{number}.png"


def bare_backbone(seed: int = 0) -> Any:
    """What data preparation and scoring ask of a backbone, without a network."""
    provenance = Provenance(
        kind="vilt",
        architecture="none",
        source=f"seed {seed}",
        sha256="",
        activation="gelu",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        resolution=48,
        aligned=False,
    )
    return SimpleNamespace(provenance=provenance, resolution=48, trims_text=True, tokenize=HashingTokenizer())


def captions_of(images: int, seed: int = 0, each: int = 3) -> list[list[str]]:
    """Captions of 1 to 9 words, lengths out of order, some strings shared between pictures."""
    rng = np.random.default_rng(seed)
    pool = [" ".join(f"w{rng.integers(60)}" for _ in range(rng.integers(1, 10))) for _ in range(2 * images)]
    return [[pool[rng.integers(len(pool))] for _ in range(each)] for _ in range(images)]


class TinyFusion(PairMethod):
    """Attention of projected words over projected patches: kept states, trained preparation, masks, a pooled state."""

    name = "tiny_fusion"
    title = "Tiny fusion"
    keeps_states = True
    calls: dict[str, int]

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.calls = {"image": 0, "text": 0, "pairs": 0, "scored": 0}
        self.hook: Callable[[int], None] = lambda pairs: None

    def build(self, backbone: Any = None) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = nn.Module()
            model.image_in, model.text_in = nn.Linear(3, 8), nn.Linear(4, 8)
            model.head = nn.Linear(8, 1)
        return model.eval()

    def trainable(self, model: Any) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def image_states(self, model: Any, images: Tensor) -> dict[str, Tensor]:
        self.calls["image"] += len(images)
        return {"tokens": images.unfold(2, 16, 16).unfold(3, 16, 16).mean((-1, -2)).flatten(2).transpose(1, 2)}

    def text_states(self, model: Any, tokens: Tokens) -> dict[str, Tensor]:
        self.calls["text"] += len(tokens)
        ids = tokens.ids.float()[..., None]
        words = torch.cat([ids.sin(), ids.cos(), (ids / 3).sin(), (ids / 7).sin()], -1) * tokens.mask[..., None]
        return {"tokens": words, "mask": tokens.mask, "pooled": words.sum(1)}

    def prepare_image(self, model: Any, states: Any) -> dict[str, Tensor]:
        return {"tokens": model.image_in(states["tokens"])}

    def prepare_text(self, model: Any, states: Any) -> dict[str, Tensor]:
        return {**states, "tokens": model.text_in(states["tokens"])}

    def score(self, model: Any, image: Any, text: Any) -> Tensor:
        self.calls["pairs"] += 1
        self.calls["scored"] += len(text["tokens"])
        self.hook(len(text["tokens"]))
        weights = (text["tokens"] @ image["tokens"].transpose(1, 2)).softmax(-1)
        mixed = (weights @ image["tokens"]).tanh() * text["tokens"]
        mask = text["mask"][..., None]
        mean = (mixed * mask).sum(1) / mask.sum(1)
        return model.head(mean).squeeze(1) + text["pooled"].mean(1)


class KeptInMemory:
    """Kept states of a whole split, padded; rows come back cut to the longest, as from the cache on disk."""

    def __init__(self, method: Any, model: Any, backbone: Any, data: SplitData):
        pictures = data.images.gather(range(len(data.split.images)))
        with torch.inference_mode():
            self.image = method.image_states(model, normalised(pictures, backbone))
            self.text = method.text_states(model, data.tokens)

    def images(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: value[rows] for name, value in self.image.items()}

    def texts(self, ids: Tensor) -> dict[str, Tensor]:
        longest = int(self.text["mask"][ids].sum(1).max())
        cut = {name: value[ids] for name, value in self.text.items()}
        return {name: v[:, :longest] if name in ("tokens", "mask") else v for name, v in cut.items()}


def one_by_one(method: PairMethod, model: Any, backbone: Any, data: SplitData) -> Tensor:
    """(N, U) scores of one forward per pair, with captions padded to the context length."""
    images = normalised(data.images.gather(range(len(data.split.images))), backbone)
    with torch.inference_mode():
        return torch.tensor(
            [
                [float(method.score_pairs(model, image[None], data.tokens[[u]])) for u in range(len(data.tokens))]
                for image in images
            ]
        )


def fusion_bench() -> tuple[TinyFusion, nn.Module, Any, SplitData]:
    """Method, model, backbone and split of the small stand-in for a fusion head."""
    method, backbone = TinyFusion(), bare_backbone()
    return method, method.build(None), backbone, pair_data(backbone, captions_of(5))


def scored(bench: tuple[PairMethod, Any, Any, SplitData], precision: str = "fp32", **options: Any) -> Tensor:
    """(N, U) scores of a bench's split, as the harness computes them on the CPU."""
    method, model, backbone, data = bench
    return score_all(method, model, backbone, data, precision, torch.device("cpu"), **options)
