"""One trial, fully resolved: the hash of a spec is the identity of its result."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EngineConfig(_Part):
    """DeepSpeed settings of a trial."""

    zero_stage: Literal[0, 1, 2] = 0
    """ZeRO stage; above 0 optimiser state (and gradients) are partitioned over ranks."""


class ProtocolConfig(_Part):
    """How the evaluated weights are chosen and measured."""

    selection: Literal["best_val", "last", "test_max"] = "best_val"
    """``test_max`` picks the best epoch on *test*, as many papers do; it exists to measure their optimism, is labelled
    in every record and never shares a table with the others."""
    validate_every: int = Field(1, ge=1)
    """Epochs between validations."""


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
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

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
    threads: int = 1
    concurrent_trials: int = 1
    command: list[str] = Field(default_factory=list)


class Trial(_Part):
    """A spec with its paths: what travels to a worker."""

    spec: TrialSpec
    paths: Paths
