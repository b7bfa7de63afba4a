"""ViLT-style .arrow files for tests: made as the writers of ViLT make them, and read as its code reads them."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
from data_files import item, write_json, write_picture
from PIL import Image

from petlbench.datasets.readers.vilt_arrow import ViltArrowOptions, read_vilt_arrow
from petlbench.datasets.split import SPLITS, FileImage, Split

STEM = "ucm_caption_karpathy_new"


CARD = """\
name: mine
title: My set
version: 1
licence: CC0
citation: me
format: vilt-arrow
files: {annotations: .}
"""


def picture(seed, kind="PNG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def row(number, captions=("a cat", "a dog"), split="train", **more):
    return {"image": picture(number), "caption": list(captions), "image_id": f"p_{number}.png", "split": split, **more}


def put(path, rows):
    """The steps of ViLT's writers: a data frame, a table, one file."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(pd.DataFrame(rows))
    with pa.OSFile(str(path), "wb") as sink, pa.RecordBatchFileWriter(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def put_set(folder, stem=STEM, **rows):
    """Three files of two pictures each, or the rows given by split."""
    for first, split in enumerate(SPLITS):
        listed = rows.get(split, [row(2 * first + k, split=split) for k in range(2)])
        put(folder / f"{stem}_{split}.arrow", listed)
    return folder


def read(folder, **options):
    return read_vilt_arrow(folder, ViltArrowOptions(**options))


def read_as_vilt(path):
    """The calls of ViLT's base_dataset.py: pictures, and caption lists without repeats."""
    table = pa.ipc.RecordBatchFileReader(pa.memory_map(str(path), "r")).read_all()
    table = pa.concat_tables([table], promote_options="default")
    captions = [list(set(texts)) for texts in table["caption"].to_pandas().tolist()]
    opened = [Image.open(io.BytesIO(table["image"][i].as_py())).convert("RGB") for i in range(len(table))]
    return table, captions, opened


def told_labels(split: Split):
    return None if split.labels is None else [split.classes[n] if n >= 0 else None for n in split.labels]


def same_data(left: Split, right: Split):
    assert left.sha256 == right.sha256, "names, captions and owners"
    assert told_labels(left) == told_labels(right)
    for one, other in zip(left.images, right.images, strict=True):
        assert np.array_equal(np.asarray(one.open()), np.asarray(other.open())), one.name


def flat_split(name="train", names=("a.png",), folder=None, **more):
    images = [write_picture(folder / n) for n in names]
    refs = tuple(FileImage(path, n) for path, n in zip(images, names, strict=True))
    defaults = {"captions": ("a cat",) * len(names), "owner": np.arange(len(names), dtype=np.int64)}
    return Split(name=name, images=refs, **{**defaults, **more})


def other_container(path, kind):
    table = pa.Table.from_pandas(pd.DataFrame([row(0), row(1)]))
    good = path.read_bytes()
    if kind == "stream":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "parquet":
        pa.parquet.write_table(table, path)
    else:
        contents = {
            "cut": good[: len(good) // 2],
            "empty": b"",
            "text": b'{"images": []}',
            "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "feather1": b"FEA1" + bytes(20) + b"FEA1",
            "garbage": b"ARROW1" + bytes(200) + b"ARROW1",
            "footer": good[:-200] + bytes(190) + good[-10:],
        }
        path.write_bytes(contents[kind])


# Against the Karpathy JSON


def json_of(folder, change=None):
    items = [
        item(f"p_{n}.png", "train" if n < 2 else "val" if n < 4 else "test", (f"cat {n}", f"dog {n}")) for n in range(6)
    ]
    if change:
        change(items)
    return write_json(folder, items, "dataset.json")


def rows_of_json(order=range(6)):
    """Rows whose captions are those of picture ``order[n]``."""
    splits = {"train": (0, 1), "val": (2, 3), "test": (4, 5)}
    return {
        name: [row(n, (f"cat {order[n]}", f"dog {order[n]}"), name) for n in numbers]
        for name, numbers in splits.items()
    }
