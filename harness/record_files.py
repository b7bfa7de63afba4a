"""Where records lie, how they are found, read and written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petlbench.harness.disk import room_for
from petlbench.harness.json_files import RecordError, json_bytes, nan_at, read_json, validated, write_atomically
from petlbench.harness.record import Record, migrate
from petlbench.harness.record_scoring import Part
from petlbench.harness.spec import Trial, file_name

RECORD_SUFFIX = ".json"
RANKS_SUFFIX = ".ranks.npz"


def record_path(root: Path, spec: dict[str, Any], spec_id: str) -> Path:
    """``ROOT/<dataset>/<method>/<backbone>-s<seed>-<first 8 of spec_id>.json``."""
    name = f"{file_name(str(spec['backbone']['name']))}-s{spec['seed']}-{spec_id[:8]}{RECORD_SUFFIX}"
    return root / spec["dataset"]["name"] / spec["method"]["name"] / name


def ranks_path(path: Path, record: Record) -> Path:
    """The file of ranks that lies beside a record."""
    named = record.artifacts.get("ranks")
    return path.with_name(Path(named).name if named else path.name.removesuffix(RECORD_SUFFIX) + RANKS_SUFFIX)


def path_of(trial: Trial) -> Path:
    """Where the record of a trial lies or will lie."""
    return record_path(Path(trial.paths.results), trial.spec.model_dump(mode="json"), trial.spec.spec_id)


def write_record(record: Part, path: Path) -> Path:
    """Write atomically: a temporary file beside ``path``, flushed to disk, then renamed over it.

    Raises:
        RecordError: A number is NaN or infinite (not valid JSON); the message names its key. Nothing is written.
        DiskFull: There is no room; an older record stands.
        OSError: The folder cannot be written.
    """
    # Looked for before the dump to JSON types, which turns NaN inside free-form parts (spec, provenance) into null.
    if key := nan_at(record.model_dump()):
        raise RecordError(
            f"record for {path}: key `{key}` is NaN or infinite, expected a finite number or null; "
            "the trial diverged or a measurement failed, so record it as failed"
        )
    payload = json_bytes(record.model_dump(mode="json"))
    with room_for("a record", path.parent, len(payload)):
        write_atomically(path, payload)
    return path


def read_record(path: Path) -> Record:
    """Read, migrate and validate one record.

    Raises:
        RecordError: Naming the file, the key, what was found and what to do.
    """
    hint = "move it away (the trial will run again), or restore it from version control"
    payload = read_json(path, hint)
    if isinstance(payload, dict) and "transfer_version" in payload:
        raise RecordError(f"{path}: this is the record of a transfer; give that of the trial it transfers")
    if not isinstance(payload, dict) or "schema_version" not in payload:
        raise RecordError(f"{path}: no key `schema_version`, so this is not a petlbench record; {hint}")
    return validated(Record, migrate(payload, path), path, hint)


def good_record(path: Path, spec_id: str) -> Record | None:
    """The record at ``path`` if it is a finished one of the very trial with that ``spec_id``."""
    try:
        record = read_record(path)
    except (OSError, RecordError):
        return None  # absent or unusable: the trial runs
    return record if record.status == "ok" and record.spec_id == spec_id else None


def find_records(root: Path) -> Iterator[Path]:
    """Record files ``root/*/*/*.json``, sorted; hidden files and the folders ``schema`` and ``boards`` are left out."""
    if not root.is_dir():
        return
    for path in sorted(root.glob("*/*/*" + RECORD_SUFFIX)):
        relative = path.relative_to(root)
        if not any(part.startswith(".") for part in relative.parts) and relative.parts[0] not in {"schema", "boards"}:
            yield path
