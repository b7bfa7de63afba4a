"""Tar files as they are: members are read in place by their offset, nothing is unpacked."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from petlbench.datasets.readers.stored_picture import decoded
from petlbench.datasets.split import DataError

BLOCK = 512
"""Bytes of a block of a tar file; two blocks of zeros end it."""

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Member:
    """A file inside a tar file.

    Attributes:
        name: Its path there.
        offset: Where its bytes begin.
        size: How many they are.
    """

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarImage:
    """A picture inside a tar file; it holds its place only, so it travels to other processes.

    Attributes:
        path: The tar file.
        offset: Where the bytes of the picture begin.
        size: How many they are.
        name: What the set calls it.
    """

    path: Path
    offset: int
    size: int
    name: str

    def fingerprint(self) -> str:
        """Path, size and modification time of the tar file, and the place inside."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be read ({error.strerror}); it holds the picture {self.name}"
            ) from error
        return f"{self.path}|{stat.st_size}|{stat.st_mtime_ns}|{self.offset}|{self.size}"

    def content(self) -> bytes:
        """Bytes of the picture file, as stored."""
        return read_member(self.path, Member(self.name, self.offset, self.size))

    def open(self) -> Image.Image:
        """Decode the whole picture."""
        return decoded(self.content(), f"{self.path}: {self.name}")


def read_member(path: Path, member: Member) -> bytes:
    """The bytes of a member.

    Raises:
        DataError: The file cannot be read, or is shorter than it was.
    """
    try:
        with path.open("rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) < member.size:
        raise DataError(f"{path}: the file was replaced or cut off while in use ({member.name}); run again")
    return data


def members(path: Path) -> list[Member]:
    """The files inside, in order.

    Raises:
        DataError: The file is packed, damaged or cut off, or a member leads out of it or is a link.
    """
    try:
        with path.open("rb") as file:
            head = file.read(6)
            if not head:
                raise DataError(f"{path}: the file is empty; copy it again")
            for begin, kind in _PACKED.items():
                if head.startswith(begin):
                    raise DataError(
                        f"{path}: packed with {kind}, so that pictures cannot be found by their place; unpack it to a plain .tar"
                    )
            file.seek(0)
            found = []
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    _check(info, path)
                    if info.isfile():
                        found.append(Member(info.name, info.offset_data, info.size))
                file.seek(tar.offset)  # behind the last member, of whatever kind
            whole = file.read(BLOCK) == bytes(BLOCK)
    except (tarfile.TarError, OSError, EOFError) as error:
        told = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: the tar file cannot be read ({told}); it may be cut off: copy it again") from error
    if not whole:
        raise DataError(f"{path}: the tar file is cut off (it does not end as a tar file does); copy it again")
    return found


def _check(info: tarfile.TarInfo, path: Path) -> None:
    name = PurePosixPath(info.name)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{path}: the member {info.name!r} leads out of the folder; such a tar file is not read")
    if not (info.isfile() or info.isdir()):
        raise DataError(
            f"{path}: the member {info.name!r} is a link or a device, expected plain files; pack the set again with "
            "`tar --dereference`"
        )
