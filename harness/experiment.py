"""What the user asked for: a YAML file and command-line options, which mean the same thing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from petlbench.datasets.split import DataError
from petlbench.datasets.validation import checked, read_yaml
from petlbench.errors import PetlbenchError
from petlbench.harness.spec import EngineConfig, ProtocolConfig

EMBEDDED = Path(__file__).resolve().parent / "experiments" / "embedded.yaml"
"""The experiment of a bare ``benchmark run all-methods``: needs no data, no weights, no network."""


class ExperimentError(PetlbenchError):
    """The experiment file or an option is wrong; the message names the key and the way out."""


class Resources(BaseModel):
    """What one trial may use."""

    model_config = ConfigDict(extra="forbid")

    cpus_per_trial: int | None = Field(None, ge=1)
    """None: one where there is no GPU, else the machine's cores divided by its GPUs."""
    gpus_per_trial: float | None = Field(None, ge=0)
    """None: one if the machine has a GPU, else none. Shares below 1 pack trials and spoil the cost columns."""
    max_concurrent: int | None = Field(None, ge=1)
    address: str | None = None
    """Address of a running Ray cluster; None starts Ray here for the run."""


class Experiment(BaseModel):
    """Every key may stand in the YAML file, and every key can be given by ``--set key=value``."""

    model_config = ConfigDict(extra="forbid")

    title: str = ""
    methods: list[str] = Field(default_factory=lambda: ["all-methods"])
    datasets: list[str] = Field(default_factory=lambda: ["scenes"])
    """Names of cards, or paths of your own cards (ending in .yaml)."""
    backbones: list[str] = Field(default_factory=lambda: ["tiny-clip"])
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2])
    preset: str = "matched"
    """``matched``: the common protocol. ``paper``: each method's published recipe."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Recipe fields for every method."""
    method: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Per method: its own options, and a ``train`` section that overrides the common one."""
    dataset: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Per data set: ``root`` and options of its reader."""
    backbone: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Per backbone: resolution, pretrained tag, weight files."""
    engine: EngineConfig = EngineConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    resources: Resources = Resources()
    plugins: list[str] = Field(default_factory=list)
    """Loose method files."""
    results: str = "results"


def load_experiment(path: Path | None = None, sets: Iterable[str] = (), **options: Any) -> Experiment:
    """Merge a YAML file (or the defaults), named options and ``--set`` assignments, in this order.

    Args:
        path: Experiment file; None starts from the defaults.
        sets: ``dotted.key=value`` strings; the value is read as YAML.
        **options: Top-level keys given as command-line options; None means not given.

    Raises:
        ExperimentError: Naming the file and line or the option, what was found, and the nearest known key.
    """
    values: dict[str, Any] = {}
    lines: dict[tuple[str, ...], int] = {}
    source = "the command line"
    if path is not None:
        try:
            values, lines = read_yaml(path)
        except DataError as error:
            raise ExperimentError(str(error).replace("the card", "the experiment file")) from error
        source = str(path)
    for key, value in options.items():
        if value is not None:
            values[key] = value
    for assignment in sets:
        _assign(values, assignment, lines)
    try:
        return checked(Experiment, values, source, lines)
    except DataError as error:
        raise ExperimentError(str(error)) from error


def _assign(values: dict[str, Any], assignment: str, lines: dict[tuple[str, ...], int]) -> None:
    key, equals, text = assignment.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ExperimentError(f"--set {assignment}: expected KEY=VALUE with a dotted key, as in method.lora.rank=16")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ExperimentError(f"--set {assignment}: the value is not valid YAML ({error})") from error
    parts = _join_names(values, parts)
    inner = values
    for part in parts[:-1]:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ExperimentError(f"--set {assignment}: `{part}` holds {inner!r}, not a section")
    inner[parts[-1]] = value
    lines.pop(tuple(parts), None)  # the value no longer comes from the file, so its line would mislead


def _join_names(values: dict[str, Any], parts: list[str]) -> list[str]:
    """Names may hold dots (``my.card.yaml``): prefer the longest run of parts that the experiment already names."""
    if len(parts) < 3 or parts[0] not in {"method", "dataset", "backbone"}:
        return parts
    known = {*values.get(parts[0], {}), *values.get(parts[0] + "s", [])}
    for stop in range(len(parts) - 1, 2, -1):
        if (name := ".".join(parts[1:stop])) in known:
            return [parts[0], name, *parts[stop:]]
    return parts
