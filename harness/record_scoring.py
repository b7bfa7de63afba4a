"""Parts of a record that say how scores were computed and what a query costs."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Percent = Annotated[float, Field(ge=0, le=100)]
Seconds = Annotated[float, Field(ge=0)]


class Part(BaseModel):
    """A part of a record; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class BoundPart(Part):
    """How often the first stage puts a right answer on the shortlist: no recall at a cut-off up to k can be higher, percent."""

    i2t_rk: Percent
    """Recall@k of the first stage, image to text."""
    t2i_rk: Percent
    """Recall@k of the first stage, text to image."""


class SamplePart(Part):
    """Queries that were scored both ways, against the whole split, to measure what the shortlist changes."""

    images: int = Field(ge=0)
    """Image queries drawn."""
    captions: int = Field(ge=0)
    """Caption queries drawn."""
    exact: dict[str, Percent]
    """Recalls of these queries with every pair scored."""
    two_stage: dict[str, Percent]
    """Recalls of the same queries with the shortlist scored."""

    @model_validator(mode="after")
    def _same_recalls(self) -> Self:
        if set(self.exact) != set(self.two_stage):
            lonely = sorted(set(self.exact) ^ set(self.two_stage))
            raise ValueError(
                f"`exact` and `two_stage` must hold the same recalls, but only one has {', '.join(lonely)}; "
                "write both from one call of petlbench.harness.metrics.recalls each"
            )
        return self


class TwoStagePart(Part):
    """A dual encoder chose k candidates per query, and only these were scored as pairs."""

    k: int = Field(ge=1)
    """Candidates per query: captions of a picture, pictures of a caption."""
    first_stage: str = Field(min_length=1)
    """``own cosine``, or method, backbone and seed of the record that ranked first."""
    first_stage_spec_id: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Of the record that ranked first; None where the method's own dual encoder did."""
    pairs: int = Field(ge=0)
    """Pairs that were scored for both directions, those of the sample not counted."""
    bound: BoundPart
    sample: SamplePart | None = None
    """None where the loss against scoring every pair was not measured."""


class QueryPart(Part):
    """What answering one query takes, in seconds, with the gallery encoded beforehand; parts timed in batches."""

    image_encode_s: Seconds
    """Per picture: what is computed of it alone."""
    text_encode_s: Seconds
    """Per caption: what is computed of it alone."""
    pair_s: Seconds
    """Per pair scored; for embeddings, a dot product's share of the product of the two matrices."""
    pairs_per_query_t2i: float = Field(ge=0)
    """Pairs scored for one caption."""
    pairs_per_query_i2t: float = Field(ge=0)
    """Pairs scored for one picture."""
    t2i_s: Seconds
    """One caption searched among the pictures of the split, a first stage included."""
    i2t_s: Seconds
    """One picture searched among the distinct captions of the split, a first stage included."""
