"""Two-stage retrieval: a dual encoder's best candidates are put in order by a method that scores pairs.

Every query has its own candidates: each picture the k best captions of the first stage, each distinct caption the k best
pictures. They stand in the order of the second stage, everything else behind them in the order of the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from petlbench.harness.metrics import KS, Ranks
from petlbench.harness.pair_progress import PairCost, PairProgress
from petlbench.harness.pair_scores import KeptLike, ScoreError, score_some
from petlbench.harness.ranks import rank_scores
from petlbench.methods.backbones.base import Backbone
from petlbench.methods.pair import PairMethod

if TYPE_CHECKING:
    from petlbench.harness.data import SplitData
    from petlbench.harness.pair_store import ScoreStore

SAMPLE = 32
"""Queries per direction on which the loss is measured."""


@dataclass(frozen=True)
class SampleReport:
    """Queries whose every pair was scored, and their recalls both ways.

    Attributes:
        images: Image queries.
        captions: Caption queries.
        exact: ``i2t_r1, ..., t2i_r10, mR`` in percent over these queries, with every pair scored.
        two_stage: The same with candidates only.
    """

    images: int
    captions: int
    exact: dict[str, float]
    two_stage: dict[str, float]

    @property
    def loss(self) -> float:
        """Points of mR that the shortlist costs on the sample; below 0 where it helps."""
        return self.exact["mR"] - self.two_stage["mR"]


@dataclass(frozen=True)
class TwoStageReport:
    """What the first stage left to the second.

    Attributes:
        k: Candidates per query.
        pairs: Pairs scored for both directions; those of the sample are not counted.
        i2t_rk: Percent of pictures with one of their own captions among their candidates: no recall at a cut-off up to k
            can be higher.
        t2i_rk: Percent of captions with their picture among their candidates.
        sample: None where none was asked for.
    """

    k: int
    pairs: int
    i2t_rk: float
    t2i_rk: float
    sample: SampleReport | None


def two_stage(
    method: PairMethod,
    model: nn.Module,
    backbone: Backbone,
    data: SplitData,
    precision: str,
    device: torch.device,
    first: Tensor,
    k: int,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    top: int = 0,
    kept: KeptLike | None = None,
    store: ScoreStore | None = None,
    say: Callable[[PairProgress], None] | None = None,
    cost: PairCost | None = None,
) -> tuple[Ranks, TwoStageReport]:
    """Ranks of a split by a first stage's candidates and the scores of a method for pairs.

    Args:
        method: Scores pairs.
        model: What its ``build`` returned, on ``device``.
        backbone: Gives normalisation and trimming.
        data: The split, N pictures and U distinct captions.
        precision: Of the trial.
        device: Where the model lies.
        first: (N, U) scores of the first stage, higher is better; equal scores count as in order of their index.
        k: Candidates per query, at least 1; more than the gallery holds means the whole gallery.
        sample: Queries per direction whose every pair is scored too, to measure the loss; 0 for none.
        seed: Draws them.
        top: First answers to keep of every query.
        kept: States to start from, in place of pixels and words.
        store: Keeps finished scores; must have the shape (N, U).
        say: Told about progress, see :func:`petlbench.harness.pair_scores.score_all`.
        cost: Collects the seconds spent, without those of the sample.

    Returns:
        Ranks in both directions, and what the first stage left to the second.

    Raises:
        ScoreError: ``first`` has another shape or holds NaN, k is below 1, or a score is not finite.
    """
    shape, first = (len(data.split.images), len(data.tokens)), first.cpu()
    if tuple(first.shape) != shape or bool(first.isnan().any()):
        found = f"{int(first.isnan().sum())} NaN in shape {tuple(first.shape)}"
        raise ScoreError(
            f"split {data.split.name}: first-stage scores hold {found}, expected numbers of shape {shape}: one row a picture, one "
            "column a distinct caption"
        )
    if k < 1 or sample < 0:
        raise ScoreError(f"two-stage scoring with k={k} and sample={sample}; k must be at least 1, sample at least 0")
    of_image, of_text = candidates(first, k), candidates(first.T, k).T
    options: dict[str, Any] = {"kept": kept, "store": store}
    wanted = of_image | of_text
    scores = score_some(method, model, backbone, data, precision, device, wanted, say=say, cost=cost, **options)
    if store is not None:
        scores = scores.clone()  # the store goes on growing under the sample
    owner, texts = data.split.owner, data.split.text_ids
    ranks = join_ranks(
        rank_scores(behind(scores, first, of_image), owner, texts, columns="strings", top=top),
        rank_scores(behind(scores.T, first.T, of_text.T).T, owner, texts, columns="strings", top=top),
    )
    drawn = _draw(len(data.split.images), len(owner), sample, seed) if sample else None
    measured = None
    if drawn is not None:
        images, captions = drawn
        whole = torch.zeros_like(wanted)
        whole[images], whole[:, texts[captions]] = True, True
        more = score_some(method, model, backbone, data, precision, device, whole & ~wanted, **options)
        full = torch.where(wanted, scores, more).nan_to_num(
            nan=-torch.inf
        )  # other queries than the sample's are not read
        exact = rank_scores(full, owner, texts, columns="strings")
        measured = SampleReport(len(images), len(captions), _recalls(exact, *drawn), _recalls(ranks, *drawn))
    return ranks, TwoStageReport(k, int(wanted.sum()), *shortlist_recall(of_image, of_text, owner, texts), measured)


def candidates(first: Tensor, k: int) -> Tensor:
    """(Q, G) bool: the k best of the gallery for every query, of equal ones those with the lower index.

    Args:
        first: (Q, G) scores.
        k: How many; the whole gallery where it holds no more.
    """
    best = first.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros(first.shape, dtype=torch.bool).scatter_(1, best, True)


def behind(scores: Tensor, first: Tensor, chosen: Tensor) -> Tensor:
    """(Q, G) float64 whose order is, per query, that of ``scores`` among the chosen, then that of ``first`` among the rest.

    Whole numbers from 0 down stand for the scores, one less for every distinct value, so that whatever its size exactly
    what tied ties here; they compare within a query only.

    Args:
        scores: (Q, G) of the second stage; read where chosen only.
        first: (Q, G) of the first stage.
        chosen: (Q, G) bool.
    """
    second = _places(scores.masked_fill(~chosen, -torch.inf))
    return -torch.where(chosen, second, first.shape[1] + _places(first)).double()


def _places(scores: Tensor) -> Tensor:
    """(Q, G) int64: how many distinct values of the row are higher."""
    ordered, order = scores.sort(dim=1, descending=True)
    steps = torch.zeros(scores.shape, dtype=torch.int64)
    steps[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    return torch.empty_like(steps).scatter_(1, order, steps)


def join_ranks(image_to_text: Ranks, text_to_image: Ranks) -> Ranks:
    """Image queries of the one and caption queries of the other."""
    names = ("t2i_greater", "t2i_tied", "t2i_index", "t2i_duplicate", "t2i_top")
    return replace(image_to_text, **{name: getattr(text_to_image, name) for name in names})


def shortlist_recall(
    of_image: Tensor, of_text: Tensor, owner: NDArray[np.int64], texts: NDArray[np.int64]
) -> tuple[float, float]:
    """Percent of pictures with an own caption on their shortlist, and of captions with their picture on theirs.

    Args:
        of_image: (N, U) bool, candidates of the pictures.
        of_text: (N, U) bool, candidates of the captions.
        owner: (M,) picture of each caption.
        texts: (M,) distinct string of each caption.
    """
    hit = of_image.numpy()[owner, texts]
    image = np.bincount(owner, weights=hit, minlength=len(of_image)) > 0
    return 100.0 * float(image.mean()), 100.0 * float(of_text.numpy()[owner, texts].mean())


def _draw(images: int, captions: int, sample: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pictures and captions without repetition, in ascending order."""
    draw = np.random.default_rng(seed)
    first, second = (np.sort(draw.choice(n, min(sample, n), replace=False)) for n in (images, captions))
    return first, second


def _recalls(ranks: Ranks, images: NDArray[np.int64], captions: NDArray[np.int64]) -> dict[str, float]:
    """Recalls of some queries under the index rule, in percent, named as by :func:`petlbench.harness.metrics.recalls`."""
    found = {f"i2t_r{k}": 100.0 * float((ranks.i2t_index[images] < k).mean()) for k in KS}
    found |= {f"t2i_r{k}": 100.0 * float((ranks.t2i_index[captions] < k).mean()) for k in KS}
    return found | {"mR": sum(found.values()) / len(found)}
