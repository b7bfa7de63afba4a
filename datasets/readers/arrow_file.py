"""Arrow IPC files: opening them with an eye for what else a file of that name may be, and the pictures inside them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from PIL import Image

from petlbench.datasets.readers.stored_picture import decoded
from petlbench.datasets.split import DataError

MAGIC = b"ARROW1"
"""What an Arrow IPC file begins and ends with."""

COLUMNS = ("image", "caption", "image_id", "split", "path", "label")
"""Columns that something reads: ViLT's four, then those of IEFT and CUP, then petlbench's own."""

_CONVERT = "Convert it as docs/data_formats.md shows under `Files of another container`."
_OTHERS = {
    b"\xff\xff\xff\xff": f"an Arrow IPC stream, not an Arrow IPC file. {_CONVERT}",
    b"FEA1": f"a Feather file of version 1, not an Arrow IPC file. {_CONVERT}",
    b"PAR1": f"a Parquet file, not an Arrow IPC file. {_CONVERT}",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it by `git lfs pull`.",
}


@dataclass(frozen=True)
class ArrowImage:
    """A picture in the column ``image`` of an Arrow file.

    It holds its place only, so it travels to other processes; each process maps a file once.

    Attributes:
        path: The file.
        row: Row of the picture, from 0.
        name: Its ``image_id``.
    """

    path: Path
    row: int
    name: str

    def fingerprint(self) -> str:
        """Path, size and modification time of the file, and the row."""
        stat = _stat(self.path)
        return f"{self.path}|{stat.st_size}|{stat.st_mtime_ns}|{self.row}"

    def content(self) -> bytes:
        """Bytes of the picture file, as stored."""
        table = open_arrow(self.path)
        if self.row >= len(table) or str(table["image_id"][self.row].as_py()) != self.name:
            raise DataError(
                f"{self._place}: another picture stands there now, so the file was replaced while in use; run again"
            )
        return table["image"][self.row].as_py()

    def open(self) -> Image.Image:
        """Decode the whole picture (a truncated one is an error, never a half-grey picture)."""
        return decoded(self.content(), self._place)

    @property
    def _place(self) -> str:
        return f"{self.path}: row {self.row} ({self.name})"


def open_arrow(path: Path) -> pa.Table:
    """The table in an Arrow IPC file, memory-mapped: columns are read from disk when they are looked at.

    Raises:
        DataError: The file is missing, damaged, or of another kind (says of which, and what to do).
    """
    stat = _stat(path)
    return _mapped(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _mapped(path: Path, size: int, changed_ns: int) -> pa.Table:
    """The table; a file is mapped anew after it was replaced."""
    if size == 0:
        raise DataError(f"{path}: the file is empty; copy it again.")
    _check_kind(path)
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        # In full for the columns in use: a damaged offset must be an error here, not a crash when a row is looked at.
        table.select([name for name in table.column_names if name in COLUMNS]).validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:  # the last two: of damaged column names
        raise DataError(f"{path}: the Arrow file cannot be read ({error}); copy it again or write it anew.") from error
    return table


def _check_kind(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(64)
            file.seek(-min(path.stat().st_size, len(MAGIC)), os.SEEK_END)
            tail = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    for begin, kind in _OTHERS.items():
        if head.startswith(begin):
            raise DataError(f"{path}: {kind}")
    if not head.startswith(MAGIC):
        raise DataError(
            f"{path}: begins with {head[:8]!r}, expected an Arrow IPC file ({MAGIC!r}); fetch the right file."
        )
    if tail != MAGIC:
        raise DataError(f"{path}: the file is cut off (it does not end as an Arrow IPC file does); copy it again.")


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}). Check the data set's folder, --set dataset.NAME.root=FOLDER."
        ) from error
