"""``best.yaml``: what a study found, and how a run takes it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from petlbench.datasets.split import DataError
from petlbench.datasets.validation import checked, read_yaml
from petlbench.harness.experiment import ExperimentError, flattened
from petlbench.harness.json_files import write_atomically
from petlbench.harness.provenance import now, packages
from petlbench.harness.search import space as spaces
from petlbench.harness.search.study import Study
from petlbench.harness.spec import Named, TrialSpec, Tuning
from petlbench.methods.base import Method

BEST = "best.yaml"

_HEAD = (
    "# The best configuration of a search on validation. `benchmark run --tuned` lays it over the preset and trains it on\n"
    "# other seeds; the trials behind it lie beside this file.\n"
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Found(_Part):
    """Where a configuration comes from."""

    id: str
    """Hash of the question, 64 hexadecimal digits."""
    searcher: str
    scheduler: str
    seed: int
    """Of the searched trials; a board must have others."""
    trials: dict[str, int]
    """Status to number of trials."""
    tried: int
    samples_seen: int
    """Image-caption pairs, all trials together."""
    seconds: float
    """Of the clock."""
    best_trial: int
    epoch: int | None
    val_mR: float
    """Of the best trial, percent."""
    preset_val_mR: float | None
    """Of the preset's own settings, which are the first trial."""


class Best(_Part):
    """Content of ``best.yaml``."""

    schema_version: Literal[1] = 1
    method: str
    dataset: str
    backbone: str
    preset: str
    config: dict[str, Any]
    """Searched key to value; empty where the method has nothing to search."""
    study: Found
    splits: dict[str, str]
    """SHA-256 of the training and validation splits."""
    backbone_options: dict[str, Any]
    """Resolved, local files by their content."""
    fixed: dict[str, Any]
    """``options`` of the method and ``train`` that were the same in all trials."""
    versions: dict[str, str]
    date: str = Field(default_factory=now)


def write_best(study: Study) -> Path | None:
    """Write what a finished study found; None where no trial has a score.

    Raises:
        OSError: The folder cannot be written.
    """
    best = study.best()
    if best is None or best.best_mR is None:
        return None
    question = study.about.question
    base = question.base
    first = study.trials[0]
    content = Best(
        method=base.method.name,
        dataset=base.dataset.name,
        backbone=base.backbone.name,
        preset=study.about.preset,
        config=best.config,
        study=Found(
            id=study.about.study_id,
            searcher=question.searcher,
            scheduler=question.scheduler,
            seed=base.seed,
            trials={status: n for status in ("ok", "pruned", "failed") if (n := study.count(status))},
            tried=len(study.trials),
            samples_seen=sum(trial.samples_seen for trial in study.trials),
            seconds=study.state.spent_s,
            best_trial=best.number,
            epoch=study.chosen_epoch(best),
            val_mR=best.best_mR,
            preset_val_mR=first.best_mR if first.status == "ok" else None,
        ),
        splits=base.dataset.options["splits"],
        backbone_options=base.backbone.options,
        fixed=_fixed(base, question.space),
        versions=packages(),
    )
    path = study.folder / BEST
    text = _HEAD + yaml.safe_dump(content.model_dump(mode="json"), sort_keys=False, width=110)
    write_atomically(path, text.encode())
    return path


def _fixed(spec: TrialSpec, searched: Mapping[str, Any]) -> dict[str, Any]:
    flat = flattened(spec.method.options, "method.") | flattened(spec.train, "train.")
    return {key: value for key, value in flat.items() if key not in searched}


@dataclass
class TunedConfigs:
    """The best configurations below folders of studies.

    Attributes:
        folders: Where they were read.
        found: Path and content of every ``best.yaml``.
        notes: What a run should say of those it took.
    """

    folders: Sequence[Path]
    found: list[tuple[Path, Best]]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folders: Sequence[Path]) -> TunedConfigs:
        """Read every ``best.yaml`` in or below some folders.

        Raises:
            ExperimentError: There is none in one of them, or one is damaged.
        """
        found: dict[Path, Best] = {}
        for folder in folders:
            if not folder.is_dir():
                raise ExperimentError(f"tuned: {folder}: no such folder; `benchmark search METHOD ...` makes one")
            paths = sorted(folder.rglob(BEST))
            if not paths:
                raise ExperimentError(
                    f"tuned: {folder}: no {BEST} in or below it; a search writes one when its budget is spent"
                )
            for path in paths:
                try:
                    values, lines = read_yaml(path)
                    found[path] = checked(Best, values, str(path), lines)
                except DataError as error:
                    raise ExperimentError(f"{error}; restore the file, or search again") from error
        return cls(folders, list(found.items()))

    def lay_over(
        self,
        cls: type[Method],
        data: Named,
        backbone: Named,
        options: dict[str, Any],
        train: dict[str, Any],
        seeds: Sequence[int],
    ) -> tuple[dict[str, Any], dict[str, Any], Tuning | None]:
        """A method's resolved options and recipe with the configuration that its search found.

        Args:
            cls: The method.
            data: The data set as it enters the spec.
            backbone: Likewise.
            options: What the method has without a search.
            train: Likewise.
            seeds: Of the board.

        Returns:
            Options, recipe, and the search they come from; None where the method has nothing to search.

        Raises:
            ExperimentError: No study, or several, fit; or the searched seed is one of ``seeds``.
        """
        space = spaces.checked_space(cls)
        path, best = self._for(cls.name, data, backbone, options, train, optional=not space) or (None, None)
        if best is None:
            return options, train, None
        if best.study.seed in seeds:
            raise ExperimentError(
                f"tuned: seed {best.study.seed} is that of the search that found {path}; a configuration chosen on a seed "
                "flatters it, so give the board other seeds (--seed)"
            )
        if len(best.config) != len(space) or best.config.keys() != space.keys():
            raise ExperimentError(
                f"{path}: it sets {', '.join(best.config) or 'nothing'}, but the space of {cls.name} is now "
                f"{', '.join(space) or 'empty'}; search again"
            )
        options, train = spaces.applied(best.config, cls, options, train)
        return options, train, Tuning(study=best.study.id, trials=best.study.tried)

    def _for(
        self,
        method: str,
        data: Named,
        backbone: Named,
        options: dict[str, Any],
        train: dict[str, Any],
        optional: bool,
    ) -> tuple[Path, Best] | None:
        label = f"{method}/{data.name}/{backbone.name}"
        named = [
            (path, best)
            for path, best in self.found
            if (best.method, best.dataset, best.backbone) == (method, data.name, backbone.name)
        ]
        splits = data.options["splits"]
        fitting = [
            (path, best)
            for path, best in named
            if best.backbone_options == backbone.options and all(splits[k] == v for k, v in best.splits.items())
        ]
        if not fitting:
            if optional:
                return None
            if named:
                raise ExperimentError(
                    f"tuned: {named[0][0]} was searched on other data or another backbone than {label} has now (splits "
                    "or weights differ); search again"
                )
            raise ExperimentError(
                f"tuned: no search of {label} in {', '.join(map(str, self.folders))}; run `benchmark search {method} "
                f"--dataset {data.name} --backbone {backbone.name}` first, or leave the method out"
            )
        here = flattened(options, "method.") | flattened(train, "train.")
        exact = [item for item in fitting if not _differing(item[1], here)]
        chosen = exact or fitting
        if len(chosen) > 1:
            listed = ", ".join(str(path.parent) for path, _ in chosen)
            raise ExperimentError(
                f"tuned: several searches of {label} fit: {listed}; name the one to take with "
                "--tuned-from, once for every method"
            )
        path, best = chosen[0]
        if differing := _differing(best, here):
            told = ", ".join(f"{key} {best.fixed.get(key)} then, {here.get(key)} now" for key in differing[:5])
            self.notes.append(f"{label} was searched under other settings ({path}): {told}")
        return path, best


def _differing(best: Best, here: Mapping[str, Any]) -> list[str]:
    keys = {*best.fixed, *here} - set(best.config)
    return sorted(key for key in keys if best.fixed.get(key) != here.get(key))
