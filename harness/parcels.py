"""Files and folders sent to the nodes of a cluster that do not see them: packed once, unpacked once per node.

A parcel is a tar stream in pieces, each an object of Ray's store. A node unpacks it into ``shipped/KEY/`` of its cache folder,
where KEY is the hash of the stream: what was sent before, by any run, is there already.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from petlbench.datasets.cache import cache_folder
from petlbench.datasets.hold import Hold, hold
from petlbench.errors import PetlbenchError

PIECE = 64 * 2**20
"""Bytes of an object in Ray's store."""


_IN_USE: dict[Path, Hold | None] = {}
"""What this process unpacked; `benchmark cache clear` leaves it alone until the process ends."""


class ParcelError(PetlbenchError):
    """What arrived is not what was sent."""


@dataclass(frozen=True)
class Parcel:
    """A packed file or folder.

    Attributes:
        name: Its own name, without the folders above it.
        key: SHA-256 of the stream.
        size: Bytes of the stream.
        pieces: References to Ray objects (in tests: the bytes themselves), in order.
    """

    name: str
    key: str
    size: int
    pieces: list[Any] = field(repr=False)


def pack(path: Path, store: Callable[[bytes], Any], piece: int = PIECE) -> Parcel:
    """Pack a file, or a folder with all that is in it; links are followed, times and owners left out.

    Args:
        path: What to pack.
        store: Takes a piece and returns what :func:`unpack` gets it back from, such as ``ray.put``.
        piece: Most bytes of a piece.

    Raises:
        OSError: Something cannot be read.
    """
    writer = _Pieces(store, piece)
    with tarfile.open(fileobj=writer, mode="w|", dereference=True) as tar:
        for inner in walk(path):
            tar.add(inner, (path.name / inner.relative_to(path)).as_posix(), recursive=False, filter=_plain)
    writer.finish()
    return Parcel(path.name, writer.digest.hexdigest(), writer.size, writer.pieces)


def walk(path: Path) -> list[Path]:
    """A file, or a folder and all that is in it, sorted; linked folders too, but none again inside of itself."""
    found = [path]
    for name, folders, files in os.walk(path, followlinks=True):
        here = Path(name)
        above = {here.resolve(), *here.resolve().parents}
        folders[:] = [one for one in folders if (here / one).resolve() not in above]
        found += [here / one for one in (*folders, *files)]
    return sorted(found)


def unpack(parcel: Parcel, fetch: Callable[[Any], bytes], cache: Path | None = None) -> Path:
    """The unpacked file or folder in this node's cache folder; unpacked on the first call, found on later ones.

    Processes that ask at once do the work once, and a killed one leaves nothing that is taken for complete.

    Raises:
        ParcelError: The pieces are not what was packed.
        OSError: The cache folder cannot be written.
    """
    folder = cache_folder(cache) / "shipped"
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / parcel.key[:32]
    with FileLock(str(whole) + ".lock"):
        for remains in folder.glob(f".{whole.name}-*"):
            shutil.rmtree(remains)
        if not whole.exists():
            fresh = Path(tempfile.mkdtemp(dir=folder, prefix=f".{whole.name}-"))
            try:
                reader = _Stream(map(fetch, parcel.pieces))
                with tarfile.open(fileobj=reader, mode="r|") as tar:
                    tar.extractall(fresh, filter="data")
                reader.drain()
                if reader.digest.hexdigest() != parcel.key:
                    raise ParcelError(f"{parcel.name} arrived damaged at {whole}; run the same command again")
                fresh.rename(whole)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
        _IN_USE[whole] = hold(whole)
    return whole / parcel.name


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Equal content gives an equal stream, whoever packs it and when."""
    entry.mtime = entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry


class _Pieces(io.RawIOBase):
    """Cuts what is written into pieces and stores them."""

    def __init__(self, store: Callable[[bytes], Any], piece: int):
        self.store, self.piece = store, piece
        self.pieces: list[Any] = []
        self.digest, self.size = hashlib.sha256(), 0
        self._open = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        self._open += data
        while len(self._open) >= self.piece:
            self.pieces.append(self.store(bytes(self._open[: self.piece])))
            del self._open[: self.piece]
        return len(data)

    def finish(self) -> None:
        if self._open:
            self.pieces.append(self.store(bytes(self._open)))
            self._open.clear()


class _Stream(io.RawIOBase):
    """Reads pieces as one file, one at a time in memory."""

    def __init__(self, pieces: Iterator[bytes]):
        self.pieces, self.digest = pieces, hashlib.sha256()
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts = []
        while size:
            if not self._rest:
                piece = next(self.pieces, None)
                if piece is None:
                    break
                self.digest.update(piece)
                self._rest = memoryview(piece)
            part = self._rest if size < 0 else self._rest[:size]
            parts.append(part)
            self._rest = self._rest[len(part) :]
            size -= len(part) if size > 0 else 0
        return b"".join(parts)

    def drain(self) -> None:
        while self.read(PIECE):
            pass


def write_files(files: Sequence[tuple[str, bytes]], root: Path) -> None:
    """Write files that a node sent, each atomically, records (``.json``) last.

    Args:
        files: Names relative to ``root``, with slashes, and contents.
        root: The results folder.

    Raises:
        ParcelError: A name leads out of the folder.
    """
    from petlbench.harness.json_files import write_atomically
    from petlbench.harness.record_files import RECORD_SUFFIX

    for name, content in sorted(files, key=lambda file: file[0].endswith(RECORD_SUFFIX) and file[0].count("/") == 2):
        place = root / name
        if not place.resolve().is_relative_to(root.resolve()):
            raise ParcelError(f"a node sent a file named {name}, which lies outside of {root}")
        write_atomically(place, content)
