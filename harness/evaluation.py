"""Evaluating stored weights: those of a record, which must give the recorded metrics again, and those of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from petlbench.harness import adapters
from petlbench.harness.device import choose_device, device_name, tune_process
from petlbench.harness.evaluate import Evaluated, metrics_part
from petlbench.harness.json_files import RecordError
from petlbench.harness.metrics import METRIC_VERSION
from petlbench.harness.parts import Built, Parts, assemble, build
from petlbench.harness.provenance import now, provenance
from petlbench.harness.ranking import Ranking
from petlbench.harness.record import MetricsPart, Record
from petlbench.harness.record_files import read_record
from petlbench.harness.retrial import Places, trial_of
from petlbench.harness.spec import Trial
from petlbench.methods import registry
from petlbench.methods.backbones.weights_io import file_sha256, find_weights
from petlbench.methods.base import Method, MethodError, count
from petlbench.methods.official import load_official, read_official

EVALUATION_VERSION = 1
_BACKBONE_KEYS = ("sha256", "architecture", "activation", "resolution", "mean", "std")
"""Provenance of the backbone that must be the recorded one."""

Fill = Callable[[Parts, Built], dict[str, Any]]
"""Puts weights into a freshly built model and says where they came from."""


@dataclass(frozen=True)
class Comparison:
    """A record evaluated again.

    Attributes:
        path: The record.
        record: Its content.
        split: What was ranked.
        recorded: Metric to recorded percentage; empty where nothing was recorded for the split.
        found: The same metrics now, and all others of the split.
        notes: What differs from the recorded circumstances without forbidding the comparison.
    """

    path: Path
    record: Record
    split: str
    recorded: dict[str, float]
    found: dict[str, float]
    notes: tuple[str, ...]

    @property
    def differing(self) -> list[str]:
        """Metrics that are not exactly the recorded ones; the tolerance is zero."""
        return [key for key, value in self.recorded.items() if self.found.get(key) != value]

    @property
    def same(self) -> bool | None:
        """Whether every recorded metric came out again; None where there is nothing to compare with."""
        return not self.differing if self.recorded else None


@dataclass(frozen=True)
class Rebuilt:
    """A trial with its trained weights, ready to rank."""

    trial: Trial
    parts: Parts
    built: Built
    device: torch.device

    def rank(self, split: str, top: int = 0) -> Evaluated:
        """Rank a split and keep the first answers of every query."""
        ranking = Ranking(self.trial, self.parts, self.built.model, self.device)
        return ranking.rank(ranking.open(split), top=top)


def evaluate_record(path: Path, places: Places, split: str = "test") -> Comparison:
    """Build the trial of a record again, load its adapter, and measure.

    Args:
        path: The record; its adapter lies beside it.
        places: Where data, weights and plugins lie on this machine.
        split: ``test``, or ``val``, of which only mR is recorded.

    Raises:
        RecordError: The record is unreadable, of a failed trial, or made by an incompatible version.
        AdapterError: The adapter is missing or does not fit.
        DataError: Data are missing, or are not those of the record.
        BackboneError: Weights are missing.
    """
    record = read_record(path)
    adapter = adapters.adapter_of(finished(record, path), path)
    recorded = _recorded(record, path, split)
    rebuilt = _of_record(record, path, places, adapter, split)
    found = _flat(metrics_part(rebuilt.rank(split)))
    return Comparison(path, record, split, recorded, found, tuple(_notes(record, rebuilt.parts)))


def rebuild(path: Path, record: Record, places: Places, split: str = "test") -> Rebuilt:
    """Build the trial of a record again and load its adapter.

    Args:
        path: The record; its adapter lies beside it.
        record: Its content.
        places: Where data, weights and plugins lie on this machine.
        split: The split that must be there.

    Raises:
        PetlbenchError: As :func:`evaluate_record`.
    """
    return _of_record(record, path, places, adapters.adapter_of(finished(record, path), path), split)


def finished(record: Record, path: Path) -> Record:
    """The record itself.

    Raises:
        RecordError: Its trial did not end well.
    """
    if record.status != "ok":
        raise RecordError(
            f"{path}: the trial has status `{record.status}`, so there is nothing to evaluate; run it again"
        )
    return record


def evaluate_official(trial: Trial, file: Path, split: str = "test") -> dict[str, Any]:
    """Measure weights that a method's authors released; complete, or not at all.

    Args:
        trial: Says method, options, backbone and data; it is not run, and no record is written.
        file: The released checkpoint.
        split: ``test`` or ``val``.

    Returns:
        What was measured and on what, as JSON values.

    Raises:
        MethodError: The method has no importer.
        OfficialError: A key is left over or missing, or a shape differs.
        BackboneError: The file is missing or damaged.
    """

    def fill(parts: Parts, built: Built) -> dict[str, Any]:
        state = read_official(found)
        mapped = parts.method.import_official(built.model, state)
        load_official(built.model, mapped, state, built.trainable)
        return {
            "kind": "official checkpoint",
            "layout": type(parts.method).official,
            "file": found.name,
            "sha256": file_sha256(found),
            "tensors": len(mapped),
            "dropped": state.dropped,
        }

    found = find_weights(file)
    return _report(trial, split, fill, _has_importer)


def evaluate_adapter(trial: Trial, path: Path, split: str = "test") -> dict[str, Any]:
    """Measure a stored adapter that needs no record beside it.

    Args:
        trial: Says method, options, backbone and data; it is not run, and no record is written.
        path: The adapter.
        split: ``test`` or ``val``.

    Raises:
        AdapterError: It is missing, damaged, of another method or backbone, or does not fit.
    """
    about = adapters.read_about(path)

    def check(parts: Parts) -> None:
        if about is not None and about.method != parts.method.name:
            raise adapters.AdapterError(f"{path} was trained as method {about.method}, not {parts.method.name}")
        if about is not None and about.backbone_sha256 != parts.backbone.provenance.sha256:
            raise adapters.AdapterError(
                f"{path} was trained on backbone {about.backbone} with weights {about.backbone_sha256[:12]}, this is "
                f"{parts.backbone.name} with {parts.backbone.provenance.sha256[:12]}; give the backbone it was trained on"
            )
        if about is not None:
            here = adapters.how_shown(parts.backbone)
            for key, value in about.shown.items():
                if here.get(key) != value:
                    raise adapters.AdapterError(
                        f"{path} was trained on backbone {about.backbone} with {key} {value}, this one has {here.get(key)}; give "
                        f"the backbone as it was then (resolution: --set backbone.{parts.backbone.name}.resolution=N)"
                    )

    def fill(parts: Parts, built: Built) -> dict[str, Any]:
        tensors = adapters.load_adapter(parts.method, built.model, built.trainable, path)
        said = None if about is None else about.model_dump(mode="json")
        return {"kind": "adapter", "file": path.name, "tensors": tensors, "about": said}

    return _report(trial, split, fill, check)


def _of_record(record: Record, path: Path, places: Places, adapter: Path | None, split: str) -> Rebuilt:
    def fill(parts: Parts, built: Built) -> dict[str, Any]:
        if adapter is not None:
            adapters.load_adapter(parts.method, built.model, built.trainable, adapter)
        return {}

    def check(parts: Parts) -> None:
        check_same_backbone(parts, record.backbone or {}, path)

    return _rebuilt(trial_of(record, path, places), split, fill, check)[0]


def _rebuilt(trial: Trial, split: str, fill: Fill, check: Callable[[Parts], None]) -> tuple[Rebuilt, dict[str, Any]]:
    """Assemble and build as a trial does, and fill."""
    torch.set_num_threads(trial.paths.threads)
    device = choose_device()
    tune_process(device)
    parts = assemble(trial)
    if split not in parts.splits:
        raise MethodError(f"data set {parts.card.name} has no split {split}; it has {', '.join(parts.splits)}")
    check(parts)
    parts.backbone.to(device)
    built = build(parts, trial.spec.seed, device)
    return Rebuilt(trial, parts, built, device), fill(parts, built)


def _report(trial: Trial, split: str, fill: Fill, check: Callable[[Parts], None]) -> dict[str, Any]:
    started = now()
    rebuilt, source = _rebuilt(trial, split, fill, check)
    parts, built, part = rebuilt.parts, rebuilt.built, metrics_part(rebuilt.rank(split))
    cls = type(parts.method)
    return {
        "evaluation_version": EVALUATION_VERSION,
        "method": {"name": cls.name, "title": cls.title, "origin": parts.origin, "sha256": registry.source_sha256(cls)},
        "weights": source,
        "spec": trial.spec.model_dump(mode="json", exclude={"engine", "protocol", "version"}),
        "backbone": parts.backbone.provenance.model_dump(mode="json"),
        "split": split,
        "metrics": part.model_dump(mode="json"),
        "params": {
            "trained": count(built.model, built.trainable),
            "total": sum(p.numel() for p in built.model.parameters()),
        },
        "device": device_name(choose_device()),
        "provenance": provenance(started, trial.paths.command),
    }


def _has_importer(parts: Parts) -> None:
    if type(parts.method).import_official is Method.import_official:
        known = ", ".join(name for name, source in registry.discover().items() if registry.load(source).official)
        raise MethodError(
            f"method {parts.method.name} has no importer for released weights; methods that have one: {known or 'none'}"
        )


def _recorded(record: Record, path: Path, split: str) -> dict[str, float]:
    if split == "val":
        chosen = record.selection
        on_val = chosen is not None and chosen.rule in ("best_val", "last") and chosen.val_mR is not None
        return {"mR": float(chosen.val_mR)} if on_val and chosen and chosen.val_mR is not None else {}
    part = record.metrics.get(split)
    if part is None:
        raise RecordError(f"{path}: no metrics of split {split} were recorded")
    if part.metric_version != METRIC_VERSION:
        raise RecordError(
            f"{path}: measured with version {part.metric_version} of the metrics, this petlbench has {METRIC_VERSION}; "
            "the two cannot be compared, run the trial again"
        )
    return _flat(part)


def _flat(part: MetricsPart) -> dict[str, float]:
    """Recalls of the main rule under their own names, of the others as ``RULE.NAME``."""
    others = {f"{rule}.{key}": value for rule, values in part.other_rules.items() for key, value in values.items()}
    return {**part.recalls, **others}


def check_same_backbone(parts: Parts, recorded: dict[str, Any], path: Path) -> None:
    """See that the weights found here are those of the record.

    Raises:
        RecordError: They differ; the message says in what.
    """
    now_ = parts.backbone.provenance.model_dump(mode="json")
    for key in _BACKBONE_KEYS:
        if key in recorded and recorded[key] != now_[key]:
            raise RecordError(
                f"{path}: backbone {parts.backbone.name} has {key} {now_[key]}, the record {recorded[key]} (weights "
                f"{recorded.get('source', 'unknown')}); give the recorded weights with --set "
                f"backbone.{parts.backbone.name}.weights=FILE"
            )


def _notes(record: Record, parts: Parts) -> list[str]:
    notes = []
    here = device_name(choose_device())
    if record.cost is not None and record.cost.device != here:
        notes.append(f"recorded on {record.cost.device}, evaluated on {here}: sums may round differently")
    theirs, ours = record.provenance.get("packages", {}).get("torch"), torch.__version__
    if theirs is not None and theirs.partition("+")[0] != ours.partition("+")[0]:
        notes.append(f"recorded with torch {theirs}, evaluated with {ours}: sums may round differently")
    if record.method.sha256 != registry.source_sha256(type(parts.method)):
        notes.append(f"the file of method {record.method.name} has changed since")
    return notes
