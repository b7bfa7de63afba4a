"""One trial from spec to record: read it top to bottom and you know how a row of the board came about."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from petlbench.datasets.card import Card
from petlbench.datasets.split import Split
from petlbench.harness import adapters, audit, metrics
from petlbench.harness.checkpoint import Checkpoints, Progress
from petlbench.harness.data import SplitData, epoch_order, make_batch
from petlbench.harness.device import (
    choose_device,
    device_name,
    limit_memory,
    peak_memory,
    reset_peak_memory,
    seed_everything,
    tune_process,
)
from petlbench.harness.disk import DiskFull, room_for, why_full
from petlbench.harness.distributed.workers import in_workers, lost_worker
from petlbench.harness.evaluate import metrics_part, split_part
from petlbench.harness.failure import first_line, write_failure
from petlbench.harness.fit import Task, false_captions, fit
from petlbench.harness.json_files import stamp
from petlbench.harness.kept import NOTHING, keep
from petlbench.harness.leftovers import remove_half_written, remove_written, work_folder
from petlbench.harness.oom import memory_advice
from petlbench.harness.parts import Built, Parts, assemble, build
from petlbench.harness.provenance import now, provenance
from petlbench.harness.ranking import Ranking
from petlbench.harness.record import (
    CostPart,
    DataPart,
    EpochPart,
    ErrorPart,
    MethodPart,
    ParamsPart,
    Record,
    SelectionPart,
)
from petlbench.harness.record_files import RANKS_SUFFIX, good_record, path_of, write_record
from petlbench.harness.spec import Trial
from petlbench.methods import registry
from petlbench.methods.base import Method, count
from petlbench.methods.recipe import Recipe

UNSEEN = "unseen"
"""The caller knows of no record: whatever stands when it calls is to be replaced."""

_AUDIT_ROWS = 4


@dataclass(frozen=True)
class Trained:
    """A trial before its test split is opened.

    Attributes:
        parts: What it was put together from.
        built: The model, with the selected weights.
        ranking: Ranks the splits with it.
        progress: Curve and times of the fit.
        checks: What the audits said.
        pairs: Image-caption pairs that were trained on.
        base_size: Scalars of the untouched backbone.
        kept: Whether outputs of frozen modules were computed once and kept.
        cache_s: How long that took, seconds.
        peak_before: Peak memory until then, allocated and reserved, bytes.
        device: Where the model lies.
    """

    parts: Parts
    built: Built
    ranking: Ranking
    progress: Progress
    checks: dict[str, str]
    pairs: int
    base_size: int
    kept: bool
    cache_s: float
    peak_before: tuple[int, int]
    device: torch.device


def run_trial(
    trial: Trial, report: Callable[[dict[str, Any]], None] = lambda line: None, *, seen: str | None = UNSEEN
) -> Record:
    """Run a trial and write its record; a failure is recorded too, then raised.

    Where another process is running the same trial (a second driver, or the last worker of a killed one), this waits for
    it and takes its record.

    Args:
        trial: What to run.
        report: Called after every epoch.
        seen: :func:`petlbench.harness.json_files.stamp` of the record that is to be replaced, None where there was none: a good one
            with another stamp was written since, by another process, and is taken. By default the present one.

    Raises:
        DiskFull: There is no room for a checkpoint or the record. This is not recorded: the trial goes on where there is.
        Exception: Whatever else went wrong, after a record with status ``failed`` was written.
    """
    work = work_folder(trial)
    work.mkdir(parents=True, exist_ok=True)
    path = path_of(trial)
    started = now()
    seen = stamp(path) if seen == UNSEEN else seen
    with FileLock(str(work) + ".lock"):
        if stamp(path) not in (None, seen) and (theirs := good_record(path, trial.spec.spec_id)):
            return theirs
        remove_half_written(path)
        try:
            if trial.paths.workers > 1:
                record = in_workers(trial, RecordOf(path, work, started), report)
            else:
                record = _run(trial, path, Checkpoints(work), started, report)
        except DiskFull:
            raise
        except Exception as error:
            if (reason := why_full(error)) is not None:
                raise DiskFull(
                    f"{reason}: {first_line(str(error))}. Make room there; then the same command goes on where this one stopped"
                ) from error
            if not lost_worker(error):
                write_failure(trial, started, ErrorPart.of(error), path)
            raise
        _publish(record, path)
        Checkpoints(work).clear()
        return record


def _publish(record: Record, path: Path) -> None:
    """Give ranks, adapter and record their names, in this order: until here, what an earlier run of the trial left stands."""
    written_aside = write_record(record, path.with_name(f".{path.name}"))
    for name in record.artifacts.values():
        staged, final = path.with_name(f".{name}"), path.with_name(name)
        if final.is_dir():  # a folder cannot be renamed over another
            final.replace(path.with_name(f".{path.stem}.old"))
        staged.replace(final)
    written_aside.replace(path)
    kept = {path, *(path.with_name(name) for name in record.artifacts.values())}
    remove_half_written(path)
    remove_written(path, but=kept)


@dataclass(frozen=True)
class RecordOf:
    """What each worker does where several train one trial: all train, and the first one also tests."""

    path: Path
    work: Path
    started: str

    def __call__(self, trial: Trial, first: bool, report: Callable[[dict[str, Any]], None]) -> Record | None:
        """The record, from the first worker."""
        checkpoints = Checkpoints(self.work)
        if first:
            return _run(trial, self.path, checkpoints, self.started, report)
        train_and_select(trial, checkpoints, report)
        return None


def train_and_select(
    trial: Trial,
    checkpoints: Checkpoints,
    report: Callable[[dict[str, Any]], None],
    parts: Parts | None = None,
) -> Trained:
    """Everything that comes before the test split: data, backbone, method, audits, training, selection.

    Args:
        trial: What to train.
        checkpoints: Where epochs are saved.
        report: Called after every epoch.
        parts: From :func:`assemble`, where the caller has changed them.

    Raises:
        AuditError: The method does not keep its promises.
        TrainingError: Training cannot go on.
    """
    spec = trial.spec
    torch.set_num_threads(trial.paths.threads)
    device = choose_device()
    limit_memory(device, trial.paths.gpus_per_worker, trial.paths.gpu_reserve)
    tune_process(device)
    seed_everything(spec.seed)

    # Data, backbone, method: everything is found or refused before anything is computed.
    parts = parts or assemble(trial)
    method, backbone, recipe = parts.method, parts.backbone.to(device), parts.recipe
    checkpoints.code = registry.source_sha256(type(method))
    train = SplitData.open(parts.splits["train"], backbone, recipe.captions)
    select_on = "test" if spec.protocol.selection == "test_max" else "val"

    # Build, freeze, audit.
    false = false_captions(method, train.split, spec.seed, epoch=0)
    probe = make_batch(train, backbone, train_rows(train.split), recipe, device, false=false)
    before = audit.outputs_untouched(method, backbone, probe, device)
    expected = method.expected_trainable(backbone)
    base_size = sum(p.numel() for p in backbone.parameters())
    built = build(parts, spec.seed, device)
    model, trainable, new_heads = built.model, built.trainable, built.new_heads
    checks = {"count": audit.check_count(method, model, set(trainable) - new_heads, expected)}
    checks["identity_start"] = audit.check_identity(method, before, audit.outputs(method, model, probe, device))
    checks["gradients"] = (
        audit.check_gradients(method, model, set(trainable), probe) if method.trains else "nothing is trained"
    )
    frozen = audit.frozen_hash(model, set(trainable))

    # What frozen modules say of pictures and captions is computed once, where no augmentation changes the picture.
    began = time.perf_counter()
    ranking = Ranking(trial, parts, model, device, checkpoints.folder, report)
    trains = method.trains and recipe.epochs > 0
    kept = keep(parts, model, train, device, training=True) if trains else NOTHING
    select = ranking.open(select_on) if trains else None
    cache_s = time.perf_counter() - began

    # Train, select on validation.
    peak_before = peak_memory(device)
    reset_peak_memory(device)
    progress = Progress()
    if select is not None:
        whose = spec, method, model, backbone, trainable, new_heads, train, kept
        task = Task(*whose, lambda: ranking.rank(select).ranks, checkpoints, report, device)
        progress = fit(task, recipe)
    checks["frozen"] = audit.check_frozen(method, frozen, audit.frozen_hash(model, set(trainable)))

    pairs = sum(map(len, epoch_order(train.split, recipe.sampling, recipe.batch_size, spec.seed, 1)))
    return Trained(
        parts=parts,
        built=built,
        ranking=ranking,
        progress=progress,
        checks=checks,
        pairs=progress.epoch * pairs,
        base_size=base_size,
        kept=kept != NOTHING,
        cache_s=cache_s,
        peak_before=peak_before,
        device=device,
    )


def _run(
    trial: Trial, path: Path, checkpoints: Checkpoints, started: str, report: Callable[[dict[str, Any]], None]
) -> Record:
    spec = trial.spec
    with memory_advice(Recipe.model_validate(spec.train)):
        trained = train_and_select(trial, checkpoints, report)
    parts, built, progress, device = trained.parts, trained.built, trained.progress, trained.device
    method, backbone = parts.method, parts.backbone
    model, trainable, new_heads, ranking = built.model, built.trainable, built.new_heads, trained.ranking

    # The test split is opened here for the first time, and measured once.
    began = time.perf_counter()
    test = ranking.open("test")
    with memory_advice(parts.recipe):
        tested = ranking.rank(test, resumable=True, top=metrics.TOP)
    eval_s = progress.eval_s + time.perf_counter() - began
    allocated, reserved = peak_memory(device)

    query = ranking.query_cost(test, tested)

    # Under hidden names: they get their own when all is done, so that a forced run that fails leaves the old files as they were.
    ranks_name = path.stem + RANKS_SUFFIX
    path.parent.mkdir(parents=True, exist_ok=True)
    tested.ranks.save(path.with_name(f".{ranks_name}"))
    about = adapters.About(
        method=method.name,
        options=spec.method.options,
        backbone=spec.backbone.name,
        backbone_sha256=backbone.provenance.sha256,
        seed=spec.seed,
        spec_id=spec.spec_id,
        **adapters.conditions(parts.recipe, backbone, spec.backbone.options),
    )
    with room_for("the trained tensors", path.parent, 4 * count(model, trainable)):
        adapter = adapters.save_adapter(method, model, set(trainable), about, path.parent, f".{path.stem}")

    rule = spec.protocol.selection if method.trains else "none"
    total = sum(p.numel() for p in model.parameters())
    return Record(
        spec_id=spec.spec_id,
        status="ok",
        spec=spec.model_dump(mode="json"),
        method=_method_part(method, parts.origin),
        backbone=backbone.provenance.model_dump(mode="json"),
        data=_data_part(parts.card, parts.splits),
        selection=SelectionPart(
            rule=rule,
            epoch=progress.best_epoch,
            val_mR=progress.best_mR,
            budget_trials=trial.tuning.trials if trial.tuning else 1,
            study=trial.tuning.study if trial.tuning else None,
        ),
        metrics={"test": metrics_part(tested)},
        params=ParamsPart(
            trained=count(model, trainable),
            trained_new_heads=count(model, new_heads),
            total=total,
            added_at_inference=method.added_at_inference(total - trained.base_size),
            stored_bytes=adapters.stored_bytes(adapter) if adapter else 0,
        ),
        cost=CostPart(
            train_s=progress.train_s,
            train_cpu_s=progress.train_cpu_s if device.type == "cpu" else None,
            eval_s=eval_s,
            samples_per_s=trained.pairs / progress.train_s if progress.train_s else None,
            steps=progress.steps,
            peak_memory=progress.peak_memory if method.trains else allocated,
            peak_reserved=max(progress.peak_reserved, reserved) if device.type == "cuda" else None,
            memory_kind="cuda_allocated" if device.type == "cuda" else "process_resident",
            device=device_name(device),
            threads=trial.paths.threads,
            micro_batch=progress.micro_batch,
            workers=trial.paths.workers,
            concurrent_trials=trial.paths.concurrent_trials,
            gpu_share=trial.paths.gpus_per_worker or None,
            cached_features=trained.kept,
            cache_s=trained.cache_s,
            query=query,
        ),
        curve=[EpochPart(**line) for line in progress.curve],
        audit=trained.checks,
        notes=checkpoints.notes(),
        provenance=provenance(started, trial.paths.command),
        artifacts={"ranks": ranks_name, **({"weights": adapter.name.removeprefix(".")} if adapter else {})},
    )


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


def _method_part(method: Method, origin: str) -> MethodPart:
    return MethodPart(name=method.name, title=method.title, origin=origin, sha256=registry.source_sha256(type(method)))


def _data_part(card: Card, splits: dict[str, Split]) -> DataPart:
    found = {name: split_part(split, references=name == "test") for name, split in splits.items()}
    return DataPart(name=card.name, title=card.title, card_version=card.version, splits=found)
