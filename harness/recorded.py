"""Which trials of a plan have their record already, and what earlier ones took."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from petlbench.harness.experiment import ExperimentError
from petlbench.harness.json_files import RecordError, stamp
from petlbench.harness.record import Record
from petlbench.harness.record_files import find_records, path_of, read_record
from petlbench.harness.spec import Trial

RECORDED = "recorded"
"""State of a trial that has a valid record and is skipped."""

OTHER_CODE = "by another version of the method's file"
"""Note on a skipped trial."""


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
    """:func:`petlbench.harness.json_files.stamp` of what lay there; a good record with another was made since, by another run."""


def state_of(trial: Trial, force: bool, code: str) -> Planned:
    """A trial with the state of its record.

    Args:
        trial: Says where its record would lie.
        force: Run it in any case.
        code: SHA-256 of the method's file as it is now.

    Raises:
        ExperimentError: The record is corrupt, and may not be replaced.
    """
    path = path_of(trial)
    before = stamp(path)  # first: another run may write while this one reads
    return replace(_found(trial, path, force, code), before=before)


def _found(trial: Trial, path: Path, force: bool, code: str) -> Planned:
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
        if force:
            return Planned(trial, path, "to run", "forced")
        return Planned(trial, path, RECORDED, "" if record.method.sha256 == code else OTHER_CODE)
    return Planned(trial, path, "failed before", (record.error.message if record.error else record.status)[:200])


def _other_search(trial: Trial, record: Record) -> str:
    """A record says what was spent on finding its settings, so another search of the same outcome makes it anew."""
    tuning, found = trial.tuning, record.selection
    if tuning is None or found is None or (found.study, found.budget_trials) == (tuning.study, tuning.trials):
        return ""
    return f"recorded with a tuning budget of {found.budget_trials}, now {tuning.trials}"


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
