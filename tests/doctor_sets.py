"""A card without a set, and reading sets as the doctor does, blank captions and all."""

from petlbench.datasets.card import Card
from petlbench.datasets.options import KarpathyOptions
from petlbench.datasets.readers.karpathy import read_karpathy

CARD = Card(
    name="mine",
    title="My set",
    version="1",
    licence="CC0",
    citation="me",
    format="karpathy",
    files={"annotations": "set.json", "images": "images"},
)


def read(path, **options):
    return read_karpathy(path, path.parent / "images", KarpathyOptions(blank="keep", **options))
