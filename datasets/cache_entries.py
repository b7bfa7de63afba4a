"""What lies in the cache folder: a list of its entries, and removing some of them.

Only what petlbench wrote there itself is listed or removed, by the names it gives; links are never followed, so that nothing
outside the folder is touched. An entry that a process makes or uses is left alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from petlbench.datasets.cache import LIBRARY, MANIFEST
from petlbench.datasets.hold import hold, is_held
from petlbench.datasets.split import DataError

KINDS = {
    "images": "prepared pictures of a split",
    "features": "outputs of frozen towers",
    "states": "what pair scorers keep of pictures and captions",
    "index": "which entry belongs to which picture files",
    "probes": "measured memory of methods",
    "shipped": "data and weights sent to this node",
    "huggingface": "files of the library datasets",
    "remains": "what killed processes left",
}
"""Kinds of entries, and what they are."""

_KEY = re.compile(r"[0-9a-f]{16,64}")
_REMAINS = {
    "images": re.compile(r"\.making-.+"),
    "features": re.compile(r".+\.tmp"),
    "states": re.compile(r".+\.making"),
    "shipped": re.compile(r"\.[0-9a-f]{32}-.+"),
}
_CLEARING = ".clearing-"
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_FILES = 200_000  # a folder with more is not one of ours


@dataclass(frozen=True)
class CacheEntry:
    """One thing in the cache.

    Attributes:
        kind: Key of :data:`KINDS`.
        path: File or folder.
        bytes: Its size on disk.
        used: When it was used or made last, seconds since 1970.
        belongs_to: What it was made from, in words.
        in_use: Whether a process makes or uses it now, as far as can be told.
    """

    kind: str
    path: Path
    bytes: int
    used: float
    belongs_to: str
    in_use: bool


def cache_entries(cache: Path, kinds: Sequence[str] = ()) -> list[CacheEntry]:
    """Entries of a cache folder, largest first.

    Args:
        cache: The folder; one that is not there has no entries.
        kinds: Only these; none: all.

    Raises:
        DataError: A kind is unknown.
    """
    if unknown := set(kinds) - KINDS.keys():
        raise DataError(f"kind {min(unknown)!r} is unknown; known: {', '.join(KINDS)}")
    found = [entry for entry in _entries(cache) if not kinds or entry.kind in kinds]
    return sorted(found, key=lambda entry: (-entry.bytes, str(entry.path)))


def remove_entry(entry: CacheEntry, cache: Path) -> bool:
    """Remove an entry, unless a process makes or uses it.

    Args:
        entry: From :func:`cache_entries`.
        cache: The same folder.

    Returns:
        Whether it is gone.

    Raises:
        DataError: It does not lie in the cache folder, or cannot be removed.
    """
    path = entry.path
    if path.is_symlink() or not path.resolve().is_relative_to(cache.resolve()) or path.resolve() == cache.resolve():
        raise DataError(f"{path}: does not lie in the cache folder {cache}; nothing was removed")
    place, used = _lock_of(entry.kind, path, cache), _used(entry.kind, path)
    try:
        place.parent.mkdir(exist_ok=True)
        with filelock.FileLock(place, timeout=0):
            alone = hold(used, alone=True)
            if alone is None and is_held(used):
                return False
            _remove(path)
    except filelock.Timeout:
        return False
    except FileNotFoundError:
        return True  # another process was faster
    except OSError as error:
        raise DataError(f"{path}: cannot be removed ({error.strerror or error}); mend the permissions") from error
    return True


def parse_age(text: str) -> float:
    """Seconds of an age such as ``30d``, ``12h`` or ``2w``.

    Raises:
        DataError: It is none.
    """
    match = _AGE.fullmatch(text.strip().lower())
    if match is None:
        raise DataError(f"age {text!r}: expected a number and s, m, h, d or w, e.g. 30d for thirty days")
    return float(match[1]) * _SECONDS[match[2]]


def _entries(cache: Path) -> Iterator[CacheEntry]:
    tellers: dict[str, Callable[[Path], str | None]] = {
        "images": _images,
        "features": _tensors,
        "states": _tensors,
        "index": lambda path: "" if _KEY.fullmatch(path.name) else None,
        "probes": _probe,
        "shipped": _shipped,
        "huggingface": _library,
    }
    for kind, tell in tellers.items():
        for path in _inside(cache if kind == "huggingface" else cache / kind):
            try:
                entry = _entry(kind, path, tell, cache)
            except FileNotFoundError:  # it went this moment
                continue
            if entry is not None:
                yield entry


def _entry(kind: str, path: Path, tell: Callable[[Path], str | None], cache: Path) -> CacheEntry | None:
    remains = path.name.startswith(_CLEARING) or (kind in _REMAINS and _REMAINS[kind].fullmatch(path.name))
    if (told := path.relative_to(cache).as_posix() if remains else tell(path)) is None:
        return None
    kind = "remains" if remains else kind
    size, used = _size(path)
    # The lock that is held while something is made is what filelock takes, by another name.
    busy = is_held(_lock_of(kind, path, cache)) or is_held(_used(kind, path))
    return CacheEntry(kind, path, size, used, told, in_use=busy)


def _inside(folder: Path) -> list[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.is_symlink())


def _images(folder: Path) -> str | None:
    if not _KEY.fullmatch(folder.name) or not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        count, side = manifest["shape"][:2]
        source = f" of {manifest['source']}" if "source" in manifest else ""
        return f"{manifest['split']}: {count:,} pictures at {side} px{source}"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged: no manifest that can be read"


def _tensors(path: Path) -> str | None:
    """What the head of a safetensors file says of it; see https://github.com/huggingface/safetensors."""
    if path.suffix != ".safetensors":
        return None
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            told: dict[str, Any] = json.loads(file.read(min(length, 2**24))).get("__metadata__") or {}
    except (OSError, ValueError, AttributeError):
        return "damaged: no head that can be read"
    words = [str(told[key]) for key in ("method", "backbone", "split") if key in told]
    return ", ".join([*words, *([f"images/{told['pictures'][:8]}"] if "pictures" in told else [])])


def _probe(path: Path) -> str | None:
    if path.suffix != ".json":
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("label", ""))
    except (OSError, ValueError, AttributeError):
        return "damaged: no JSON that can be read"


def _shipped(path: Path) -> str | None:
    if not _KEY.fullmatch(path.name) or not path.is_dir():
        return None
    return ", ".join(sorted(inner.name for inner in path.iterdir()))


def _library(path: Path) -> str | None:
    return "data sets of Hugging Face's hub and folders" if path.name == LIBRARY and path.is_dir() else None


def _lock_of(kind: str, path: Path, cache: Path) -> Path:
    """The lock that is held while an entry is made."""
    if kind == "images":
        return cache / "locks" / f"{path.name}.lock"
    if path.name.startswith(_CLEARING):
        return cache / "locks" / "clear.lock"
    if kind == "remains" and path.parent.name == "images":
        return cache / "locks" / f"{path.name.split('-')[1]}.lock"
    if kind == "remains" and path.parent.name == "shipped":
        return path.parent / f"{path.name[1:].split('-')[0]}.lock"
    if kind == "remains" and path.parent.name == "states":
        return path.with_suffix(".safetensors.lock")
    if kind in ("features", "states", "shipped"):
        return path.with_name(f"{path.name}.lock")
    return cache / "locks" / "clear.lock"


def _used(kind: str, path: Path) -> Path:
    """What is held while an entry is used."""
    return path / "images.npy" if kind == "images" else path


def _size(path: Path) -> tuple[int, float]:
    """Bytes, and the newest time of what belongs to it."""
    stat = path.stat()
    if not path.is_dir():
        return stat.st_size, stat.st_mtime
    size, used = 0, stat.st_mtime
    for number, inner in enumerate(path.rglob("*")):
        if number > _FILES:
            break
        found = inner.lstat()
        size += 0 if inner.is_dir() else found.st_size
        used = max(used, found.st_mtime)
    return size, used


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink()
        return
    if not path.name.startswith(_CLEARING):  # renamed first, so that half an entry is never taken for one
        path = path.rename(path.with_name(f"{_CLEARING}{path.name}-{os.getpid()}-{time.time_ns()}"))
    shutil.rmtree(path)
