"""Telling other processes that a file or folder of the cache is in use, and asking whether one is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where a mapped file cannot be removed anyway
    fcntl = None  # type: ignore[assignment]


class Hold:
    """A lock on a file that lasts as long as this object; the system lifts it when the process ends, however it ends."""

    def __init__(self, path: Path, file: int):
        """Take over an open file that is locked."""
        self._path = path
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the file itself: there the number of this one may be that of any other file."""
        return hold, (self._path,)

    def __del__(self) -> None:
        os.close(self._file)


def hold(path: Path, alone: bool = False) -> Hold | None:
    """Lock a file or folder, without waiting.

    Args:
        path: The file or folder.
        alone: Refuse to share it: a lock is only had where no other process holds one.

    Returns:
        The lock; None where the file is not there, is locked by others, or the file system knows no locks.
    """
    if fcntl is None:
        return None
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return Hold(path, file)


def is_held(path: Path) -> bool:
    """Whether a process holds a file; False where the file system knows no locks."""
    if fcntl is None:
        return False
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here
        return False
    finally:
        os.close(file)
    return False
