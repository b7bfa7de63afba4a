"""How the scores of a row were computed and what a query costs: labels, means over seeds, words (plain text)."""

from __future__ import annotations

from collections.abc import Sequence

from petlbench.harness.record import MetricsPart, QueryPart
from petlbench.harness.record_scoring import BoundPart, SamplePart, TwoStagePart
from petlbench.leaderboard import text
from petlbench.leaderboard.load import METRICS
from petlbench.leaderboard.statistics import mean

SHORTLISTED = "‡"
"""Mark of a row whose recalls come from a shortlist."""

KINDS = {"embeddings": "dot product", "pairs": "every pair", "two_stage": "top-k of a first stage"}
"""How scores can be computed, in a few words."""

_WORDS = {
    "embeddings": "dot product: picture and caption are encoded apart, and a score is the dot product of the two "
    "normalised embeddings",
    "pairs": "every pair: picture and caption go through one network together, for every picture with every distinct "
    "caption",
    "two_stage": "top-k of a first stage: a dual encoder ranks everything, and only its k best candidates of a query go "
    f"through the network with it ({SHORTLISTED})",
}
_STATED = ("i2t_r1", "t2i_r1", "mR")
"""Recalls of the sample that a note states."""
_NAME_LIMIT = 80


def label(part: MetricsPart) -> str:
    """``dot product``, ``every pair``, or ``top-32 of FIRST STAGE``, one line of plain text."""
    if part.two_stage is None:
        return KINDS[part.scoring]
    return f"top-{part.two_stage.k} of {text.shorten(part.two_stage.first_stage, _NAME_LIMIT)}"


def explain_scoring(kinds: set[str]) -> str:
    """What the labels of a table mean.

    Args:
        kinds: Values of ``MetricsPart.scoring`` in the table.
    """
    return "; ".join(words for kind, words in _WORDS.items() if kind in kinds) + "."


def explain_query(images: int) -> str:
    """What the column ms/query holds.

    Args:
        images: Pictures of the test split, the gallery.
    """
    return (
        f"milliseconds to search one caption among the {images:,} test pictures, which were encoded beforehand: the sum of "
        "encoding the caption and computing its scores, a first stage included, each timed in batches with the test "
        f"evaluation; mean over the seeds; {text.NOTHING} where a record does not state it."
    )


def shortlist_note(name: str, part: TwoStagePart, seeds: int) -> str:
    """What a row marked :data:`SHORTLISTED` owes its reader: the bound of the first stage and the loss on the sample.

    Args:
        name: The row's label.
        part: Of :func:`mean_two_stage`.
        seeds: How many records were averaged.
    """
    over = f", means over {seeds} seeds" if seeds > 1 else ""
    return (
        f"{name} {SHORTLISTED}: only the {part.k} best candidates of each query by {_first(part)} were scored as pairs "
        f"({part.pairs:,} pairs{over}). The first stage's recall@{part.k}, which bounds this row's recalls at cut-offs up "
        f"to {part.k}, is {text.percent(part.bound.i2t_rk)} % image to text and {text.percent(part.bound.t2i_rk)} % text "
        f"to image. {_loss(part.sample)}"
    )


def mean_two_stage(parts: Sequence[MetricsPart]) -> TwoStagePart | None:
    """Means over the seeds of a row; None where every pair was scored.

    The spec id of the first stage remains where the seeds share it, the sample where all were asked alike.
    """
    stages = [part.two_stage for part in parts if part.two_stage is not None]
    if not stages:
        return None
    first = stages[0]
    ids = {stage.first_stage_spec_id for stage in stages}
    return TwoStagePart(
        k=first.k,
        first_stage=first.first_stage,
        first_stage_spec_id=first.first_stage_spec_id if len(ids) == 1 else None,
        pairs=round(mean([stage.pairs for stage in stages])),
        bound=BoundPart(
            i2t_rk=mean([stage.bound.i2t_rk for stage in stages]),
            t2i_rk=mean([stage.bound.t2i_rk for stage in stages]),
        ),
        sample=_mean_sample([stage.sample for stage in stages]),
    )


def mean_query(parts: Sequence[QueryPart | None]) -> QueryPart | None:
    """Means over the seeds that state them; None where none does."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return QueryPart(**{name: mean([getattr(part, name) for part in known]) for name in QueryPart.model_fields})


def _mean_sample(samples: Sequence[SamplePart | None]) -> SamplePart | None:
    known = [sample for sample in samples if sample is not None]
    if len(known) < len(samples) or len({(s.images, s.captions, *sorted(s.exact)) for s in known}) != 1:
        return None
    first = known[0]
    return SamplePart(
        images=first.images,
        captions=first.captions,
        exact={name: mean([sample.exact[name] for sample in known]) for name in first.exact},
        two_stage={name: mean([sample.two_stage[name] for sample in known]) for name in first.two_stage},
    )


def _first(part: TwoStagePart) -> str:
    name = text.shorten(part.first_stage, _NAME_LIMIT)
    return f"{name} (spec {part.first_stage_spec_id[:8]})" if part.first_stage_spec_id else name


def _loss(sample: SamplePart | None) -> str:
    if sample is None:
        return "What this loses against scoring every pair is unknown: no sample of queries was scored both ways."
    listed = []
    for metric in (m for m in METRICS if m in _STATED and m in sample.exact):
        exact, shortlisted = sample.exact[metric], sample.two_stage[metric]
        listed.append(
            f"{text.metric(metric)} {text.percent(exact)} with every pair, {text.percent(shortlisted)} with the shortlist "
            f"({shortlisted - exact:+.2f})"
        )
    return f"Asked both ways, {sample.images:,} pictures and {sample.captions:,} captions gave {'; '.join(listed)}."
