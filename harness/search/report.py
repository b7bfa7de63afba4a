"""What a study leaves behind when a run of the command ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from petlbench.harness.search.plots import write_plots
from petlbench.harness.search.run import Searched
from petlbench.harness.search.tables import write_tables
from petlbench.harness.search.tuned import write_best
from petlbench.harness.spec import Trial, file_name
from petlbench.harness.trackers import Tracker, tracker_callbacks


def publish_study(searched: Searched) -> list[Path]:
    """Write the tables and plots of the trials so far and, once the budget is spent, ``best.yaml``."""
    study = searched.study
    if not study.trials:
        return []
    paths = write_tables(study) + write_plots(study)
    if searched.complete and (best := write_best(study)) is not None:
        paths.append(best)
    return paths


def tracking(trackers: Sequence[Tracker], results: Path) -> Callable[[], list[Any]]:
    """Makes the callbacks of the trackers asked for, anew for each study."""
    return lambda: tracker_callbacks(trackers, results, _place, group="search")


def _place(trial: Any) -> str:
    spec = Trial.model_validate(trial.config["trial"]).spec
    study = f"search/{spec.dataset.name}/{spec.method.name}/{file_name(spec.backbone.name)}"
    return f"{study}/{trial.config['number']:04d}-{spec.spec_id[:8]}"
