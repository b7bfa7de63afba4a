"""From an experiment to a list of trials: every default resolved, every name checked, what is recorded left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petlbench.datasets.registry import is_path, load_card
from petlbench.datasets.split import Split
from petlbench.datasets.validation import suggest
from petlbench.harness.experiment import Experiment, ExperimentError
from petlbench.harness.plan_rerank import first_backbone, first_stage, protocol_of
from petlbench.harness.recorded import OTHER_CODE, RECORDED, Planned, state_of
from petlbench.harness.resolve import absolute, resolve_backbone, resolve_dataset, resolve_method
from petlbench.harness.resources import check_methods
from petlbench.harness.spec import Named, Paths, Trial, TrialSpec

if TYPE_CHECKING:
    from petlbench.harness.search.tuned import TunedConfigs
    from petlbench.methods.backbones.registry import BackboneInfo
    from petlbench.methods.base import Method

_SPELT = {"method": "method", "dataset": "data set", "backbone": "backbone"}


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

    results = Path(absolute(experiment.results))
    sources = registry.discover(experiment.plugins)
    names = registry.resolve(experiment.methods, sources)
    _known_sections(experiment, "method", sources)
    check_methods(experiment.resources, sources)
    known = [*experiment.backbones, *first_backbone(experiment)]
    _known_sections(experiment, "backbone", known, hint=" (or list it under `backbones`)")
    cards = {name: load_card(name) for name in dict.fromkeys(experiment.datasets)}
    _known_sections(
        experiment, "dataset", {*cards, *(c.name for c in cards.values())}, hint=" (or list it under `datasets`)"
    )
    plugins = [str(Path(p).expanduser().resolve()) for p in experiment.plugins]
    tuned = _tuned(experiment)

    # From the cheapest check to the dearest: options, weight files, captions.
    classes = {name: registry.load(sources[name]) for name in dict.fromkeys([*names, *experiment.method])}
    _known_preset(experiment.preset, {name: classes[name] for name in names})
    settings = {name: resolve_method(name, cls, experiment) for name, cls in classes.items()}
    codes = {name: registry.source_sha256(cls) for name, cls in classes.items()}
    backbones = [resolve_backbone(name, experiment) for name in dict.fromkeys(experiment.backbones)]

    planned: dict[str, Planned] = {}
    refused: dict[tuple[str, str], tuple[str, str, bool]] = {}
    notes: list[str] = []
    for dataset, card in cards.items():
        data, root, local, splits = resolve_dataset(dataset, card, experiment, notes)
        stage_of = cache(partial(first_stage, experiment, card.name, splits))
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
                config, recipe, files = settings[name]
                protocol, stage, reason = protocol_of(cls, info, experiment, stage_of)
                if reason:
                    refused[f"{name}/{card.name}/{info.name}", reason] = (name, card.name, False)
                    continue
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
                        dataset_card=absolute(dataset) if is_path(dataset) else dataset,
                        weights=weights,
                        method_files=files,
                        first_stage=stage,
                        plugins=plugins,
                        command=command or [],
                    )
                    of_set[spec.spec_id] = state_of(Trial(spec=spec, paths=paths, tuning=tuning), force, codes[name])
        if check_pictures and any(p.state != RECORDED for p in of_set.values()):
            for image in (image for split in splits.values() for image in split.images):
                image.fingerprint()  # touches the file's entry, not its content
        planned |= of_set
    fitting = {(p.trial.spec.method.name, p.trial.spec.dataset.name) for p in planned.values()}
    told = [
        line for line, (method, dataset, foreign) in refused.items() if not (foreign and (method, dataset) in fitting)
    ]
    if own := dict.fromkeys(p.trial.spec.method.name for p in planned.values() if _unheeded(classes, p.trial.spec)):
        what = "these methods have losses of their own" if len(own) > 1 else "this method has a loss of its own"
        notes.append(f"{', '.join(own)}: {what}, so train.loss changes nothing there")
    if others := [p.trial.spec.method.name for p in planned.values() if p.note == OTHER_CODE]:
        many = len(others) > 1
        notes.append(
            f"{len(others)} recorded trial{'s were' if many else ' was'} made by another version of {'their' if many else 'its'} "
            f"method's file ({', '.join(dict.fromkeys(others))}); --force runs {'them' if many else 'it'} again"
        )
    return Plan(list(planned.values()), told, [*notes, *(tuned.notes if tuned is not None else [])])


def _tuned(experiment: Experiment) -> TunedConfigs | None:
    if experiment.tuned is None:
        return None
    from petlbench.harness.search.tuned import TunedConfigs

    folders = [experiment.tuned] if isinstance(experiment.tuned, str) else experiment.tuned
    return TunedConfigs.read([Path(absolute(folder)) for folder in folders])


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


def _unheeded(classes: Mapping[str, type[Method]], spec: TrialSpec) -> bool:
    """Whether a loss was asked for that the method does not take."""
    from petlbench.methods.recipe import LossConfig

    return classes[spec.method.name].own_loss and spec.train.get("loss") != LossConfig().model_dump(mode="json")


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


def _known_sections(experiment: Experiment, what: str, known: Collection[str], hint: str = "") -> None:
    for name in getattr(experiment, what):
        if name not in known:
            raise ExperimentError(
                f"{experiment.place(what, name)}: section `{what}.{name}`: this experiment has no {_SPELT[what]} `{name}`; "
                f"{suggest(name, known)}{hint}"
            )
