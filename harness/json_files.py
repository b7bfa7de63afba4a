"""JSON files: written whole or not at all, read with errors that name the file, the key and the way out."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from petlbench.errors import PetlbenchError

M = TypeVar("M", bound=BaseModel)


class RecordError(PetlbenchError):
    """A file that should hold a record, or a transfer, is unreadable, invalid or of an unknown version."""


def json_bytes(payload: Any) -> bytes:
    """JSON as it is kept in files: one key a line, sorted, so that versions can be compared.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    return f"{json.dumps(payload, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)}\n".encode()


def write_atomically(path: Path, payload: bytes) -> None:
    """Write bytes so that a reader sees the old file or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def stamp(path: Path) -> str | None:
    """Tells one version of a file from another, by equality alone: clocks may jump. None where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return f"{found.st_mtime_ns}-{found.st_ino}-{found.st_size}"


def read_json(path: Path, hint: str) -> Any:
    """What a file holds.

    Args:
        path: The file.
        hint: What to do where it is damaged.

    Raises:
        RecordError: It is no JSON.
        OSError: It cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not a JSON record ({error}); {hint}") from error


def validated(model: type[M], payload: Any, path: Path, hint: str) -> M:
    """The content of a JSON file as a model.

    Raises:
        RecordError: Naming the file, the key, what was found and, by ``hint``, what to do.
    """
    if key := nan_at(payload):  # Python's reader takes NaN and 1e999, which JSON does not have
        raise RecordError(f"{path}: key `{key}` is NaN or infinite, expected a finite number or null; {hint}")
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found = "" if first["type"] == "missing" else f" (found {repr(first['input'])[:80]})"
        raise RecordError(f"{path}: key `{where}`: {first['msg']}{found}; {hint}") from error


def nan_at(payload: Any) -> str:
    """The key of the first NaN or infinity, ``""`` where there is none; keys are only spelled out where there is one."""
    return "" if _finite((payload,)) else _first_nan(payload)


def _finite(values: Iterable[Any]) -> bool:
    for value in values:
        if isinstance(value, float):
            if not math.isfinite(value):
                return False
        elif isinstance(value, dict):
            if not _finite(value.values()):
                return False
        elif isinstance(value, list | tuple) and not _finite(value):
            return False
    return True


def _first_nan(value: Any, place: str = "") -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return place or "."
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        if found := _first_nan(inner, f"{place}.{key}".lstrip(".")):
            return found
    return ""
