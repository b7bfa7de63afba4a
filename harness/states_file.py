"""Writes a safetensors file row by row, so that tensors larger than memory fit into it."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from petlbench.datasets.cache import CACHE_VARIABLE
from petlbench.datasets.split import DataError
from petlbench.methods.base import MethodError, States

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}


@dataclass(frozen=True)
class Entry:
    """One tensor of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of all rows; of the longest one, where ``ragged``."""
    ragged: bool

    @property
    def row(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass
class StatesLayout:
    """Names, types and shapes of what a file will hold; floating-point tensors are all stored as ``dtype``."""

    dtype: torch.dtype
    entries: dict[str, Entry] = field(default_factory=dict)

    def add(self, prefix: str, example: States, rows: int, ragged: Collection[str] = (), longer: int = 0) -> None:
        """Add the states of ``rows`` items.

        Args:
            prefix: Put before every name.
            example: The states of one item.
            rows: Number of items.
            ragged: Names of the tensors whose second dimension differs between items.
            longer: By how much it is longer in the longest item than in the example.

        Raises:
            MethodError: A tensor is of a type that is not stored.
        """
        for name, value in example.items():
            kind = self.dtype if value.is_floating_point() else value.dtype
            if kind not in _NAMES:
                raise MethodError(
                    f"states: {prefix}{name} is of type {kind}, which cannot be kept; use floating point, int64 or bool"
                )
            shape = list(value.shape[1:])
            if name in ragged:
                shape[0] += longer
            self.entries[prefix + name] = Entry(kind, (rows, *shape), name in ragged)

    def header(self, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
        """The file's head, where each tensor starts, and the size of the file, in bytes.

        The layout is that of https://github.com/huggingface/safetensors: the length of the description as 8 bytes, the
        description as JSON, padded to a multiple of 8 bytes, then the tensors without gaps.
        """
        described: dict[str, object] = {"__metadata__": dict(metadata)}
        starts, end = {}, 0
        # Wide types first, so that every tensor is aligned.
        for name, entry in sorted(self.entries.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
            starts[name] = end
            end += entry.shape[0] * entry.row
            offsets = [starts[name], end]
            described[name] = {"dtype": _NAMES[entry.dtype], "shape": entry.shape, "data_offsets": offsets}
        text = json.dumps(described).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little") + text
        return head, {name: len(head) + start for name, start in starts.items()}, len(head) + end


class StatesFile:
    """A safetensors file in the making, as a context: it appears under its name when the context ends without an error.

    Rows that are shorter than the layout leaves room for are followed by zeros. Only one process may make a file at a time.

    Args:
        path: The file.
        layout: What it will hold.
        metadata: Strings stored in its head.

    Raises:
        DataError: The folder has no room for it, or cannot be written.
    """

    def __init__(self, path: Path, layout: StatesLayout, metadata: Mapping[str, str]):
        self.path, self.layout = path, layout
        self._making = path.with_suffix(".making")  # one name, so that the next attempt replaces what a killed one left
        head, self._starts, size = layout.header(metadata)
        if size > (free := shutil.disk_usage(path.parent).free):
            raise DataError(
                f"{path.parent}: kept states need {size / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free. Make room, or set "
                f"{CACHE_VARIABLE} to a folder on a larger disk."
            )
        try:
            self._file = os.open(self._making, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            os.truncate(self._file, size)  # zeros wherever nothing is written
        except OSError as error:
            raise self._unwritable(error) from error
        self._put(head, 0)

    def write(self, prefix: str, rows: Tensor, states: States) -> None:
        """Write the states of (B,) rows.

        Raises:
            MethodError: The states do not have the names and shapes of the layout.
            DataError: The file cannot be written.
        """
        for name, value in states.items():
            entry = self.layout.entries.get(prefix + name)
            if entry is None or not _fits(value, entry, len(rows)):
                raise MethodError(
                    f"states: {prefix}{name} of {len(rows)} items has shape {tuple(value.shape)}, "
                    f"but {'there was none' if entry is None else f'{entry.shape[1:]} per item'} when the first item was "
                    "computed; states must have the same names and widths for every item, one row each"
                )
            start, found = self._starts[prefix + name], value.to("cpu", entry.dtype).contiguous()
            for row, one in zip(rows.tolist(), found, strict=True):
                self._put(one.reshape(-1).view(torch.uint8).numpy(), start + row * entry.row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        if error is None:
            self._making.replace(self.path)
        else:
            self._making.unlink(missing_ok=True)

    def _put(self, data: object, offset: int) -> None:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        try:
            while view:  # pwrite may write less than asked
                written = os.pwrite(self._file, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"{self.path.parent}: kept states cannot be written ({error.strerror or error}). Make room or mend the "
            f"permissions, or set {CACHE_VARIABLE} to another folder."
        )


def _fits(value: Tensor, entry: Entry, rows: int) -> bool:
    """One row per item, of the entry's shape; shorter along the second dimension where that differs between items."""
    if value.ndim != len(entry.shape) or len(value) != rows:
        return False
    if entry.ragged:
        return value.shape[1] <= entry.shape[1] and tuple(value.shape[2:]) == entry.shape[2:]
    return tuple(value.shape[1:]) == entry.shape[1:]
