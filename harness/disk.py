"""Full disks: what the system, torch and safetensors call by many names is told by one, with the folder and the way out."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from petlbench.errors import PetlbenchError

MIB = 2**20

_ERRNOS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file may not be larger",
}
_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "file write failed",  # torch's writer, which does not say why
    "unexpected pos",  # likewise, when it closes the file
)


class DiskFull(PetlbenchError):
    """Nothing more can be written; what stood there before stands. It says nothing about the trial that met it."""


@contextmanager
def room_for(what: str, folder: Path, needed: int) -> Iterator[None]:
    """Within this block, an error because of a full disk becomes :class:`DiskFull`.

    Args:
        what: What is written, for the message.
        folder: Where.
        needed: About how many bytes that takes.

    Raises:
        DiskFull: Naming the folder, what was to be written and what is free.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if (reason := why_full(error)) is None:
            raise
        place = next((p for p in (folder, *folder.parents) if p.exists()), folder)
        raise DiskFull(
            f"{what} cannot be written to {folder}: {reason} ({_size(needed)} wanted, "
            f"{_size(shutil.disk_usage(place).free)} free). Make room there, or move the folder and name its new place with "
            "--results; then the same command goes on where this one stopped"
        ) from error


def why_full(error: BaseException) -> str | None:
    """What an error, or one that it came from, says of a full disk; None where it says nothing of the kind."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _ERRNOS:
            return _ERRNOS[seen.errno]
        if any(word in str(seen) for word in _WORDS):
            return _ERRNOS[errno.EFBIG if "File too large" in str(seen) else errno.ENOSPC]
        seen = seen.__cause__ or seen.__context__
    return None


def _size(size: int) -> str:
    return f"{size / MIB:,.1f} MiB" if size >= MIB / 10 else f"{size:,} bytes"
