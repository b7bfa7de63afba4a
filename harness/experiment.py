"""What the user asked for: a YAML file and command-line options, which mean the same thing."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from petlbench.datasets.split import DataError
from petlbench.datasets.validation import Lines, Yaml, checked, read_yaml
from petlbench.errors import PetlbenchError
from petlbench.harness.resources import Resources as Resources
from petlbench.harness.search.settings import SearchConfig
from petlbench.harness.spec import EngineConfig, ProtocolConfig
from petlbench.harness.trackers import Tracker

EMBEDDED = Path(__file__).resolve().parent / "experiments" / "embedded.yaml"
"""The experiment of a bare ``benchmark run all-methods``: needs no data, no weights, no network."""

COMMAND_LINE = "the command line"
"""What messages call the place of a value that no file holds."""

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What NumPy, PyTorch and Python all take as a seed."""

M = TypeVar("M", bound=BaseModel)


class ExperimentError(PetlbenchError):
    """The experiment file or an option is wrong; the message names the key and the way out."""


class Experiment(BaseModel):
    """Every key may stand in the YAML file, and every key can be given by ``--set key=value``."""

    model_config = ConfigDict(extra="forbid")

    title: str = ""
    methods: list[str] = Field(default_factory=lambda: ["all-methods"], min_length=1)
    datasets: list[str] = Field(default_factory=lambda: ["scenes"], min_length=1)
    """Names of cards, or paths of your own cards (ending in .yaml)."""
    backbones: list[str] = Field(default_factory=lambda: ["tiny-clip"], min_length=1)
    seeds: list[Seed] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    preset: str = "matched"
    """``matched``: the common protocol. ``paper``: each method's published recipe."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Recipe fields for every method."""
    method: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Per method: its own options, and a ``train`` section that overrides the common one."""
    dataset: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Per data set (its card's name or path): ``root`` and options of its reader."""
    backbone: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Per backbone: resolution, pretrained tag, weight files."""
    engine: EngineConfig = EngineConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    resources: Resources = Resources()
    search: SearchConfig = SearchConfig()
    """Budget and ways of ``benchmark search``; a run does not read it."""
    tuned: str | list[str] | None = None
    """Folder or folders of studies: every method takes the configuration that its search there found."""
    trackers: list[Tracker] = Field(default_factory=list)
    """Where else to send curves while trials run; none unless asked."""
    plugins: list[str] = Field(default_factory=list)
    """Loose method files."""
    results: str = "results"

    _file: ExperimentFile | None = PrivateAttr(None)
    """Where the values come from that the command line does not give; None without a file."""

    def checked_section(
        self,
        model: type[M],
        *where: str,
        base: Mapping[str, Any] | None = None,
        leave: Collection[str] = (),
    ) -> M:
        """Validate a free-form section, such as ``("method", "lora")``, whose keys only the plan knows.

        Args:
            model: What the section must fit.
            where: Keys that lead to the section; where there is none, ``base`` alone is validated.
            base: Values that the section overrides, nested mappings key by key.
            leave: Keys of the section that are checked elsewhere.

        Raises:
            ExperimentError: Naming the key, its line where it stands in the file, and the nearest known key.
        """
        base = base or {}
        mine = {where[0]: getattr(self, where[0])}
        if self._file is not None:
            # First the file by itself, so that only its own mistakes are told with its name and lines.
            given = self._section(self._file.values, where, leave)
            _checked(model, merged(base, given), str(self._file.path), self._file.lines, where)
        return _checked(model, merged(base, self._section(mine, where, leave)), COMMAND_LINE, None, where)

    def place(self, *where: str) -> str:
        """``FILE:LINE`` of a key that stands in the file, else ``the command line``."""
        line = self._file.lines.get(where) if self._file is not None else None
        return f"{self._file.path}:{line}" if self._file is not None and line else COMMAND_LINE

    def _section(self, values: Mapping[str, Any], where: tuple[str, ...], leave: Collection[str]) -> dict[str, Any]:
        inner: Any = values
        for key in where:
            inner = inner.get(key) or {}
            if not isinstance(inner, Mapping):
                name = ".".join(where)
                raise ExperimentError(
                    f"{self.place(*where)}: key `{name}` has the value {inner!r}; expected a section of keys and values"
                )
        return {key: value for key, value in inner.items() if key not in leave}


@dataclass(frozen=True)
class ExperimentFile:
    """What an experiment file says, and on which line.

    Attributes:
        path: The file.
        values: Its content, before any option of the command line.
        lines: Line, from 1, of each key.
    """

    path: Path
    values: dict[str, Any]
    lines: Lines


def load_experiment(path: Path | None = None, sets: Iterable[str] = (), **options: Any) -> Experiment:
    """Merge a YAML file (or the defaults), named options and ``--set`` assignments, in this order.

    Args:
        path: Experiment file; None starts from the defaults.
        sets: ``dotted.key=value`` strings; the value is read as YAML.
        **options: Top-level keys given as command-line options; None means not given.

    Raises:
        ExperimentError: Naming the file and line or the option, what was found, and the nearest known key.
    """
    file = None
    values: dict[str, Any] = {}
    if path is not None:
        try:
            file = ExperimentFile(path, *read_yaml(path))
        except DataError as error:
            raise ExperimentError(str(error)) from error
        _checked(Experiment, file.values, str(path), file.lines)
        values.update(file.values)
    values.update((key, value) for key, value in options.items() if value is not None)
    values = copy.deepcopy(values)  # assignments must change neither the caller's values nor what the file said
    for assignment in sets:
        _assign(values, assignment)
    experiment = _checked(Experiment, values, COMMAND_LINE)
    experiment._file = file
    return experiment


def parse_assignment(assignment: str, example: str) -> tuple[str, Any]:
    """Key and value of a ``KEY=VALUE`` string; the value is read as YAML.

    Raises:
        ExperimentError: There is no ``=``, no key, or the value is no YAML.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ExperimentError(f"--set {assignment}: expected KEY=VALUE, as in {example}")
    try:
        return key.strip(), yaml.load(text, Loader=Yaml)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise ExperimentError(
            f"--set {assignment}: the value is not valid YAML ({_problem(error)}); quote it?"
        ) from error


def _problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{getattr(error, 'problem', None) or error}" + (f", line {mark.line + 1}" if mark else "")


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers over earlier ones; mappings are merged key by key, anything else is replaced."""
    found: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = found.get(key)
            nested = isinstance(below, Mapping) and isinstance(value, Mapping)
            found[key] = merged(below, value) if nested else value  # type: ignore[arg-type]
    return found


def flattened(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Dotted key to value; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        found |= flattened(value, f"{place}{key}.") if nested else {f"{place}{key}": value}
    return found


def _checked(model: type[M], values: Any, source: str, lines: Lines | None = None, prefix: tuple[str, ...] = ()) -> M:
    try:
        return checked(model, values, source, lines, prefix)
    except DataError as error:
        raise ExperimentError(str(error)) from error


def _assign(values: dict[str, Any], assignment: str) -> None:
    key, value = parse_assignment(assignment, "method.lora.rank=16")
    parts = _join_names(values, key.split("."))
    if not all(parts):
        raise ExperimentError(f"--set {assignment}: expected a dotted key, as in method.lora.rank=16")
    inner = values
    for depth, part in enumerate(parts[:-1], 1):
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ExperimentError(f"--set {assignment}: `{'.'.join(parts[:depth])}` holds {inner!r}, not a section")
    inner[parts[-1]] = value


def _join_names(values: dict[str, Any], parts: list[str]) -> list[str]:
    """Names may hold dots (``my.card.yaml``): prefer the longest run of parts that the experiment already names."""
    if parts[0] not in {"method", "dataset", "backbone"}:
        return parts
    known = [
        name for key in (parts[0], parts[0] + "s") if isinstance(values.get(key), dict | list) for name in values[key]
    ]
    for stop in range(len(parts) - 1, 2, -1):
        if (name := ".".join(parts[1:stop])) in known:
            return [parts[0], name, *parts[stop:]]
    return parts
