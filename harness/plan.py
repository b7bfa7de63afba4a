"""From an experiment to a list of trials: every default resolved, every name checked, what is recorded left out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petlbench.datasets.card import Card
from petlbench.datasets.layout import find_root, settle
from petlbench.datasets.load import load
from petlbench.datasets.registry import is_path, load_card, options_model
from petlbench.datasets.split import SPLITS, Split
from petlbench.datasets.validation import suggest
from petlbench.harness.experiment import Experiment, ExperimentError, merged
from petlbench.harness.record import Record, RecordError, find_records, read_record, record_path, stamp
from petlbench.harness.resources import check_methods
from petlbench.harness.spec import OWN, FirstStage, Named, Paths, ProtocolConfig, Trial, TrialSpec, with_hashes

if TYPE_CHECKING:
    from petlbench.harness.search.tuned import TunedConfigs
    from petlbench.methods.backbones.registry import BackboneInfo
    from petlbench.methods.base import Method

WEIGHT_OPTIONS = ("weights", "text_weights")
"""Backbone options that may name local files; their content, not their path, enters the spec."""

JOINT_KINDS = ("vilt",)
"""Kinds of backbone that score pairs and have no dual encoder inside."""

HASHED = "sha256:"
"""Begins the value of an option that stands for a file by its content."""

METHOD_FILES = ("prior_weights",)
"""Likewise the options of a method that may name the weights of a frozen network beside the backbone."""

PATH_OPTIONS = ("annotations", "image_dir", "val_images", "val_list", "karpathy_json")
"""Data set options that may name files outside the set's folder."""

RECORDED = "recorded"
"""State of a trial that has a valid record and is skipped."""

_SPELT = {"method": "method", "dataset": "data set", "backbone": "backbone"}


@dataclass(frozen=True)
class Planned:
    """One trial of a plan."""

    trial: Trial
    path: Path
    """Where its record lies or will lie."""
    state: str
    """``recorded`` (skipped), ``failed before`` or ``to run``."""
    note: str = ""
    before: str | None = None
    """:func:`petlbench.harness.record.stamp` of what lay there; a good record with another one was made since by another run."""


@dataclass(frozen=True)
class Plan:
    """All trials of an experiment, and the combinations that make no sense."""

    planned: list[Planned]
    refused: list[tuple[str, str]]
    """Label of a combination and the reason it is left out."""
    notes: list[str] = field(default_factory=list)
    """What the user should know before it runs."""

    @property
    def to_run(self) -> list[Planned]:
        """What has no valid record yet."""
        return [p for p in self.planned if p.state != RECORDED]


def make_plan(
    experiment: Experiment, *, force: bool = False, command: list[str] | None = None, check_pictures: bool = False
) -> Plan:
    """Resolve an experiment.

    Args:
        experiment: What was asked for.
        force: Run again what is already recorded.
        command: The command line, for the records.
        check_pictures: See that every picture of a data set with something to run is there, those of the test split too,
            which a trial opens last.

    Raises:
        DataError: A data set's files are missing or wrong.
        ExperimentError: An unknown method, data set, backbone, preset or option (with the nearest known name), or a
            corrupt record in the results folder, which must be dealt with before anything runs.
    """
    from petlbench.methods import registry

    results = Path(experiment.results).expanduser().absolute()
    sources = registry.discover(experiment.plugins)
    names = registry.resolve(experiment.methods, sources)
    _known_sections(experiment, "method", sources)
    check_methods(experiment.resources, sources)
    _known_sections(experiment, "backbone", experiment.backbones, hint=" (or list it under `backbones`)")
    cards = {name: load_card(name) for name in dict.fromkeys(experiment.datasets)}
    _known_sections(
        experiment, "dataset", {*cards, *(c.name for c in cards.values())}, hint=" (or list it under `datasets`)"
    )
    plugins = [str(Path(p).resolve()) for p in experiment.plugins]
    tuned = _tuned(experiment)

    # From the cheapest check to the dearest: options, weight files, captions.
    classes = {name: registry.load(sources[name]) for name in dict.fromkeys([*names, *experiment.method])}
    _known_preset(experiment.preset, {name: classes[name] for name in names})
    settings = {name: _method(name, cls, experiment) for name, cls in classes.items()}
    backbones = [_backbone(name, experiment) for name in dict.fromkeys(experiment.backbones)]

    planned: dict[str, Planned] = {}
    refused: dict[tuple[str, str], tuple[str, str, bool]] = {}
    notes: list[str] = []
    for dataset, card in cards.items():
        data, root, local, splits = _dataset(dataset, card, experiment, notes)
        of_set: dict[str, Planned] = {}  # by spec id, so that a seed given twice runs once
        for info, backbone, weights in backbones:
            for name in names:
                cls = classes[name]
                reason = _refusal(cls, info, experiment.preset)
                if reason:
                    # Where an experiment has several kinds of backbone, each method is for some of them; that is no news.
                    foreign = info.kind not in cls.kinds
                    refused[f"{name}/{card.name}/{info.name}", reason] = (name, card.name, foreign)
                    continue
                config, recipe = settings[name]
                protocol, stage, reason = _rerank(cls, info, card.name, splits, experiment)
                if reason:
                    refused[f"{name}/{card.name}/{info.name}", reason] = (name, card.name, False)
                    continue
                config, files = _by_content(config, METHOD_FILES)
                tuning = None
                if tuned is not None:
                    config, recipe, tuning = tuned.lay_over(cls, data, backbone, config, recipe, experiment.seeds)
                workers = experiment.resources.workers_of(name)
                if reason := _undivided(cls, recipe, splits["train"], workers, f"{name}/{card.name}/{info.name}"):
                    refused[f"{name}/{card.name}/{info.name}", reason] = (name, card.name, False)
                    continue
                # A method that trains nothing gives the same numbers for every seed.
                for seed in experiment.seeds if cls.trains else experiment.seeds[:1]:
                    spec = TrialSpec(
                        method=Named(name=name, options=config),
                        dataset=data,
                        backbone=backbone,
                        train=recipe,
                        engine=experiment.engine,
                        protocol=protocol,
                        seed=seed,
                    )
                    paths = Paths(
                        results=str(results),
                        work=str(results / ".work"),
                        dataset_root=root,
                        dataset_paths=local,
                        dataset_card=_absolute(dataset) if is_path(dataset) else dataset,
                        weights=weights,
                        method_files=files,
                        first_stage=stage,
                        plugins=plugins,
                        command=command or [],
                    )
                    of_set[spec.spec_id] = _state(Trial(spec=spec, paths=paths, tuning=tuning), results, force)
        if check_pictures and any(p.state != RECORDED for p in of_set.values()):
            for image in (image for split in splits.values() for image in split.images):
                image.fingerprint()  # touches the file's entry, not its content
        planned |= of_set
    fitting = {(p.trial.spec.method.name, p.trial.spec.dataset.name) for p in planned.values()}
    told = [
        line for line, (method, dataset, foreign) in refused.items() if not (foreign and (method, dataset) in fitting)
    ]
    return Plan(list(planned.values()), told, [*notes, *(tuned.notes if tuned is not None else [])])


def _tuned(experiment: Experiment) -> TunedConfigs | None:
    if experiment.tuned is None:
        return None
    from petlbench.harness.search.tuned import TunedConfigs

    return TunedConfigs.read(Path(experiment.tuned).expanduser().absolute())


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _dataset(
    name: str, card: Card, experiment: Experiment, notes: list[str]
) -> tuple[Named, str | None, dict[str, str], dict[str, Split]]:
    """The set as it enters the spec; its root folder; options that are absolute paths; its splits. Adds to ``notes``."""
    if name != card.name and name in experiment.dataset and card.name in experiment.dataset:
        raise ExperimentError(
            f"sections dataset.{name} and dataset.{card.name} speak of the same data set; join them into one"
        )
    section = name if name in experiment.dataset else card.name
    given = experiment.dataset.get(section, {})
    places = () if card.format == "scenes" else ("root", "format")
    settled = settle(card, given.get("root"), given, given.get("format"))
    options = experiment.checked_section(
        options_model(settled.card.format), "dataset", section, base=settled.card.options, leave=places
    ).model_dump(mode="json")
    # Resolved here: the workers of a cluster do not have this machine's environment.
    root = str(find_root(settled.card, given.get("root"))) if settled.card.files is not None else None
    # Reading now finds a missing file before anything is started, and ties the identity of every trial to the pictures'
    # names, captions and ownership rather than to where they lie.
    splits = load(settled.card, root, **options)
    for needed in SPLITS:
        if needed not in splits or not splits[needed].captions:
            raise ExperimentError(
                f"data set {card.name} has no {needed} split (it has: {', '.join(s for s in splits if splits[s].captions)}); "
                "training needs train, selection needs val, and the board needs test. Cut it by an option: val_list=FILE, "
                "val_share=0.1, test_share=0.1 or fold=1/5; or choose another card"
            )
    hashes = {name: split.sha256 for name, split in splits.items()}
    # Absolute paths belong to this machine: the spec keeps the last part only, the content is in the hashes.
    local = {key: str(options[key]) for key in PATH_OPTIONS if options.get(key) and Path(options[key]).is_absolute()}
    options |= {key: Path(value).name for key, value in local.items()}
    if settled.card.format != card.format:
        options["format"] = settled.card.format
    if settled.told:
        notes.append(settled.told)
    return Named(name=card.name, options=with_hashes(options, hashes)), root, local, splits


def _backbone(name: str, experiment: Experiment) -> tuple[BackboneInfo, Named, dict[str, str]]:
    """Replace local weight paths by their content's hash, so that a spec means the same on every machine."""
    from petlbench.methods.backbones.base import BackboneError
    from petlbench.methods.backbones.registry import BackboneConfig, describe_backbone

    section = experiment.backbone.get(name, {})
    if "name" in section:
        raise ExperimentError(
            f"{experiment.place('backbone', name, 'name')}: key `backbone.{name}.name` is unknown; the section's own name "
            "says which backbone it is"
        )
    experiment.checked_section(BackboneConfig, "backbone", name, base={"name": name})
    try:
        info = describe_backbone(name, **section)
    except BackboneError as error:
        if name not in experiment.backbone:
            raise
        raise ExperimentError(f"{experiment.place('backbone', name)}: {error}") from error
    resolved, weights = _by_content(info.options, WEIGHT_OPTIONS)
    return info, Named(name=name, options=resolved), weights


def _by_content(options: Mapping[str, Any], keys: Collection[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options with the hash of each local file in place of its path, and the paths."""
    resolved, files = dict(options), {}
    for key in keys:
        given = resolved.get(key)
        path = Path(str(given)).expanduser() if given else None
        if path is not None and path.exists():
            files[key] = str(path.absolute())
            resolved[key] = f"{HASHED}{content_sha256(path)}"
    return resolved, files


def content_sha256(path: Path) -> str:
    """Hash of a weight file, or of the names and contents of all files in a folder."""
    from petlbench.methods.backbones.weights_io import file_sha256

    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for inner in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{inner.relative_to(path).as_posix()}\0{file_sha256(inner)}\n".encode())
    return digest.hexdigest()


def _method(name: str, cls: type[Method], experiment: Experiment) -> tuple[dict[str, Any], dict[str, Any]]:
    """Resolved options and recipe: the method's preset, then the common ``train`` section, then the method's own."""
    from petlbench.methods.base import Preset
    from petlbench.methods.recipe import Recipe

    preset = cls.presets.get(experiment.preset, Preset())
    config = experiment.checked_section(cls.Config, "method", name, base=preset.method, leave=("train",))
    common = merged(preset.train, experiment.checked_section(Recipe, "train").model_dump(exclude_unset=True))
    recipe = experiment.checked_section(Recipe, "method", name, "train", base=common)
    if not cls.trains:  # the recipe of a method without training must not split its results
        recipe = Recipe(epochs=0)
    return config.model_dump(mode="json"), recipe.model_dump(mode="json")


def _rerank(
    cls: type[Method], info: BackboneInfo, dataset: str, splits: dict[str, Split], experiment: Experiment
) -> tuple[ProtocolConfig, FirstStage | None, str | None]:
    """The protocol of one method, what ranks first in it, and why that cannot be."""
    from petlbench.methods.pair import PairMethod

    asked = experiment.protocol.rerank
    if asked is None or not issubclass(cls, PairMethod):  # a dual encoder's own ranking is exact
        return experiment.protocol.model_copy(update={"rerank": None}), None, None
    if asked.first == OWN:
        if info.kind in JOINT_KINDS:
            reason = (
                f"protocol.rerank.first is `{OWN}`, but {info.name} has no dual encoder of its own; give the record of one "
                "on the same data set, protocol.rerank.first=RECORD.json"
            )
            return experiment.protocol, None, reason
        return experiment.protocol, None, None
    stage = _first_stage(Path(asked.first).expanduser().absolute(), dataset, splits, experiment)
    named = asked.model_copy(update={"first": stage.trial.spec.spec_id})
    return experiment.protocol.model_copy(update={"rerank": named}), stage, None


def _first_stage(path: Path, dataset: str, splits: dict[str, Split], experiment: Experiment) -> FirstStage:
    from petlbench.harness.retrial import Places, trial_of
    from petlbench.methods import registry
    from petlbench.methods.pair import PairMethod

    where = experiment.place("protocol", "rerank", "first")
    if not path.is_file():
        raise ExperimentError(
            f"{where}: key `protocol.rerank.first`: {path} is no file; expected `{OWN}` or the record (.json) of a dual "
            "encoder on the same data set, as `benchmark run` writes it"
        )
    record = read_record(path)
    if record.status != "ok" or record.data is None:
        raise ExperimentError(f"{where}: key `protocol.rerank.first`: the trial of {path} did not finish; run it again")
    same = record.data.name == dataset and all(
        name in splits and splits[name].sha256 == part.sha256 for name, part in record.data.splits.items()
    )
    if not same:
        raise ExperimentError(
            f"{where}: key `protocol.rerank.first`: {path} is of data set {record.data.name} with other splits than "
            f"{dataset} here; choose a record of the same data set and splits, or run one"
        )
    card = _own_card(experiment, dataset)
    section = experiment.dataset.get(dataset) or experiment.dataset.get(card or "", {})
    places = Places(
        card=card and _absolute(card),
        dataset={dataset: {key: value for key, value in section.items() if key in ("root", *PATH_OPTIONS)}},
        backbone={key: value for key, value in experiment.backbone.items() if key == record.spec["backbone"]["name"]},
        plugins=tuple(experiment.plugins),
    )
    trial = trial_of(record, path, places)
    cls = registry.load(registry.discover(experiment.plugins)[trial.spec.method.name])
    if issubclass(cls, PairMethod):
        raise ExperimentError(
            f"{where}: key `protocol.rerank.first`: {trial.spec.method.name} scores pairs itself; a first stage must be a "
            "dual encoder, whose scores of a whole split are cheap"
        )
    weights = record.artifacts.get("weights")
    if weights is not None and not path.with_name(weights).exists():
        raise ExperimentError(
            f"{where}: key `protocol.rerank.first`: the trained tensors {weights} of {path} are not beside it; they are not "
            "kept in version control, so run that trial again (--force) or copy them"
        )
    return FirstStage(record=str(path), trial=trial)


def _own_card(experiment: Experiment, dataset: str) -> str | None:
    """The card of a data set as the experiment names it, where that is by path; None for ours."""
    paths = [name for name in experiment.datasets if is_path(name)]
    return next((name for name in paths if load_card(name).name == dataset), None)


def _known_preset(preset: str, classes: Mapping[str, type[Method]]) -> None:
    known = {name for cls in classes.values() for name in cls.presets}
    if preset not in known:
        raise ExperimentError(f"none of the methods has a preset {preset!r}; {suggest(preset, known)}")


def _refusal(cls: type[Method], info: BackboneInfo, preset: str) -> str | None:
    if preset not in cls.presets:
        return f"has no preset {preset!r}, only {', '.join(cls.presets)}"
    if info.kind not in cls.kinds:
        return f"works on backbones of kind {', '.join(cls.kinds)}, not {info.kind}"
    if cls.needs_alignment and not info.aligned:
        return f"the towers of {info.name} were never trained together, so without training the scores mean nothing"
    return None


def _undivided(cls: type[Method], settings: Mapping[str, Any], train: Split, workers: int, label: str) -> str | None:
    """Why a method cannot train in several workers or pieces.

    Raises:
        ExperimentError: It can, but not with this batch size.
    """
    from petlbench.harness.distributed.shard import cannot_split, indivisible
    from petlbench.methods.recipe import Recipe

    recipe = Recipe.model_validate(settings)
    if not cls.trains:
        return None
    if (reason := cannot_split(cls, recipe, workers)) is not None:
        return reason
    pairs = len(set(train.owner.tolist())) if recipe.sampling == "image" else len(train.captions)
    if (reason := indivisible(recipe, pairs, workers)) is not None:
        raise ExperimentError(f"{label}: {reason}")
    return None


def _state(trial: Trial, results: Path, force: bool) -> Planned:
    path = record_path(results, trial.spec.model_dump(mode="json"), trial.spec.spec_id)
    before = stamp(path)  # first: another run may write while this one reads
    return replace(_found(trial, path, force), before=before)


def _found(trial: Trial, path: Path, force: bool) -> Planned:
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
        if (stale := _other_search(trial, record)) and not force:
            return Planned(trial, path, "to run", stale)
        return Planned(trial, path, "to run" if force else RECORDED, "forced" if force else "")
    return Planned(trial, path, "failed before", (record.error.message if record.error else record.status)[:200])


def _other_search(trial: Trial, record: Record) -> str:
    """A record says what was spent on finding its settings, so another search of the same outcome makes it anew."""
    tuning, found = trial.tuning, record.selection
    if tuning is None or found is None or (found.study, found.budget_trials) == (tuning.study, tuning.trials):
        return ""
    return f"recorded with a tuning budget of {found.budget_trials}, now {tuning.trials}"


def _known_sections(experiment: Experiment, what: str, known: Collection[str], hint: str = "") -> None:
    for name in getattr(experiment, what):
        if name not in known:
            raise ExperimentError(
                f"{experiment.place(what, name)}: section `{what}.{name}`: this experiment has no {_SPELT[what]} `{name}`; "
                f"{suggest(name, known)}{hint}"
            )


def seconds_of(results: Path) -> tuple[dict[tuple[str, str, str], float], list[str]]:
    """Mean measured seconds per (method, dataset, backbone) of the records in a folder, for estimates.

    Returns:
        The means, and what is wrong with the records that could not be read.
    """
    times: dict[tuple[str, str, str], list[float]] = {}
    problems: list[str] = []
    for path in find_records(results):
        try:
            record = read_record(path)
            if record.cost is None:
                continue
            key = (record.method.name, record.spec["dataset"]["name"], record.spec["backbone"]["name"])
        except RecordError as error:
            problems.append(str(error))
        except (KeyError, TypeError):
            problems.append(f"{path}: key `spec` names no data set or no backbone; move the file away or restore it")
        else:
            times.setdefault(key, []).append(record.cost.train_s + record.cost.cache_s + record.cost.eval_s)
    return {key: sum(values) / len(values) for key, values in times.items()}, problems
