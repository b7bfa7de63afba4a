"""One trial, fully resolved: the hash of a spec is the identity of its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

OWN = "own"
"""As first stage of a two-stage scoring: the dual encoder that the method itself sits on."""


SPLITS_KEY = "splits"
"""In the options of a spec's data set: the hash of each split, by its name."""

SPLIT_NAMES_KEY = "split_names"
"""There: what the reader's own option ``splits`` says of further split names, where it says something of its own."""


def with_hashes(options: Mapping[str, Any], hashes: Mapping[str, str]) -> dict[str, Any]:
    """A reader's options as a spec holds them, with the hashes of the splits.

    The hashes stand under a key that is also an option of some readers, which then goes by another name. Its value at
    default is left out, as it always was, so that old specs keep their identity.
    """
    held = {key: value for key, value in options.items() if key != SPLITS_KEY}
    if (names := options.get(SPLITS_KEY)) not in (None, {}, {"restval": "train"}):
        held[SPLIT_NAMES_KEY] = names
    return {**held, SPLITS_KEY: dict(hashes)}


def without_hashes(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The options as the reader takes them, and the hashes: the inverse of :func:`with_hashes`."""
    given = dict(options)
    hashes: dict[str, str] = given.pop(SPLITS_KEY, {})
    if (names := given.pop(SPLIT_NAMES_KEY, None)) is not None:
        given[SPLITS_KEY] = names
    return given, hashes


def canonical_json(value: Any) -> str:
    """JSON without blanks, keys sorted: equal values, equal text.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_sha256(value: Any) -> str:
    """SHA-256 of :func:`canonical_json`; 64 hexadecimal digits.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_name(backbone: str) -> str:
    """The name of a backbone, which may be ``ARCH:TAG`` or ``OWNER/NAME``, as part of a file's."""
    return backbone.replace("/", "_").replace(":", "_")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EngineConfig(_Part):
    """DeepSpeed settings of a trial."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO stage: from 1 the optimiser's state is divided among the workers of a trial, from 2 the gradients too, with 3 the
    weights too, frozen ones included."""
    offload: Literal["none", "cpu"] = "none"
    """``cpu``: what ZeRO divides lies in the memory of the host, and the optimiser works there."""

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> EngineConfig:
        if self.offload != "none" and not self.zero_stage:
            raise ValueError(
                "offload: cpu needs zero_stage 1, 2 or 3; stage 0 divides nothing that could lie elsewhere"
            )
        return self

    @model_serializer(mode="wrap")
    def _only_if_asked(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Specs from before this setting, and all that do not use it, keep their identity.
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key != "offload" or value != "none"}


class RerankConfig(_Part):
    """Two-stage scoring: a dual encoder's best candidates are scored by a method that scores pairs."""

    k: int = Field(32, ge=1)
    """Candidates per query: captions of a picture, and pictures of a caption."""
    first: str = OWN
    """``own``: the cosine of the dual encoder below the method. Else the record of a dual encoder on the same data set, whose
    stored weights rank first; in a spec its ``spec_id``."""
    sample: int = Field(32, ge=0)
    """Queries per direction that are also scored exactly, to measure what the shortlist loses."""


class ProtocolConfig(_Part):
    """How the evaluated weights are chosen and measured."""

    selection: Literal["best_val", "last", "test_max"] = "best_val"
    """``test_max`` picks the best epoch on *test*, as many papers do; it exists to measure their optimism, is labelled
    in every record and never shares a table with the others."""
    validate_every: int = Field(1, ge=1)
    """Epochs between validations."""
    rerank: RerankConfig | None = None
    """For methods that score pairs; None scores every pair."""

    @model_serializer(mode="wrap")
    def _only_if_asked(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Specs from before this setting, and all that do not use it, keep their identity.
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key != "rerank" or value is not None}


class Named(_Part):
    """A name and its resolved options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class TrialSpec(_Part):
    """Everything that determines a trial's result, and nothing else (no paths, no machine)."""

    version: Literal[1] = 1
    method: Named
    dataset: Named
    backbone: Named
    train: dict[str, Any]
    """A resolved :class:`petlbench.methods.recipe.Recipe`."""
    engine: EngineConfig = EngineConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    seed: int

    @property
    def spec_id(self) -> str:
        """Its :func:`canonical_sha256`."""
        return canonical_sha256(self.model_dump(mode="json"))

    @property
    def label(self) -> str:
        """Short human name: method, dataset, backbone, seed."""
        return f"{self.method.name}/{self.dataset.name}/{self.backbone.name}/s{self.seed}"


class Paths(_Part):
    """Where a trial finds its inputs on this machine and puts its outputs; absolute, not part of the identity."""

    results: str
    work: str
    dataset_root: str | None = None
    dataset_paths: dict[str, str] = Field(default_factory=dict)
    """Reader options that are absolute paths; the spec holds their last part only."""
    dataset_card: str
    """Name of a card, or the path of a user's own."""
    weights: dict[str, str] = Field(default_factory=dict)
    """Backbone option to local weight file or folder."""
    method_files: dict[str, str] = Field(default_factory=dict)
    """Method option to local weight file."""
    plugins: list[str] = Field(default_factory=list)
    first_stage: FirstStage | None = None
    """For two-stage scoring by another record."""
    threads: int = 1
    workers: int = 1
    """Processes that train the trial together; no part of the identity, since they compute what one would."""
    gpus_per_worker: float = 0
    """Below 1, other trials may be on the same GPU."""
    gpu_reserve: int = 0
    """Bytes of a part of a GPU that torch's allocator leaves alone."""
    concurrent_trials: int = 1
    command: list[str] = Field(default_factory=list)


class Tuning(_Part):
    """The search that a trial's settings come from; not part of the identity, which is the settings themselves."""

    study: str
    """``study_id`` of the search."""
    trials: int
    """Configurations that it tried."""


class Trial(_Part):
    """A spec with its paths: what travels to a worker."""

    spec: TrialSpec
    paths: Paths
    tuning: Tuning | None = None
    """None where the settings are a preset's or the user's own."""


class FirstStage(_Part):
    """The dual encoder that ranks before a method that scores pairs."""

    record: str
    """Absolute path of its record; its trained tensors lie beside it."""
    trial: Trial


Paths.model_rebuild()
