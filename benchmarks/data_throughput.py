"""How fast pictures are prepared, and how fast batches of them are delivered.

Run ``python benchmarks/data_throughput.py ucm --root DIR`` (any card or folder; without one, JPEGs are drawn). Two comparisons,
each in rounds that alternate between both sides; medians over rounds, and the ratio round by round. Rates are told by the
clock, and by processor time summed over threads and worker processes, which other work on the machine changes little.

- Preparing: ``prepare`` (threads, decoding once into the cache, hashes of all files included) against a plain loop that
  opens, resizes and crops one picture after the other with the same functions and keeps the arrays in memory.
- Delivering: batches as a trial gets them (mapped uint8 pictures, gathered, augmented as a batch, normalised to float32),
  against a torch DataLoader whose workers decode every picture every time and augment it with torchvision's transforms.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from petlbench.datasets.augment import Augmentation, augment, normalise
from petlbench.datasets.cache import prepare, processors
from petlbench.datasets.preprocess import prepare_picture
from petlbench.datasets.split import FileImage, ImageRef, Split
from petlbench.harness.device import tune_process

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CHANGES = {
    "none": (Augmentation(), []),
    "flips": (
        Augmentation(horizontal_flip=0.5, vertical_flip=0.5),
        [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()],
    ),
    "crop and flip": (
        Augmentation(random_resized_crop=(0.8, 1.0), horizontal_flip=0.5),
        [v2.RandomHorizontalFlip()],
    ),
}
"""What is done to training pictures: in ours, and by torchvision (the crop takes the place of the resizing)."""


class Decoding(Dataset):
    """Decodes a picture whenever it is asked for it."""

    def __init__(self, images: tuple[ImageRef, ...], transform: v2.Transform):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.images[index].open())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", nargs="?", help="card or folder; default: drawn JPEGs")
    parser.add_argument("--root", help="folder of the set")
    parser.add_argument("--images", type=int, default=1024, help="how many of the train split")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in the process that takes batches")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    tune_process(torch.device("cpu"))  # both sides run with the settings of a trial
    with tempfile.TemporaryDirectory() as folder:
        split = some_of(asked.dataset, asked.root, asked.images, Path(folder))
        print(
            f"{len(split.images)} pictures at {asked.resolution} px, {processors()} processors ({platform.machine()}), load "
            f"{os.getloadavg()[0]:.1f}, torch {torch.__version__} with {asked.threads} threads"
        )
        preparing(split, asked.resolution, asked.rounds, Path(folder))
        for name in CHANGES:
            delivering(split, asked, name, Path(folder) / "kept")


def some_of(dataset: str | None, root: str | None, number: int, folder: Path) -> Split:
    """The first pictures of a train split, or JPEGs of 256 px."""
    if dataset is not None:
        from petlbench.datasets.load import load

        images: tuple[ImageRef, ...] = load(dataset, root)["train"].images[:number]
    else:
        rng, images = np.random.default_rng(0), ()
        for index in range(number):
            blobs = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).resize((256, 256))
            blobs.save(folder / f"{index}.jpg", quality=92)
            images += (FileImage(folder / f"{index}.jpg", f"{index}.jpg"),)
    return Split("train", images, (), np.zeros(0, np.int64))


def preparing(split: Split, resolution: int, rounds: int, folder: Path) -> None:
    """Pictures a second of both ways of preparing."""

    def ours(number: int) -> None:
        prepare(split, resolution, folder / f"cache{number}")

    def plain(_: int) -> None:
        for image in split.images:
            prepare_picture(image.open(), resolution).copy()

    compare("prepare", "plain PIL loop", ours, plain, len(split.images), rounds)


def delivering(split: Split, asked: argparse.Namespace, name: str, cache: Path) -> None:
    """Pictures a second of both ways of delivering batches."""
    images = prepare(split, asked.resolution, cache)
    changes, theirs = CHANGES[name]
    generator = torch.Generator().manual_seed(0)
    bicubic = InterpolationMode.BICUBIC
    if changes.random_resized_crop:
        sizing = [v2.RandomResizedCrop(asked.resolution, changes.random_resized_crop, interpolation=bicubic)]
    else:
        sizing = [v2.Resize(asked.resolution, interpolation=bicubic), v2.CenterCrop(asked.resolution)]
    steps = [*sizing, *theirs, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    loader = DataLoader(
        Decoding(split.images, v2.Compose(steps)),
        asked.batch,
        shuffle=True,
        num_workers=asked.workers,
        persistent_workers=asked.workers > 0,
        drop_last=True,
    )

    def ours(_: int) -> None:
        order = torch.randperm(len(images), generator=generator).numpy()
        for start in range(0, len(order) - asked.batch + 1, asked.batch):
            raw = images.gather(order[start : start + asked.batch])
            normalise(augment(raw, changes, generator), MEAN, STD)

    def decoding(_: int) -> None:
        for _batch in loader:
            pass

    number = len(loader) * asked.batch
    compare(f"delivery ({name})", f"DataLoader, {asked.workers} workers", ours, decoding, number, asked.rounds)


def compare(
    what: str,
    other: str,
    ours: Callable[[int], None],
    theirs: Callable[[int], None],
    number: int,
    rounds: int,
) -> None:
    """Time both in alternation, after a round that does not count."""
    clock: tuple[list[float], list[float]] = ([], [])
    work_time: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 1):
        for side, work in enumerate((ours, theirs)):
            began, used = time.perf_counter(), processor_time()
            work(index)
            if index:
                clock[side].append(number / (time.perf_counter() - began))
                work_time[side].append(number / (processor_time() - used))
    print(f"{what} against {other}:")
    for unit, (mine, its) in (("second", clock), ("processor second", work_time)):
        ratios = [a / b for a, b in zip(mine, its, strict=True)]
        spread = f"{min(ratios):.1f} to {max(ratios):.1f} in {rounds} rounds"
        print(
            f"  pictures a {unit}: {statistics.median(mine):,.0f} against {statistics.median(its):,.0f}, "
            f"ratio {statistics.median(ratios):.1f} ({spread})",
            flush=True,
        )


def processor_time() -> float:
    """Seconds of processor time of this process, its threads and its living children."""
    own = psutil.Process()
    times = [one.cpu_times() for one in (own, *own.children(recursive=True))]
    return sum(one.user + one.system for one in times)


if __name__ == "__main__":
    main()
