"""Scores of pairs on disk while they are computed, so that an interrupted evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from petlbench.methods import registry
from petlbench.methods.backbones.base import Backbone
from petlbench.methods.backbones.weights_io import tensors_sha256
from petlbench.methods.base import Method

if TYPE_CHECKING:
    from petlbench.harness.data import SplitData

STORE_VERSION = 1
HEADER = 4096
"""Bytes in front of the scores, a whole page."""
FLUSH_S = 10.0
"""Seconds between writes to the disk; a killed process loses nothing, a machine that loses power this much."""

_MAGIC = "petlbench pair scores"


class ScoreStore:
    """An (N, U) matrix of fp32 scores in a file, NaN where a score is missing.

    The file is one line of JSON, padded to :data:`HEADER` bytes, and the matrix, mapped into memory. A finished score is
    its own mark: the matrix is filled with NaN and on the disk before the header says so, and four aligned bytes are
    written whole or not at all, so no order between scores and marks has to be kept. What is in the mapping survives the
    death of the process.

    A file of other scores (another key or shape) is started anew; so is a damaged one, with a warning.

    Args:
        path: The file; its folder is made.
        key: What the scores depend on, see :func:`score_key`.
        shape: N pictures and U distinct captions.
        warn: Receives the warning, one line.

    Attributes:
        scores: (N, U) fp32 tensor over the file; writing to it writes the file.
        found: Scores that were there already.
    """

    def __init__(self, path: Path, key: str, shape: tuple[int, int], warn: Callable[[str], None] = lambda line: None):
        self.path, self.key, self.shape = path, key, shape
        self._line = _header(key, shape)
        if (damage := self._damage()) is not None:
            if damage:
                warn(f"{path}: {damage}; its scores are computed anew")
            self._start()
        self._map = np.memmap(path, np.float32, "r+", HEADER, shape)
        self.scores = torch.from_numpy(self._map)
        self.found = int((~self.scores.isnan()).sum())
        self._flushed = time.monotonic()

    def flush(self) -> None:
        """Write to the disk what is only in memory."""
        self._map.flush()
        self._flushed = time.monotonic()

    def flush_now_and_then(self) -> None:
        """:meth:`flush` where the last one was :data:`FLUSH_S` seconds ago."""
        if time.monotonic() - self._flushed >= FLUSH_S:
            self.flush()

    def clear(self) -> None:
        """Delete the file; :attr:`scores` stays valid, but is no longer kept."""
        self.path.unlink(missing_ok=True)

    def _damage(self) -> str | None:
        """None where the file can be gone on with, nothing where it is absent or of other scores, else what is wrong."""
        if not self.path.exists():
            return ""
        size, expected = self.path.stat().st_size, HEADER + 4 * self.shape[0] * self.shape[1]
        with self.path.open("rb") as stream:
            line = stream.read(HEADER)
        if line == self._line:
            if size != expected:
                return f"has {size:,} bytes, expected {expected:,}"
            matrix = np.memmap(self.path, np.float32, "r", HEADER, self.shape)
            return "holds infinite scores" if np.isinf(matrix).any() else None
        try:
            meta: Any = json.loads(line)
            sound = meta["magic"] == _MAGIC and line == _line_of(meta["key"], meta["shape"], meta["version"])
        except (ValueError, TypeError, KeyError):
            sound = False
        return "" if sound else "has no readable header"

    def _start(self) -> None:
        """Write the matrix first and the header last, so that a header vouches for what is behind it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)  # whoever still maps the old file keeps it
        with self.path.open("w+b") as stream:
            row = np.full(self.shape[1], np.nan, np.float32).tobytes()
            stream.seek(HEADER)
            for _ in range(self.shape[0]):
                stream.write(row)
            _to_disk(stream)
            stream.seek(0)
            stream.write(self._line)
            _to_disk(stream)


def score_key(
    method: Method, backbone: Backbone, trained: Mapping[str, Tensor], data: SplitData, precision: str, device: str
) -> str:
    """Hash of everything that the scores of a split depend on.

    Args:
        method: Its source file and settings count.
        backbone: Its provenance counts, so its frozen weights do.
        trained: Every trained tensor by name.
        data: Pictures, captions and their tokens.
        precision: ``fp32`` or ``bf16``.
        device: Type of the device, since kernels round differently.
    """
    identity = {
        "version": STORE_VERSION,
        "method": method.name,
        "source": registry.source_sha256(type(method)),
        "settings": method.config.model_dump(mode="json"),
        "backbone": backbone.provenance.model_dump(mode="json"),
        "trained": tensors_sha256(trained),
        "pictures": data.images.manifest["key"],
        "captions": data.split.sha256,
        "tokens": tensors_sha256({"ids": data.tokens.ids, "mask": data.tokens.mask}),
        "precision": precision,
        "device": device,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _header(key: str, shape: tuple[int, int]) -> bytes:
    return _line_of(key, list(shape), STORE_VERSION)


def _line_of(key: str, shape: list[int], version: int) -> bytes:
    meta = {"magic": _MAGIC, "version": version, "key": key, "shape": shape}
    meta["crc32"] = zlib.crc32(json.dumps(meta, sort_keys=True).encode())
    return json.dumps(meta, sort_keys=True).encode().ljust(HEADER - 1) + b"\n"


def _to_disk(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())
