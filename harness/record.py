"""One trial, one JSON record: everything that was asked, everything that came out, and in which world."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from petlbench.harness.json_files import RecordError
from petlbench.harness.record_scoring import Part, QueryPart, TwoStagePart

SCHEMA: Literal[1] = 1


class MethodPart(Part):
    """Which code was tested."""

    name: str
    title: str
    origin: str
    """``petlbench`` for built-ins, else the distribution or file name of the plugin."""
    sha256: str
    """Of the method's source file."""


class SplitPart(Part):
    """One split as it was used."""

    images: int
    captions: int
    distinct_captions: int
    sha256: str
    ceiling: dict[str, float] | None = None
    """Best possible text-to-image recalls with equal strings tied, percent."""
    class_only: dict[str, float] | None = None
    """Expected recalls of an oracle that knows only the scene class, percent."""


class DataPart(Part):
    """Which data was used."""

    name: str
    title: str
    card_version: str
    splits: dict[str, SplitPart]


class SelectionPart(Part):
    """How the evaluated weights were chosen."""

    rule: Literal["best_val", "last", "test_max", "none"]
    epoch: int | None
    """Counted from 1; 0 is the untrained model; None where nothing was trained."""
    val_mR: float | None
    budget_trials: int = 1
    """Configurations tried on validation to find this one, itself included."""
    study: str | None = None
    """``study_id`` of the search that found it; None where nothing was searched."""


class MetricsPart(Part):
    """Recalls of one split, percent."""

    recalls: dict[str, float]
    """Under the main tie rule: i2t_r1 ... t2i_r10, mR."""
    other_rules: dict[str, dict[str, float]] = Field(default_factory=dict)
    tie_rule: str
    metric_version: int
    scoring: Literal["embeddings", "pairs", "two_stage"] = "embeddings"
    """``embeddings``: dot products; ``pairs``: a cross encoder scored every pair; ``two_stage``: only a shortlist."""
    two_stage: TwoStagePart | None = None
    """Present exactly where ``scoring`` is ``two_stage``."""

    @model_validator(mode="after")
    def _labelled(self) -> Self:
        if (self.scoring == "two_stage") != (self.two_stage is not None):
            found = "is missing" if self.two_stage is None else "is given"
            raise ValueError(
                f"`scoring` is {self.scoring}, but `two_stage` {found}: a shortlist's recalls need its size and its "
                "first stage beside them, and other recalls have none"
            )
        return self


class ParamsPart(Part):
    """Sizes, in scalars unless said otherwise."""

    trained: int
    trained_new_heads: int = 0
    """Part of ``trained`` that joins unaligned towers and is trained by every method on such a backbone."""
    total: int
    added_at_inference: int
    stored_bytes: int
    """Size of the trained tensors on disk (safetensors)."""


STARVED = 0.7
"""A process that computes keeps at least one core busy; below this part of one, something else had it."""


class CostPart(Part):
    """Measured cost; bytes and seconds."""

    train_s: float
    eval_s: float
    samples_per_s: float | None
    steps: int
    peak_memory: int | None
    """Peak allocated device memory, or peak resident memory of the process on CPU."""
    peak_reserved: int | None = None
    memory_kind: Literal["cuda_allocated", "process_resident"]
    device: str
    threads: int
    train_cpu_s: float | None = None
    """Processor seconds of all threads in training (of the first process), user and system. None where a GPU trained, and in
    records from before it was measured."""
    micro_batch: int | None = None
    """Pairs that went through the model at once in training, per process; fewer than were asked for where memory ran out, which
    ``notes`` then says. None where nothing was trained, and in records from before this was kept."""
    workers: int = 1
    """Processes that trained it together: threads and memory are those of the first one, samples per second of all."""
    concurrent_trials: int = 1
    """Trials that could run at the same time on the machine; cost columns are comparable only where equal."""
    gpu_share: float | None = None
    """Part of a GPU that the trial had; below 1 it could share the GPU with others, and its cost compares with nothing. None
    without a GPU, and in records from before this was kept."""
    cached_features: bool = False
    """Frozen towers were run once and their pooled outputs kept (their cost is in ``cache_s``)."""
    cache_s: float = 0.0
    query: QueryPart | None = None
    """Of the test evaluation; None in records from before it was measured."""

    @property
    def packed(self) -> bool:
        """Whether other trials may have been on the same GPU."""
        return self.gpu_share is not None and self.gpu_share < 1

    @property
    def starved(self) -> bool:
        """Whether training on processors had to wait for them, or for a disk, so that its seconds say little."""
        return self.train_cpu_s is not None and self.train_cpu_s < STARVED * self.train_s


class EpochPart(Part):
    """One line of the learning curve."""

    epoch: int
    loss: float | None
    parts: dict[str, float] = Field(default_factory=dict)
    lr: float | None
    val_mR: float | None
    seconds: float


class ErrorPart(Part):
    """Why a trial failed."""

    type: str
    message: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> ErrorPart:
        """Of what was raised."""
        text = "".join(traceback.format_exception(error))
        return cls(type=type(error).__name__, message=str(error), traceback=text)


class Record(Part):
    """Schema version 1. See ``results/README.md``."""

    schema_version: Literal[1] = SCHEMA
    spec_id: str
    status: Literal["ok", "failed", "stopped"]
    spec: dict[str, Any]
    """All resolved values; ``spec_id`` is its hash."""
    method: MethodPart
    backbone: dict[str, Any] | None = None
    """Provenance of the pretrained weights."""
    data: DataPart | None = None
    selection: SelectionPart | None = None
    metrics: dict[str, MetricsPart] = Field(default_factory=dict)
    """By split."""
    params: ParamsPart | None = None
    cost: CostPart | None = None
    curve: list[EpochPart] = Field(default_factory=list)
    audit: dict[str, str] = Field(default_factory=dict)
    """Check name to ``ok`` or the reason it does not apply."""
    notes: list[str] = Field(default_factory=list)
    """What befell the trial and a reader should know: a damaged checkpoint, memory that ran out. Empty where all went well."""
    provenance: dict[str, Any]
    artifacts: dict[str, str] = Field(default_factory=dict)
    """File names beside the record: ``ranks``, ``weights``."""
    error: ErrorPart | None = None

    @field_validator("spec_id")
    @classmethod
    def _hex(cls, value: str) -> str:
        if len(value) != 64 or any(c not in "0123456789abcdef" for c in value):
            raise ValueError("spec_id must be 64 lower-case hexadecimal digits")
        return value


MIGRATIONS: dict[int, Any] = {}
"""One function per old schema version, from its payload to the next version's."""


def migrate(payload: dict[str, Any], path: Path) -> dict[str, Any]:
    """Bring an old payload to the current schema version.

    Raises:
        RecordError: No chain of :data:`MIGRATIONS` leads from the payload's version to the current one.
    """
    version = payload["schema_version"]
    while version != SCHEMA:
        if not isinstance(version, int) or version not in MIGRATIONS:
            readable = ", ".join(map(str, [*sorted(MIGRATIONS), SCHEMA]))
            raise RecordError(
                f"{path}: key `schema_version` is {version!r}, this petlbench reads {readable}; "
                "upgrade petlbench or move the file away"
            )
        payload = MIGRATIONS[version](payload)
        version = payload["schema_version"]
    return payload
