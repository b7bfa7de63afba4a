"""Ranks the splits of one trial, whatever its method is: by embeddings, by every pair, or by a shortlist of pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petlbench.harness.data import SplitData
from petlbench.harness.evaluate import Evaluated, evaluate
from petlbench.harness.first_stage import FirstScores, own_scores, record_scores
from petlbench.harness.kept import Kept, keep
from petlbench.harness.pair_progress import PairCost, PairProgress
from petlbench.harness.pair_scores import score_all, score_some
from petlbench.harness.pair_store import ScoreStore, score_key
from petlbench.harness.parts import Parts
from petlbench.harness.query_cost import SAMPLE, encoding_s, product_s, query_part
from petlbench.harness.ranks import rank_scores
from petlbench.harness.record_scoring import BoundPart, QueryPart, SamplePart, TwoStagePart
from petlbench.harness.spec import Trial
from petlbench.harness.two_stage import TwoStageReport, two_stage
from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.pair import PairMethod

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A split, ready to be ranked any number of times while the model trains."""

    data: SplitData
    kept: Kept
    first: FirstScores | None
    """Scores of another record's dual encoder, where that makes the shortlist."""


class Ranking:
    """Ranks splits with a built model.

    Args:
        trial: Says how scores come about.
        parts: Of the trial.
        model: What the method built, on ``device``.
        device: Where it lies.
        work: Folder for scores that an interrupted evaluation can go on from; None keeps none.
        report: Called with the progress of a long evaluation.
    """

    def __init__(
        self,
        trial: Trial,
        parts: Parts,
        model: nn.Module,
        device: torch.device,
        work: Path | None = None,
        report: Callable[[dict[str, Any]], None] = lambda line: None,
    ):
        self.trial, self.parts, self.model, self.device = trial, parts, model, device
        self.work, self.report = work, report

    def open(self, split: str) -> Opened:
        """Read a split and compute what does not change while the model trains.

        Raises:
            DataError: Pictures are missing, or the first stage reads other captions.
        """
        data = SplitData.open(self.parts.splits[split], self.parts.backbone, self.parts.recipe.captions)
        kept = keep(self.parts, self.model, data, self.device)
        stage = self.trial.paths.first_stage
        return Opened(data, kept, record_scores(stage, data, self.device) if stage else None)

    def rank(self, opened: Opened, *, resumable: bool = False, top: int = 0) -> Evaluated:
        """Rank a split with the model as it is.

        Args:
            opened: From :meth:`open`.
            resumable: Keep finished scores of pairs in the work folder, so that a killed trial goes on from them.
            top: First answers to keep of every query.
        """
        parts = self.parts
        backbone, precision, data = parts.backbone, parts.recipe.precision, opened.data
        if not isinstance(parts.method, PairMethod):
            assert isinstance(backbone, DualEncoder)
            return evaluate(parts.method, self.model, backbone, data, precision, self.device, opened.kept, top)
        cost = PairCost()
        whose = parts.method, self.model, backbone, data, precision, self.device
        options: dict[str, Any] = {"kept": opened.kept.states, "say": self._say, "cost": cost}
        if resumable and self.work is not None:
            options["store"] = self._store(data)
        rerank = self.trial.spec.protocol.rerank
        if rerank is None:
            scores = score_all(*whose, **options)
            ranks = rank_scores(scores, data.split.owner, data.split.text_ids, columns="strings", top=top)
            return Evaluated(ranks, "pairs", cost=cost)
        first = opened.first
        if first is None:
            assert isinstance(backbone, DualEncoder)  # the plan lets nothing else through
            first = own_scores(backbone, self.model, data, precision, self.device)
        seed = self.trial.spec.seed
        options |= {"sample": rerank.sample, "seed": seed, "top": top}
        ranks, found = two_stage(*whose, first.scores, rerank.k, **options)
        return Evaluated(ranks, "two_stage", two_stage_part(found, first), cost, first)

    def query_cost(self, opened: Opened, evaluated: Evaluated) -> QueryPart:
        """What one query against the split takes; encoding is timed on a few items, pairs as they were scored."""
        parts, data = self.parts, opened.data
        precision = parts.recipe.precision
        encoding = encoding_s(parts.method, self.model, parts.backbone, data, precision, self.device)
        gallery = len(data.split.images), len(data.tokens)
        first, rerank = evaluated.first, self.trial.spec.protocol.rerank
        if evaluated.cost is None:
            assert isinstance(parts.backbone, DualEncoder)
            return query_part(encoding, product_s(*gallery, parts.backbone.embed_dim, self.device), gallery)
        assert isinstance(parts.method, PairMethod)
        if not evaluated.cost.pairs:  # all were found in the store of a killed run
            few = torch.zeros(gallery, dtype=torch.bool)
            few[:SAMPLE, :SAMPLE] = True
            whose = parts.method, self.model, parts.backbone, data, precision, self.device
            score_some(*whose, few, kept=opened.kept.states, cost=evaluated.cost)
        pair_s = evaluated.cost.pair_s / evaluated.cost.pairs
        if first is None or rerank is None:
            return query_part(encoding, pair_s, gallery)
        before = first.image_s, first.text_s, product_s(*gallery, first.width, self.device)
        return query_part(encoding, pair_s, gallery, rerank.k, before)

    def _store(self, data: SplitData) -> ScoreStore:
        parts = self.parts
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        assert self.work is not None
        key = score_key(parts.method, parts.backbone, trained, data, parts.recipe.precision, self.device.type)
        shape = len(data.split.images), len(data.tokens)
        return ScoreStore(self.work / f"{data.split.name}.scores", key, shape, warn=_log.warning)

    def _say(self, progress: PairProgress) -> None:
        self.report(
            {
                # `done` would be Ray Tune's word for the end of the trial.
                "pairs": progress.pairs,
                "scored": progress.done,
                "pairs_per_s": progress.pairs_per_s,
                "left_s": progress.left_s,
            }
        )


def two_stage_part(found: TwoStageReport, first: FirstScores) -> TwoStagePart:
    """A report as it stands in a record."""
    sample = found.sample
    return TwoStagePart(
        k=found.k,
        first_stage=first.name,
        first_stage_spec_id=first.spec_id,
        pairs=found.pairs,
        bound=BoundPart(i2t_rk=found.i2t_rk, t2i_rk=found.t2i_rk),
        sample=None if sample is None else SamplePart(**asdict(sample)),
    )
