"""The ranks beside a record, held against what the record states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from petlbench.harness.metrics import Ranks, recalls
from petlbench.leaderboard.load import Entry

CLOSE = 1e-6
"""Percentage points; recalls are ratios of whole numbers."""

_AGAIN = "restore both from version control, or run the trial again"


def read_ranks(entry: Entry) -> Ranks:
    """The ranks beside a record of status ok.

    Raises:
        FileNotFoundError: They are missing.
        ValueError: They are damaged, or of another split than the record's.
    """
    path = entry.ranks_path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the ranks of {entry.name} are missing, so its row has no interval; restore the file from version "
            "control, or run the trial again"
        )
    ranks = Ranks.load(path)
    assert entry.record.data is not None  # load_records lets no record of status ok through without it
    test = entry.record.data.splits["test"]
    if (ranks.images, ranks.captions) != (test.images, test.captions):
        raise ValueError(
            f"{path}: ranks of {ranks.images} images and {ranks.captions} captions, but key `data.splits.test` of the "
            f"record says {test.images} and {test.captions}; the two files are of different trials, {_AGAIN}"
        )
    return ranks


def disagreements(
    entry: Entry, ranks: Ranks, rule: str, stated: Mapping[str, float], place: str = "recalls"
) -> Iterator[str]:
    """What ranks give otherwise than a record states, one message per recall.

    Args:
        entry: The record.
        ranks: Of :func:`read_ranks`.
        rule: Tie rule.
        stated: Recalls of the record under that rule.
        place: Their key below ``metrics.test``.
    """
    key = f"metrics.test.{place}"
    try:
        given = recalls(ranks, rule)
    except ValueError as error:
        yield f"{entry.path}: key `{key}`: {error}; restore the file from version control, or run the trial again"
        return
    for metric, value in given.items():
        if abs(value - stated[metric]) > CLOSE:
            yield (
                f"{entry.ranks_path}: the ranks give {metric} {value:.6f}, but key `{key}.{metric}` of the record says "
                f"{stated[metric]}; the two files are of different trials, {_AGAIN}"
            )
