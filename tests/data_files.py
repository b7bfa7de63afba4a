"""Small data sets on disk, for the tests of readers, cache and doctor."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CAPTIONS = ("{} from above", "an airport with {}", "many {} near roads", "two {} abreast", "in fields there are {}")
THINGS = ("planes", "ships", "cars", "houses", "trees", "tanks", "pools", "boats", "courts", "bridges")


def write_picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def item(name: str, split: str = "train", captions=("a cat", "a dog"), **more) -> dict:
    return {"filename": name, "split": split, "sentences": [{"raw": caption} for caption in captions], **more}


def write_json(folder: Path, items: list, name: str = "set.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"images": items}), encoding="utf-8")
    return path


def karpathy_set(folder: Path, train: int = 6, test: int = 3) -> Path:
    """A complete set: ``set.json`` and ``images/``; classes by file-name prefix."""
    items = []
    for index in range(train + test):
        name = f"{'port' if index % 2 else 'park'}_{index}.jpg"
        write_picture(folder / "images" / name, seed=index)
        captions = [text.format(THINGS[index % 10]) for text in CAPTIONS]
        split = "train" if index < train else "test"
        items.append(item(name, split, captions, **{"class": name.split("_")[0]}))
    return write_json(folder, items)


def precomp_set(folder: Path, train: int = 10, test: int = 3, test_form: int = 5) -> Path:
    """The four text files; ``test_form`` lines a name in the test file."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, form in (("train", train, 1), ("test", test, test_form)):
        names = [f"{part}x_{index}.jpg" for index in range(count)]
        captions = [text.format(THINGS[index % 10]) for index in range(count) for text in CAPTIONS]
        lines = [name for name in names for _ in range(form)]
        (folder / f"{part}_filename.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (folder / f"{part}_caps.txt").write_text("".join(f"{line}\n" for line in captions), encoding="utf-8")
    return folder
