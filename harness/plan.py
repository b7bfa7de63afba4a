"""From an experiment to a list of trials: every default resolved, every name checked, what is recorded left out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlbench.datasets.card import Card
from petlbench.datasets.load import load
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import SPLITS, DataError
from petlbench.datasets.validation import checked, suggest
from petlbench.harness.experiment import Experiment, ExperimentError
from petlbench.harness.record import RecordError, find_records, read_record, record_path
from petlbench.harness.spec import Named, Paths, Trial, TrialSpec

WEIGHT_OPTIONS = ("weights", "text_weights")
"""Backbone options that may name local files; their content, not their path, enters the spec."""


@dataclass(frozen=True)
class Planned:
    """One trial of a plan."""

    trial: Trial
    path: Path
    """Where its record lies or will lie."""
    state: str
    """``recorded`` (skipped), ``failed before`` or ``to run``."""
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """All trials of an experiment, and the combinations that make no sense."""

    planned: list[Planned]
    refused: list[tuple[str, str]]
    """Label of a combination and the reason it is left out."""

    @property
    def to_run(self) -> list[Planned]:
        """What has no valid record yet."""
        return [p for p in self.planned if p.state != "recorded"]


def make_plan(experiment: Experiment, *, force: bool = False, command: list[str] | None = None) -> Plan:
    """Resolve an experiment.

    Args:
        experiment: What was asked for.
        force: Run again what is already recorded.
        command: The command line, for the records.

    Raises:
        ExperimentError: An unknown method, data set, backbone, preset or option (with the nearest known name), or a
            corrupt record in the results folder, which must be dealt with before anything runs.
    """
    from petlbench.methods import registry
    from petlbench.methods.backbones.registry import describe_backbone

    results = Path(experiment.results).expanduser().absolute()
    sources = registry.discover(experiment.plugins)
    names = registry.resolve(experiment.methods, sources)
    _known_sections(experiment.method, sources, "method")
    _known_sections(experiment.dataset, experiment.datasets, "dataset", hint="list it under `datasets` too")
    _known_sections(experiment.backbone, experiment.backbones, "backbone", hint="list it under `backbones` too")
    classes = {name: registry.load(sources[name]) for name in names}
    plugins = [str(Path(p).resolve()) for p in experiment.plugins]

    planned: list[Planned] = []
    refused: list[tuple[str, str]] = []
    for dataset in experiment.datasets:
        card, data, root = _dataset(dataset, experiment)
        for backbone_name in experiment.backbones:
            info = describe_backbone(backbone_name, **experiment.backbone.get(backbone_name, {}))
            backbone, weights = _backbone(backbone_name, info.options)
            for name, cls in classes.items():
                reason = _refusal(cls, info)
                if reason:
                    refused.append((f"{name}/{card.name}/{backbone_name}", reason))
                    continue
                config, recipe = _method(name, cls, experiment)
                # A method that trains nothing gives the same numbers for every seed.
                for seed in experiment.seeds if cls.trains else experiment.seeds[:1]:
                    spec = TrialSpec(
                        method=Named(name=name, options=config),
                        dataset=data,
                        backbone=backbone,
                        train=recipe,
                        engine=experiment.engine,
                        protocol=experiment.protocol,
                        seed=seed,
                    )
                    paths = Paths(
                        results=str(results),
                        work=str(results / ".work"),
                        dataset_root=root,
                        dataset_card=str(Path(dataset).expanduser().absolute())
                        if dataset.endswith((".yaml", ".yml"))
                        else dataset,
                        weights=weights,
                        plugins=plugins,
                        command=command or [],
                    )
                    planned.append(_state(Trial(spec=spec, paths=paths), results, force))
    return Plan(planned, refused)


def _dataset(name: str, experiment: Experiment) -> tuple[Card, Named, str | None]:
    card = load_card(name)
    given = dict(experiment.dataset.get(name, {}))
    root = given.pop("root", None)
    if root is not None:
        root = str(Path(root).expanduser().absolute())
    # Reading now finds a missing file or an unknown option before anything is started, and ties the identity of every
    # trial to the pictures' names, captions and ownership rather than to where they lie.
    splits = load(card, root, **given)
    for needed in SPLITS:
        if needed not in splits:
            raise ExperimentError(
                f"data set {card.name} has no {needed} split (it has: {', '.join(splits)}); training needs train, "
                "selection needs val, and the board needs test. Choose a card or an option that splits it"
            )
    hashes = {name: split.sha256 for name, split in splits.items()}
    return card, Named(name=card.name, options={**card.options, **given, "splits": hashes}), root


def _backbone(name: str, options: Mapping[str, Any]) -> tuple[Named, dict[str, str]]:
    """Replace local weight paths by file name and hash, so that a spec means the same on every machine."""
    from petlbench.methods.backbones.weights_io import file_sha256

    resolved = dict(options)
    weights: dict[str, str] = {}
    for key in WEIGHT_OPTIONS:
        given = resolved.get(key)
        path = Path(str(given)).expanduser() if given else None
        if path is not None and path.exists():
            weights[key] = str(path.absolute())
            digest = file_sha256(path) if path.is_file() else _folder_sha256(path)
            resolved[key] = f"{path.name}@sha256:{digest}"
    return Named(name=name, options=resolved), weights


def _folder_sha256(folder: Path) -> str:
    from petlbench.methods.backbones.weights_io import file_sha256

    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _method(name: str, cls: Any, experiment: Experiment) -> tuple[dict[str, Any], dict[str, Any]]:
    from petlbench.methods.recipe import Recipe

    if experiment.preset not in cls.presets:
        raise ExperimentError(
            f"method {name} has no preset {experiment.preset!r}; it has: {', '.join(cls.presets)}. "
            "Choose one of these, or leave the method out"
        )
    preset = cls.presets[experiment.preset]
    own = dict(experiment.method.get(name, {}))
    own_train = own.pop("train", {})
    if not isinstance(own_train, dict):
        raise ExperimentError(f"method.{name}.train must be a section, found {own_train!r}")
    try:
        config = checked(cls.Config, {**preset.method, **own}, f"method.{name}")
        recipe = checked(
            Recipe, {**preset.train, **experiment.train, **own_train}, f"train (common, or method.{name}.train)"
        )
    except DataError as error:
        raise ExperimentError(str(error)) from error
    if not cls.trains:  # the recipe of a method without training must not split its results
        recipe = Recipe(epochs=0)
    return config.model_dump(mode="json"), recipe.model_dump(mode="json")


def _refusal(cls: Any, info: Any) -> str | None:
    if info.kind not in cls.kinds:
        return f"works on backbones of kind {', '.join(cls.kinds)}, not {info.kind}"
    if cls.needs_alignment and not info.aligned:
        return f"the towers of {info.name} were never trained together, so without training the scores mean nothing"
    return None


def _state(trial: Trial, results: Path, force: bool) -> Planned:
    path = record_path(results, trial.spec.model_dump(mode="json"), trial.spec.spec_id)
    if not path.exists():
        return Planned(trial, path, "to run")
    try:
        record = read_record(path)
    except RecordError as error:
        if force:
            return Planned(trial, path, "to run", "replaces a corrupt record")
        raise ExperimentError(f"{error}; or give --force to run this trial again") from error
    if record.spec_id != trial.spec.spec_id:
        return Planned(trial, path, "to run", "the file there belongs to another trial")
    if record.status == "ok":
        return Planned(trial, path, "to run" if force else "recorded", "forced" if force else "")
    return Planned(trial, path, "failed before", (record.error.message if record.error else record.status)[:200])


def _known_sections(sections: Mapping[str, Any], known: Any, what: str, hint: str = "") -> None:
    for name in sections:
        if name not in known:
            raise ExperimentError(
                f"section {what}.{name}: {what} `{name}` is not part of this experiment; {suggest(name, known)}"
                + (f" ({hint})" if hint else "")
            )


def seconds_of(results: Path) -> dict[tuple[str, str, str], float]:
    """Mean measured seconds per (method, dataset, backbone) of the records in a folder, for estimates."""
    times: dict[tuple[str, str, str], list[float]] = {}
    for path in find_records(results):
        try:
            record = read_record(path)
        except RecordError:
            continue  # `plan` only estimates; `leaderboard` reports corrupt records
        if record.cost is not None:
            key = (record.method.name, record.spec["dataset"]["name"], record.spec["backbone"]["name"])
            times.setdefault(key, []).append(record.cost.train_s + record.cost.eval_s)
    return {key: sum(values) / len(values) for key, values in times.items()}
