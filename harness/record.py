"""One trial, one JSON record: everything that was asked, everything that came out, and in which world."""

from __future__ import annotations

import json
import math
import os
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from petlbench.errors import PetlbenchError
from petlbench.harness.disk import room_for
from petlbench.harness.record_scoring import Part, QueryPart, TwoStagePart
from petlbench.harness.spec import Trial, file_name

SCHEMA: Literal[1] = 1
RECORD_SUFFIX = ".json"
RANKS_SUFFIX = ".ranks.npz"

M = TypeVar("M", bound=BaseModel)


class RecordError(PetlbenchError):
    """A record is unreadable, invalid or of an unknown version."""


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


def record_path(root: Path, spec: dict[str, Any], spec_id: str) -> Path:
    """``ROOT/<dataset>/<method>/<backbone>-s<seed>-<first 8 of spec_id>.json``."""
    name = f"{file_name(str(spec['backbone']['name']))}-s{spec['seed']}-{spec_id[:8]}{RECORD_SUFFIX}"
    return root / spec["dataset"]["name"] / spec["method"]["name"] / name


def ranks_path(path: Path, record: Record) -> Path:
    """The file of ranks that lies beside a record."""
    named = record.artifacts.get("ranks")
    return path.with_name(Path(named).name if named else path.name.removesuffix(RECORD_SUFFIX) + RANKS_SUFFIX)


def path_of(trial: Trial) -> Path:
    """Where the record of a trial lies or will lie."""
    return record_path(Path(trial.paths.results), trial.spec.model_dump(mode="json"), trial.spec.spec_id)


def write_record(record: Part, path: Path) -> Path:
    """Write atomically: a temporary file beside ``path``, flushed to disk, then renamed over it.

    Raises:
        RecordError: A number is NaN or infinite (not valid JSON); the message names its key. Nothing is written.
        DiskFull: There is no room; an older record stands.
        OSError: The folder cannot be written.
    """
    # Looked for before the dump to JSON types, which turns NaN inside free-form parts (spec, provenance) into null.
    if key := _nan_at(record.model_dump()):
        raise RecordError(
            f"record for {path}: key `{key}` is NaN or infinite, expected a finite number or null; "
            "the trial diverged or a measurement failed, so record it as failed"
        )
    payload = json_bytes(record.model_dump(mode="json"))
    with room_for("a record", path.parent, len(payload)):
        write_atomically(path, payload)
    return path


def json_bytes(payload: Any) -> bytes:
    """JSON as it is kept in files: one key a line, sorted, so that versions can be compared.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    return f"{json.dumps(payload, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)}\n".encode()


def write_atomically(path: Path, payload: bytes) -> None:
    """Write bytes so that a reader sees the old file or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def stamp(path: Path) -> str | None:
    """Tells one version of a file from another, by equality alone: clocks may jump. None where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return f"{found.st_mtime_ns}-{found.st_ino}-{found.st_size}"


def read_record(path: Path) -> Record:
    """Read, migrate and validate one record.

    Raises:
        RecordError: Naming the file, the key, what was found and what to do.
    """
    hint = "move it away (the trial will run again), or restore it from version control"
    payload = read_json(path, hint)
    if not isinstance(payload, dict) or "schema_version" not in payload:
        raise RecordError(f"{path}: no key `schema_version`, so this is not a petlbench record; {hint}")
    return validated(Record, migrate(payload, path), path, hint)


def read_json(path: Path, hint: str) -> Any:
    """What a file holds.

    Args:
        path: The file.
        hint: What to do where it is damaged.

    Raises:
        RecordError: It is no JSON.
        OSError: It cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not a JSON record ({error}); {hint}") from error


def validated(model: type[M], payload: Any, path: Path, hint: str) -> M:
    """The content of a JSON file as a model.

    Raises:
        RecordError: Naming the file, the key, what was found and, by ``hint``, what to do.
    """
    if key := _nan_at(payload):  # Python's reader takes NaN and 1e999, which JSON does not have
        raise RecordError(f"{path}: key `{key}` is NaN or infinite, expected a finite number or null; {hint}")
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found = "" if first["type"] == "missing" else f" (found {repr(first['input'])[:80]})"
        raise RecordError(f"{path}: key `{where}`: {first['msg']}{found}; {hint}") from error


def good_record(path: Path, trial: Trial) -> Record | None:
    """The record at ``path`` if it is a finished one of this very trial."""
    try:
        record = read_record(path)
    except (OSError, RecordError):
        return None  # absent or unusable: the trial runs
    return record if record.status == "ok" and record.spec_id == trial.spec.spec_id else None


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


def find_records(root: Path) -> Iterator[Path]:
    """Record files ``root/*/*/*.json``, sorted; hidden files and the folders ``schema`` and ``boards`` are left out."""
    if not root.is_dir():
        return
    for path in sorted(root.glob("*/*/*" + RECORD_SUFFIX)):
        relative = path.relative_to(root)
        if not any(part.startswith(".") for part in relative.parts) and relative.parts[0] not in {"schema", "boards"}:
            yield path


def _nan_at(payload: Any) -> str:
    """The key of the first NaN or infinity, ``""`` where there is none; keys are only spelled out where there is one."""
    return "" if _finite((payload,)) else _first_nan(payload)


def _finite(values: Iterable[Any]) -> bool:
    for value in values:
        if isinstance(value, float):
            if not math.isfinite(value):
                return False
        elif isinstance(value, dict):
            if not _finite(value.values()):
                return False
        elif isinstance(value, list | tuple) and not _finite(value):
            return False
    return True


def _first_nan(value: Any, place: str = "") -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return place or "."
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        if found := _first_nan(inner, f"{place}.{key}".lstrip(".")):
            return found
    return ""
