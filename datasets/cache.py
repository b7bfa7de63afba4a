"""Prepared pictures on disk: one read-only uint8 array per split and resolution, shared by every trial of a machine.

Layout of the cache folder (default: the user's cache folder; ``PETLBENCH_CACHE`` overrides it)::

    images/KEY/images.npy      (N, R, R, 3) uint8
    images/KEY/manifest.json   written last; without it the array is never used
    images/.making-KEY-*/      work in progress, or what a killed process left; cleared by the next preparation
    locks/KEY.lock             held while KEY is made
    index/FINGERPRINTS         the KEY that belongs to a list of file fingerprints, so that contents are hashed once

KEY is a hash over the pictures' contents, names and order, the resolution, the preprocessing and Pillow's version.
Threads prepare the pictures: Pillow decodes and resizes without the interpreter lock.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import PIL
import platformdirs
from numpy.typing import NDArray

from petlbench.datasets.hold import Hold, hold
from petlbench.datasets.preprocess import VERSION, prepare_picture
from petlbench.datasets.split import DataError, FileImage, ImageRef, Split

if TYPE_CHECKING:
    from torch import Tensor

CACHE_VARIABLE = "PETLBENCH_CACHE"
CHUNK = 32
"""Pictures per task of a thread."""

MANIFEST = "manifest.json"
LIBRARY = "petlbench-huggingface"
"""Folder of Hugging Face's library; not `huggingface`, which is what people call that library's own cache."""
_KEY_LENGTH = 32

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class CachedImages:
    """The prepared pictures of a split.

    Attributes:
        array: (N, R, R, 3) uint8, memory-mapped, read-only, in the order of the split.
        folder: Where it lies.
        manifest: How it was made: key, shape, versions, seconds.
        fresh: True when this call made it, False when it was found.
        use: Shared lock that tells `benchmark cache clear` that the entry is in use; None where there are no such locks.
    """

    array: NDArray[np.uint8]
    folder: Path
    manifest: dict[str, Any]
    fresh: bool
    use: Hold | None = None

    def __len__(self) -> int:
        return len(self.array)

    def gather(self, indices: Sequence[int] | NDArray[np.integer]) -> Tensor:
        """Pictures by index, as a batch.

        Args:
            indices: B indices.

        Returns:
            (B, 3, R, R) uint8 tensor in channels-last memory order, so that nothing is copied twice.

        Raises:
            IndexError: An index lies outside the split.
        """
        import torch

        return torch.from_numpy(np.take(self.array, np.asarray(indices), axis=0)).permute(0, 3, 1, 2)


def prepare(
    split: Split,
    resolution: int,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CachedImages:
    """The prepared pictures of a split; made on the first call, found on later ones.

    Processes that ask for the same pictures at once do the work once. A process killed meanwhile leaves nothing that
    is taken for complete.

    Args:
        split: What to prepare.
        resolution: R, side of the prepared pictures in pixels.
        cache_dir: The cache folder.
        workers: Threads; default the processors this process may use.
        progress: Called with (pictures done, pictures in all), from this thread, while the array is made.

    Raises:
        DataError: A picture is missing or unreadable, the cache cannot be written, or an entry of it is damaged.
    """
    if resolution < 1 or not split.images:
        raise DataError(f"split {split.name}: cannot prepare {len(split.images)} pictures at {resolution} pixels")
    cache = cache_folder(cache_dir)
    workers = workers or processors()
    with _writable(cache):
        for part in ("images", "locks", "index"):
            (cache / part).mkdir(parents=True, exist_ok=True)
    key = _key(split.images, resolution, cache, workers)
    folder = cache / "images" / key
    if (folder / MANIFEST).is_file():
        try:
            return _open(folder, fresh=False)
        except DataError:
            if folder.exists():
                raise
            # else it was cleared this moment, and is made anew
    lock = filelock.FileLock(cache / "locks" / f"{key}.lock")
    with _writable(cache):
        lock.acquire()
    try:
        fresh = not (folder / MANIFEST).is_file()  # another process may have made it while this one waited
        if fresh:
            with _writable(cache):
                _clear_remains(cache, key)
            _make(split, resolution, cache, folder, workers, progress)
        return _open(folder, fresh=fresh)
    finally:
        lock.release()


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The cache folder: the one given, else ``PETLBENCH_CACHE``, else the user's cache folder. Absolute."""
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("petlbench")
    return Path(chosen).expanduser().absolute()


def _key(images: Sequence[ImageRef], resolution: int, cache: Path, workers: int) -> str:
    """Hash of all that decides the array, by way of the index."""
    recipe = f"{VERSION}\0pillow {PIL.__version__.split('.')[0]}\0{resolution}\0"
    marks = hashlib.sha256(recipe.encode())
    for image, mark in zip(images, _fingerprints(images), strict=True):
        marks.update(f"{image.name}\0{mark}\n".encode())
    note = cache / "index" / marks.hexdigest()[:_KEY_LENGTH]
    if note.is_file() and len(known := note.read_text(encoding="ascii")) == _KEY_LENGTH:
        return known
    digest = hashlib.sha256(recipe.encode())
    with ThreadPoolExecutor(workers) as pool:
        for image, content in zip(images, pool.map(_content_hash, images), strict=True):
            digest.update(f"{image.name}\0".encode() + content)
    key = digest.hexdigest()[:_KEY_LENGTH]
    with _writable(cache):
        note.write_text(key, encoding="ascii")
    return key


def _fingerprints(images: Sequence[ImageRef]) -> list[str]:
    """Fingerprints of all pictures; if some are missing, one error speaks of all of them."""
    marks, errors = [], []
    for image in images:
        try:
            marks.append(image.fingerprint())
        except DataError as error:
            errors.append(error)
    if errors:
        more = f"\n{len(errors)} of {len(images)} pictures are missing; this is the first." if len(errors) > 1 else ""
        raise DataError(f"{errors[0]}{more}") from errors[0]
    return marks


def _content_hash(image: ImageRef) -> bytes:
    return hashlib.sha256(image.content()).digest()


def _make(split: Split, resolution: int, cache: Path, folder: Path, workers: int, progress: Progress | None) -> None:
    """Fill a temporary folder and rename it to ``folder``. The lock of the key is held."""
    shape = (len(split.images), resolution, resolution, 3)
    size, free = math.prod(shape), shutil.disk_usage(folder.parent).free
    if size > free:
        raise DataError(
            f"{folder.parent}: split {split.name} needs {size / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free. "
            f"Make room, or set {CACHE_VARIABLE} to a folder on a larger disk."
        )
    started = time.perf_counter()
    with _writable(cache):
        work = Path(tempfile.mkdtemp(prefix=f".making-{folder.name}-", dir=folder.parent))
        work.chmod(folder.parent.stat().st_mode & 0o777)  # mkdtemp's is for one user; a cache may be shared
    try:
        with _writable(cache), (work / "images.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
        _fill(work / "images.npy", start, split.images, resolution, cache, workers, progress)
        seconds = time.perf_counter() - started
        manifest = {
            "schema": 1,
            "key": folder.name,
            "split": split.name,
            "source": _source(split.images[0]),
            "shape": shape,
            "bytes": start + size,
            "preprocessing": VERSION,
            "pillow": PIL.__version__,
            "workers": workers,
            "seconds": round(seconds, 3),
            "images_per_second": round(len(split.images) / seconds, 1),
        }
        with _writable(cache):
            (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            if folder.exists():  # an entry without its manifest
                shutil.rmtree(folder)
            work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _fill(
    path: Path,
    start: int,
    images: Sequence[ImageRef],
    resolution: int,
    cache: Path,
    workers: int,
    progress: Progress | None,
) -> None:
    """Write the prepared pictures behind the header, which ends at byte ``start``."""
    row = resolution * resolution * 3

    def task(first: int) -> int:
        rows = np.stack([prepare_picture(image.open(), resolution) for image in images[first : first + CHUNK]])
        data, offset = rows.tobytes(), start + first * row
        with _writable(cache):
            while data:  # pwrite may write less than asked
                written = os.pwrite(file, data, offset)
                data, offset = data[written:], offset + written
        return len(rows)

    # pwrite, not a writable memory map: on a full disk a map kills the process, pwrite raises an error.
    file, done = os.open(path, os.O_WRONLY), 0
    try:
        with ThreadPoolExecutor(workers) as pool:
            try:
                for future in as_completed([pool.submit(task, first) for first in range(0, len(images), CHUNK)]):
                    done += future.result()
                    if progress is not None:
                        progress(done, len(images))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        os.close(file)


def _open(folder: Path, *, fresh: bool) -> CachedImages:
    """Map an entry after checking it against its manifest."""
    path = folder / "images.npy"
    use = hold(path)
    way_out = f"Delete the folder {folder} and run again; the pictures are then prepared anew."
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        shape, size, found = tuple(manifest["shape"]), manifest["bytes"], path.stat().st_size
        array = np.load(path, mmap_mode="r", allow_pickle=False) if found == size else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: this entry of the picture cache is damaged ({error}). {way_out}") from error
    if array is None:
        raise DataError(f"{path}: {found} bytes, but its manifest says {size}. {way_out}")
    if array.shape != shape or array.dtype != np.uint8:
        raise DataError(f"{path}: {array.dtype}{array.shape}, but its manifest says uint8{shape}. {way_out}")
    try:
        os.utime(folder)  # `benchmark cache ls` tells when an entry was used last
    except OSError:
        pass  # a cache of other people's is used all the same
    return CachedImages(array=array, folder=folder, manifest=manifest, fresh=fresh, use=use)


def _source(image: ImageRef) -> str:
    """Where pictures come from, for people."""
    path = getattr(image, "path", None)
    if path is None:
        return type(image).__name__
    return str(path.parent if isinstance(image, FileImage) else path)


def _clear_remains(cache: Path, own: str) -> None:
    """Remove what killed preparations left: those of ``own`` (whose lock is held) and of keys nobody is making."""
    for work in (cache / "images").glob(".making-*"):
        key = work.name.split("-")[1]
        if key == own:
            shutil.rmtree(work)
            continue
        try:
            with filelock.FileLock(cache / "locks" / f"{key}.lock", timeout=0):
                shutil.rmtree(work)
        except (filelock.Timeout, FileNotFoundError):  # being made, or cleared by another process this moment
            continue


@contextmanager
def _writable(cache: Path) -> Iterator[None]:
    """Say what to do when the cache folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{cache}: the picture cache cannot be written ({error.strerror or error}). "
            f"Make room or mend the permissions, or set {CACHE_VARIABLE} to another folder."
        ) from error


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
