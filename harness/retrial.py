"""The trial that an evaluation is of: that of a record, or one that was never run. This machine says where things lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from petlbench.datasets.registry import load_card
from petlbench.harness.adapters import About
from petlbench.harness.experiment import EMBEDDED, ExperimentError, load_experiment, parse_assignment
from petlbench.harness.json_files import RecordError
from petlbench.harness.plan import make_plan
from petlbench.harness.provenance import command_line
from petlbench.harness.record import Record
from petlbench.harness.record_files import find_records, read_record
from petlbench.harness.resolve import HASHED, METHOD_FILES, PATH_OPTIONS, WEIGHT_OPTIONS, content_sha256
from petlbench.harness.spec import OWN, FirstStage, Paths, Trial, TrialSpec, canonical_sha256
from petlbench.methods import registry
from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.registry import describe_backbone
from petlbench.methods.backbones.weights_io import find_weights
from petlbench.methods.base import MethodError
from petlbench.methods.recipe import Recipe

RELEASED_PRESETS = ("official", "paper", "matched")
"""Presets in the order in which they are likely to be the form that authors released weights of."""


@dataclass(frozen=True)
class Places:
    """Where a record's inputs lie on this machine.

    Attributes:
        card: Path of the data set's card where it is not one of ours.
        dataset: ``root`` and options of the reader that are paths, by data set.
        backbone: Weight files by option, by backbone.
        method: Likewise, by method.
        plugins: Method files.
    """

    card: str | None = None
    dataset: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    backbone: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    method: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()

    @classmethod
    def from_sets(cls, sets: list[str], card: str | None = None, plugins: tuple[str, ...] = ()) -> Places:
        """From ``--set`` assignments, of which only those that say where something lies are allowed.

        Raises:
            ExperimentError: A key that would change the trial.
        """
        for assignment in sets:
            key, _ = parse_assignment(assignment, "dataset.ucm.root=DIR")
            section, _, rest = key.partition(".")
            places = {"dataset": ("root", *PATH_OPTIONS), "backbone": WEIGHT_OPTIONS, "method": METHOD_FILES}
            allowed = places.get(section, ())
            if rest.rpartition(".")[2] not in allowed:
                raise ExperimentError(
                    f"--set {assignment}: the record fixes everything but the places of files: dataset.NAME."
                    f"{{{','.join(('root', *PATH_OPTIONS))}}}, backbone.NAME.{{{','.join(WEIGHT_OPTIONS)}}} and method.NAME."
                    f"{','.join(METHOD_FILES)}"
                )
        given = load_experiment(None, sets)
        return cls(card, given.dataset, given.backbone, given.method, plugins)


def trial_of(record: Record, path: Path, places: Places) -> Trial:
    """The trial that a record came from, ready to be assembled again here.

    Raises:
        RecordError: The spec was edited, or made by a version with other settings.
        ExperimentError: A place is given for a data set or backbone that the record does not have.
        DataError: The data set's card is unknown.
        BackboneError: Weights that the record names by their hash are not found.
        UnknownMethod: The method's plugin was not given.
    """
    if canonical_sha256(record.spec) != record.spec_id:
        raise RecordError(f"{path}: `spec_id` is not the hash of `spec`, so the record was edited; restore it")
    spec = _readable(record, path, places)
    first = _first_record(spec, path)
    specs = [spec.model_dump(mode="json"), *([first[0].spec] if first is not None else [])]
    _known(places.dataset, [spec.dataset.name], "dataset")
    _known(places.backbone, [one["backbone"]["name"] for one in specs], "backbone")
    _known(places.method, [one["method"]["name"] for one in specs], "method")
    card = places.card or spec.dataset.name
    if (name := load_card(card).name) != spec.dataset.name:
        raise ExperimentError(f"--dataset {card} is the card of {name}; the record {path} is of {spec.dataset.name}")
    given = {key: value for key, value in places.dataset.get(spec.dataset.name, {}).items() if value is not None}
    root = given.pop("root", None)
    return Trial(
        spec=spec,
        paths=Paths(
            results=str(path.absolute().parent),
            work=str(path.absolute().parent),
            dataset_root=None if root is None else _absolute(root),
            dataset_paths={key: _absolute(value) for key, value in given.items()},
            dataset_card=card,
            weights=_weights(record, path, spec, places.backbone.get(spec.backbone.name, {})),
            method_files=_method_files(path, spec, places.method.get(spec.method.name, {})),
            plugins=list(places.plugins),
            first_stage=None if first is None else _first_stage(*first, places),
            threads=record.cost.threads if record.cost else 1,
        ),
    )


def trial_for(
    method: str,
    *,
    dataset: str | None = None,
    backbone: str | None = None,
    seed: int | None = None,
    preset: str | None = None,
    sets: list[str] | None = None,
    plugins: tuple[str, ...] = (),
    about: About | None = None,
) -> Trial:
    """A trial that says what weights from elsewhere are to be measured on; planned, never run.

    Args:
        method: Its name.
        dataset: A card's name or path; the embedded one where neither data set nor backbone is given.
        backbone: Likewise; else that of ``about``.
        seed: Seeds what a method draws at random and does not store; else that of ``about``, else 0.
        preset: Options to start from; else those of ``about``, else the first of :data:`RELEASED_PRESETS`.
        sets: ``--set`` assignments, which go over all of these.
        plugins: Method files.
        about: What a stored adapter says of itself.

    Raises:
        PetlbenchError: As :func:`petlbench.harness.plan.make_plan`, and where the method refuses the backbone.
    """
    sources = registry.discover(plugins)
    registry.resolve([method], sources)
    has = registry.load(sources[method]).presets
    said = about if about is not None and about.method == method and preset is None else None
    backbone = backbone or (about.backbone if about else None)
    asked = load_experiment(
        None if dataset or backbone else EMBEDDED,
        sets or (),
        methods=[method],
        method={method: said.options | _recipe_of(said)} if said else None,
        datasets=[dataset] if dataset else None,
        backbones=[backbone] if backbone else None,
        seeds=[seed if seed is not None else about.seed if about else 0],
        preset=preset or ("matched" if said else next(name for name in RELEASED_PRESETS if name in has)),
        plugins=list(plugins) or None,
    )
    plan = make_plan(asked, force=True, command=command_line())
    if not plan.planned:
        raise MethodError("; ".join(f"{label}: {reason}" for label, reason in plan.refused))
    return plan.planned[0].trial


def _recipe_of(about: About) -> dict[str, Any]:
    """What an adapter says of its recipe and evaluation depends on, as part of a method's section."""
    told = {"captions": about.captions, "precision": about.precision}
    known = {key: value for key, value in told.items() if value is not None}
    return {"train": known} if known else {}


def _readable(record: Record, path: Path, places: Places) -> TrialSpec:
    """The spec, if its settings mean something to this version of the code."""
    sources = registry.discover(places.plugins)
    registry.resolve([record.method.name], sources)
    cls = registry.load(sources[record.method.name])
    commit = (record.provenance.get("git") or {}).get("commit")
    # A training setting that has gone since does not matter any more; those that evaluation needs are checked below.
    train = {key: value for key, value in record.spec["train"].items() if key in Recipe.model_fields}
    try:
        spec = TrialSpec.model_validate({**record.spec, "train": train})
        cls.Config.model_validate(record.spec["method"]["options"])
        Recipe.model_validate(train)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordError(
            f"{path}: this version of {record.method.name} has no such setting: {'.'.join(map(str, first['loc']))} "
            f"({first['msg']}); evaluate it with the version that made it"
            + (f", commit {commit[:12]}" if commit else "")
        ) from error
    return spec


def _first_stage(record: Record, path: Path, places: Places) -> FirstStage:
    backbone, method = (record.spec[part]["name"] for part in ("backbone", "method"))
    own = replace(
        places,
        backbone={key: value for key, value in places.backbone.items() if key == backbone},
        method={key: value for key, value in places.method.items() if key == method},
    )
    return FirstStage(record=str(path.absolute()), trial=trial_of(record, path, own))


def _first_record(spec: TrialSpec, path: Path) -> tuple[Record, Path] | None:
    """The record that ranked first in a two-stage scoring, found by its identity in the same results folder."""
    rerank = spec.protocol.rerank
    if rerank is None or rerank.first == OWN:
        return None
    root = path.absolute().parents[2]
    for other in find_records(root):
        if other.stem.endswith(rerank.first[:8]):
            found = read_record(other)
            if found.spec_id == rerank.first:
                return found, other
    raise RecordError(
        f"{path}: its shortlist came from the trial {rerank.first[:12]}, whose record is not under {root}; put that record "
        "and its trained tensors there"
    )


def _known(sections: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    for given in sections:
        if given not in names:
            raise ExperimentError(
                f"--set {what}.{given}...: the record's {what} is {' or '.join(dict.fromkeys(names))}"
            )


def _weights(record: Record, path: Path, spec: TrialSpec, given: Mapping[str, Any]) -> dict[str, str]:
    """A local file or folder for each weight option that the spec names by hash."""
    name, options = spec.backbone.name, spec.backbone.options
    # One file may be needed to find the other: the joint model's own file says what else it takes.
    told = {**options, **{key: value for key, value in given.items() if value is not None}}
    found: dict[str, str] = {}
    for key, value in options.items():
        if key not in WEIGHT_OPTIONS or not str(value).startswith(HASHED):
            continue
        place = _place(record, name, told, key, given.get(key))
        if place is None:
            raise BackboneError(
                f"{path}: backbone {name} needs the file with {value} (called "
                f"{(record.backbone or {}).get('source', 'unknown')} then); give it with --set backbone.{name}.{key}=FILE"
            )
        _same_content(path, place, str(value), f"backbone.{name}.{key}")
        found[key] = str(place.absolute())
    return found


def _method_files(path: Path, spec: TrialSpec, given: Mapping[str, Any]) -> dict[str, str]:
    """A local file for each option of the method that the spec names by hash."""
    found: dict[str, str] = {}
    for key in METHOD_FILES:
        value, where = str(spec.method.options.get(key, "")), f"method.{spec.method.name}.{key}"
        if value.startswith(HASHED):
            if given.get(key) is None:
                raise BackboneError(
                    f"{path}: {spec.method.name} needs the file with {value}; give it with --set {where}=FILE"
                )
            place = find_weights(str(given[key]))
            _same_content(path, place, value, where)
            found[key] = str(place.absolute())
    return found


def _same_content(path: Path, place: Path, value: str, where: str) -> None:
    if (has := content_sha256(place)) != value.removeprefix(HASHED):
        raise BackboneError(
            f"{path}: {place} has sha256 {has[:12]}, the record was made with {value.removeprefix(HASHED)[:12]}; give that "
            f"file with --set {where}=FILE"
        )


def _place(record: Record, name: str, options: Mapping[str, Any], key: str, given: Any) -> Path | None:
    """What was given; else the backbone's own default; else a file of the recorded name among the known weights."""
    if given is not None:
        return find_weights(str(given))
    plain = {k: v for k, v in options.items() if not (k in WEIGHT_OPTIONS and str(v).startswith(HASHED))}
    for look in (
        lambda: Path(str(describe_backbone(name, **plain).options[key])),
        lambda: find_weights(str((record.backbone or {})["source"])),
    ):
        try:
            place = look()
        except (BackboneError, KeyError):
            continue  # not to be found this way; the caller says what is missing
        if place.exists():
            return place
    return None


def _absolute(path: Any) -> str:
    return str(Path(str(path)).expanduser().absolute())
