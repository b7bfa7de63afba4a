"""One trial from spec to record: read it top to bottom and you know how a row of the board came about."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from petlbench.datasets.card import Card
from petlbench.datasets.load import load
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import DataError, Split
from petlbench.harness import adapters, audit, metrics
from petlbench.harness.checkpoint import Checkpoints, Progress
from petlbench.harness.data import SplitData, make_batch
from petlbench.harness.device import (
    choose_device,
    device_name,
    peak_memory,
    reset_peak_memory,
    seed_everything,
    tune_process,
)
from petlbench.harness.evaluate import evaluate, metrics_part
from petlbench.harness.features import pooled_features, side_features
from petlbench.harness.fit import Study, fit
from petlbench.harness.metrics import Ranks
from petlbench.harness.provenance import now, provenance
from petlbench.harness.record import (
    RANKS_SUFFIX,
    CostPart,
    DataPart,
    EpochPart,
    ErrorPart,
    MethodPart,
    ParamsPart,
    Record,
    RecordError,
    SelectionPart,
    SplitPart,
    read_record,
    record_path,
    write_record,
)
from petlbench.harness.spec import Trial
from petlbench.methods import registry
from petlbench.methods.backbones.base import DualEncoder
from petlbench.methods.backbones.registry import load_backbone
from petlbench.methods.base import Method, MethodError, count, names_in
from petlbench.methods.recipe import LossConfig, Recipe

_AUDIT_ROWS = 4


@dataclass(frozen=True)
class Parts:
    """What a trial is put together from."""

    card: Card
    splits: dict[str, Split]
    backbone: DualEncoder
    method: Method
    recipe: Recipe
    origin: str

    @property
    def cached(self) -> bool:
        """Head-only methods never change what the towers put out, so it is computed once and shared by all trials."""
        varied = self.recipe.loss.needs_second_view or not self.recipe.augmentation.is_identity
        return self.method.head_only and not (self.method.trains and varied)


@dataclass(frozen=True)
class Built:
    """A method on its backbone, frozen except for what is trained.

    Attributes:
        model: What ``method.build`` returned.
        trainable: Names of all trained parameters, in the model's order.
        new_heads: Joining heads of unaligned towers among them, which every method trains.
    """

    model: nn.Module
    trainable: list[str]
    new_heads: set[str]


def run_trial(trial: Trial, report: Callable[[dict[str, Any]], None] = lambda line: None) -> Record:
    """Run a trial and write its record; a failure is recorded too, then raised.

    Where another process is running the same trial (a second driver, or the last worker of a killed one), this waits for
    it and takes its record.

    Raises:
        Exception: Whatever went wrong, after a record with status ``failed`` was written.
    """
    work = Path(trial.paths.work) / trial.spec.spec_id[:16]
    work.mkdir(parents=True, exist_ok=True)
    path = record_path(Path(trial.paths.results), trial.spec.model_dump(mode="json"), trial.spec.spec_id)
    started = now()
    asked = time.time()
    with FileLock(str(work) + ".lock"):
        if path.exists() and path.stat().st_mtime > asked and (theirs := good_record(path, trial)):
            return theirs
        try:
            record = _run(trial, path, Checkpoints(work), started, report)
        except Exception as error:
            write_failure(trial, started, error, path)
            raise
        write_record(record, path)
        Checkpoints(work).clear()
        return record


def _run(
    trial: Trial, path: Path, checkpoints: Checkpoints, started: str, report: Callable[[dict[str, Any]], None]
) -> Record:
    spec = trial.spec
    torch.set_num_threads(trial.paths.threads)
    device = choose_device()
    tune_process(device)
    seed_everything(spec.seed)

    # Data, backbone, method: everything is found or refused before anything is computed.
    parts = assemble(trial)
    method, backbone, recipe = parts.method, parts.backbone.to(device), parts.recipe
    select_on = "test" if spec.protocol.selection == "test_max" else "val"
    train = SplitData.open(parts.splits["train"], backbone, recipe.captions)
    select = SplitData.open(parts.splits[select_on], backbone, recipe.captions)

    began = time.perf_counter()
    if parts.cached and method.trains:
        pooled = [pooled_features(s, backbone, recipe.precision, device) for s in (train, select)]
        study = Study(train, select, train_pooled=pooled[0], select_pooled=pooled[1])
    else:
        study = Study(train, select)
    cache_s = time.perf_counter() - began

    # Build, freeze, audit.
    probe = make_batch(train, backbone, train_rows(train.split), recipe, device, pooled=study.train_pooled)
    before = audit.embed_untouched(backbone, probe, device)
    expected = method.expected_trainable(backbone)
    base_size = sum(p.numel() for p in backbone.parameters())
    built = build(parts, spec.seed, device)
    model, trainable, new_heads = built.model, built.trainable, built.new_heads
    checks = {"count": audit.check_count(method, model, set(trainable) - new_heads, expected)}
    checks["identity_start"] = audit.check_identity(method, before, audit.embed_for_audit(method, model, probe, device))
    checks["gradients"] = (
        audit.check_gradients(method, model, set(trainable), probe) if method.trains else "nothing is trained"
    )
    frozen = audit.frozen_hash(model, set(trainable))

    # What a frozen side network says of a picture is computed once, where no augmentation changes the picture.
    if method.trains and recipe.epochs and not parts.cached:
        began = time.perf_counter()
        whose = method, model, backbone, recipe.precision, device
        train_side = side_features(train, *whose) if recipe.augmentation.is_identity else None
        study = replace(study, train_side=train_side, select_side=side_features(select, *whose))
        cache_s += time.perf_counter() - began

    # Train, select on validation.
    reset_peak_memory(device)
    if method.trains:
        progress = fit(spec, recipe, method, model, backbone, trainable, new_heads, study, checkpoints, report, device)
    else:
        progress = Progress()
    checks["frozen"] = audit.check_frozen(method, frozen, audit.frozen_hash(model, set(trainable)))

    # The test split is opened here for the first time, and measured once.
    began = time.perf_counter()
    ranks = rank(parts, model, "test", device)
    eval_s = progress.eval_s + time.perf_counter() - began
    allocated, reserved = peak_memory(device)

    # Ranks and adapter first, so that a record never points at files that do not exist.
    ranks_path = path.with_name(path.stem + RANKS_SUFFIX)
    path.parent.mkdir(parents=True, exist_ok=True)
    ranks.save(ranks_path)
    about = adapters.About(
        method=method.name,
        options=spec.method.options,
        backbone=spec.backbone.name,
        backbone_sha256=backbone.provenance.sha256,
        seed=spec.seed,
        spec_id=spec.spec_id,
    )
    adapter = adapters.save_adapter(method, model, set(trainable), about, path.parent, path.stem)

    rule = spec.protocol.selection if method.trains else "none"
    total = sum(p.numel() for p in model.parameters())
    pairs = progress.steps * min(recipe.batch_size, len(train.split.captions))
    return Record(
        spec_id=spec.spec_id,
        status="ok",
        spec=spec.model_dump(mode="json"),
        method=_method_part(method, parts.origin),
        backbone=backbone.provenance.model_dump(mode="json"),
        data=_data_part(parts.card, parts.splits),
        selection=SelectionPart(rule=rule, epoch=progress.best_epoch, val_mR=progress.best_mR),
        metrics={"test": metrics_part(ranks)},
        params=ParamsPart(
            trained=count(model, trainable),
            trained_new_heads=count(model, new_heads),
            total=total,
            added_at_inference=method.added_at_inference(total - base_size),
            stored_bytes=adapters.stored_bytes(adapter) if adapter else 0,
        ),
        cost=CostPart(
            train_s=progress.train_s,
            eval_s=eval_s,
            samples_per_s=pairs / progress.train_s if progress.train_s else None,
            steps=progress.steps,
            peak_memory=progress.peak_memory if method.trains else allocated,
            peak_reserved=max(progress.peak_reserved, reserved) if device.type == "cuda" else None,
            memory_kind="cuda_allocated" if device.type == "cuda" else "process_resident",
            device=device_name(device),
            threads=trial.paths.threads,
            concurrent_trials=trial.paths.concurrent_trials,
            cached_features=parts.cached or study.train_side is not None,
            cache_s=cache_s,
        ),
        curve=[EpochPart(**line) for line in progress.curve],
        audit=checks,
        provenance=provenance(started, trial.paths.command),
        artifacts={"ranks": ranks_path.name, **({"weights": adapter.name} if adapter else {})},
    )


def assemble(trial: Trial) -> Parts:
    """Read the data set and build backbone and method, untrained.

    Raises:
        DataError: The data set is not what the plan saw.
        BackboneError: The weights are missing or do not fit.
        MethodError: The method refuses the backbone.
    """
    spec, paths = trial.spec, trial.paths
    card = load_card(paths.dataset_card)
    options = dict(spec.dataset.options)
    hashes = options.pop("splits", {})
    splits = load(card, paths.dataset_root, **{**options, **paths.dataset_paths})
    for name, expected in hashes.items():
        if splits[name].sha256 != expected:
            raise DataError(
                f"data set {card.name}: split {name} has changed since the trial was planned (pictures' names, captions or "
                f"their order: hash {splits[name].sha256[:12]}, then {expected[:12]}); restore it, or plan and run anew"
            )
    # A weight file's content is named in the spec, its place in the paths.
    backbone = load_backbone(spec.backbone.name, **{**spec.backbone.options, **paths.weights}, seed=spec.seed)
    sources = registry.discover(paths.plugins)
    cls = registry.load(sources[spec.method.name])
    recipe = Recipe.model_validate(spec.train)
    options = {**spec.method.options, **paths.method_files}
    method = cls(cls.Config.model_validate(options), LossConfig.model_validate(recipe.loss))
    if reason := method.refuse(backbone):
        raise MethodError(f"method {method.name} on {backbone.name}: {reason}")
    return Parts(card, splits, backbone, method, recipe, sources[spec.method.name].origin)


def build(parts: Parts, seed: int, device: torch.device) -> Built:
    """Build the method on the backbone, which lies on ``device``, with the initial weights of a seed, and freeze the rest.

    Raises:
        AuditError: The method names parameters that the model does not have.
    """
    method, backbone = parts.method, parts.backbone
    seed_everything(seed)
    model = method.build(backbone).to(device)
    new_heads = set(names_in(model, backbone, backbone.new_parameters())) if method.trains else set()
    own = set(method.trainable(model)) - new_heads
    audit.freeze_all_but(model, own | new_heads, method.name)
    return Built(model, [n for n, _ in model.named_parameters() if n in own or n in new_heads], new_heads)


def rank(parts: Parts, model: nn.Module, split: str, device: torch.device) -> Ranks:
    """Open a split and rank it with a built model."""
    data = SplitData.open(parts.splits[split], parts.backbone, parts.recipe.captions)
    precision = parts.recipe.precision
    pooled = pooled_features(data, parts.backbone, precision, device) if parts.cached else None
    return evaluate(parts.method, model, parts.backbone, data, precision, device, pooled)


def train_rows(split: Split) -> Any:
    """A few captions of different pictures and different strings, for the audits."""
    import numpy as np

    rows: list[int] = []
    seen_images: set[int] = set()
    seen_texts: set[int] = set()
    for row, (image, text) in enumerate(zip(split.owner.tolist(), split.text_ids.tolist(), strict=True)):
        if image not in seen_images and text not in seen_texts:
            rows.append(row)
            seen_images.add(image)
            seen_texts.add(text)
        if len(rows) == _AUDIT_ROWS:
            break
    return np.array(rows, dtype=np.int64)


def good_record(path: Path, trial: Trial) -> Record | None:
    """The record at ``path`` if it is a finished one of this very trial."""
    try:
        record = read_record(path)
    except (OSError, RecordError):
        return None  # absent or unusable: the trial runs
    return record if record.status == "ok" and record.spec_id == trial.spec.spec_id else None


def write_failure(trial: Trial, started: str, error: BaseException, path: Path) -> None:
    """Record a failure, but never over a good record of the same trial (a forced rerun may fail)."""
    if good_record(path, trial) is None:
        write_record(failed_record(trial, started, error), path)


def failed_record(trial: Trial, started: str, error: BaseException) -> Record:
    """The record of a trial that could not be finished."""
    name = trial.spec.method.name
    return Record(
        spec_id=trial.spec.spec_id,
        status="failed",
        spec=trial.spec.model_dump(mode="json"),
        method=MethodPart(name=name, title=name, origin="unknown", sha256=""),
        provenance=provenance(started, trial.paths.command),
        error=ErrorPart(
            type=type(error).__name__, message=str(error), traceback="".join(traceback.format_exception(error))
        ),
    )


def _method_part(method: Method, origin: str) -> MethodPart:
    return MethodPart(name=method.name, title=method.title, origin=origin, sha256=registry.source_sha256(type(method)))


def _data_part(card: Card, splits: dict[str, Split]) -> DataPart:
    found = {}
    for name, split in splits.items():
        part = SplitPart(
            images=len(split.images),
            captions=len(split.captions),
            distinct_captions=len(split.distinct),
            sha256=split.sha256,
        )
        if name == "test":
            part.ceiling = metrics.ceiling(split.owner, split.text_ids)
            if split.labels is not None:
                part.class_only = metrics.class_oracle(split.owner, split.labels)
        found[name] = part
    return DataPart(name=card.name, title=card.title, card_version=card.version, splits=found)
