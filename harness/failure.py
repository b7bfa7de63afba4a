"""An error on its way: from a worker to Ray Tune as a report, from there into a record and a line of the display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petlbench.harness.provenance import provenance
from petlbench.harness.record import ErrorPart, MethodPart, Record
from petlbench.harness.record_files import good_record, write_record
from petlbench.harness.spec import Trial


def report_of(error: BaseException) -> dict[str, Any]:
    """The last report of a trial that raised."""
    part = ErrorPart.of(error)
    return {"failed": 1, **{f"error_{key}": value for key, value in part}}


def error_in(report: Mapping[str, Any]) -> ErrorPart:
    """What such a report says."""
    return ErrorPart(**{key: report[f"error_{key}"] for key in ErrorPart.model_fields})


def first_line(text: str, empty: str = "(no message)") -> str:
    """The first line with anything in it."""
    return next((line for line in text.strip().splitlines() if line.strip()), empty)


def write_failure(trial: Trial, started: str, error: ErrorPart, path: Path) -> None:
    """Record a failure, but never over a good record of the same trial (a forced rerun may fail)."""
    if good_record(path, trial.spec.spec_id) is not None:
        return
    name = trial.spec.method.name
    record = Record(
        spec_id=trial.spec.spec_id,
        status="failed",
        spec=trial.spec.model_dump(mode="json"),
        method=MethodPart(name=name, title=name, origin="unknown", sha256=""),
        provenance=provenance(started, trial.paths.command),
        error=error,
    )
    write_record(record, path)
