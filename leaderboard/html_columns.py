"""The columns of the HTML board: what they show, how they sort, what their header explains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from petlbench.harness.metrics import KS
from petlbench.leaderboard import text
from petlbench.leaderboard.row import Row

Shown = Callable[[Row], str]
Sorted = Callable[[Row], float | str | None]


@dataclass(frozen=True)
class Column:
    """A column after the method's name.

    Attributes:
        head: Header.
        group: Key of :data:`GROUPS`.
        why: One sentence for the header's tooltip.
        shown: Text of a row.
        value: What it is sorted by; None sorts last.
        first: Direction of the first sort.
        metric: Set for recalls, whose best and second best are set off.
    """

    head: str
    group: str
    why: str
    shown: Shown
    value: Sorted
    first: Literal["asc", "desc"] = "asc"
    metric: str | None = None

    @property
    def is_text(self) -> bool:
        """Whether it holds words, which are aligned left and sorted as words."""
        return self.head in _WORDS


GROUPS = {
    "mean": "",
    "i2t": "image to text",
    "t2i": "text to image",
    "size": "size",
    "cost": "cost",
    "protocol": "protocol",
}
"""Key to what stands above the columns of a group."""

_WORDS = ("scoring", "selection")


def _recall(way: str, k: int) -> Column:
    name = f"{way}_r{k}"
    asked, found = ("pictures", "captions") if way == "i2t" else ("captions", "pictures")
    return Column(
        head=f"R@{k}",
        group=way,
        why=f"Share of {asked} with a right answer among the first {k} {found}, percent, mean ± deviation over seeds",
        shown=lambda row: text.percent(row.mean[name]),
        value=lambda row: row.mean[name],
        first="desc",
        metric=name,
    )


MR = Column(
    head="mR",
    group="mean",
    why="Mean of the six recalls, percent, mean ± deviation over seeds",
    shown=lambda row: text.percent(row.mean["mR"]),
    value=lambda row: row.mean["mR"],
    first="desc",
    metric="mR",
)
INTERVAL = Column(
    head="95 % interval",
    group="mean",
    why="Bootstrap interval of mR over the test images; sorts by its lower end",
    shown=lambda row: text.interval(row.interval),
    value=lambda row: row.interval[0] if row.interval else None,
    first="desc",
)
COLUMNS = (
    *(_recall(way, k) for way in ("i2t", "t2i") for k in KS),
    Column(
        "trained", "size", "Scalars that were trained", lambda row: text.count(row.trained), lambda row: row.trained
    ),
    Column(
        "% of total",
        "size",
        "Trained scalars, as a share of all, percent",
        lambda row: text.share(row.trained, row.total),
        lambda row: 100 * row.trained / row.total if row.total else None,
    ),
    Column(
        "stored",
        "size",
        "What has to be kept per task: the trained tensors on disk",
        lambda row: text.size(row.stored_bytes),
        lambda row: row.stored_bytes,
    ),
    Column(
        "peak memory",
        "cost",
        "Largest over the seeds, measured in training",
        lambda row: text.unless(row.no_memory, text.size(row.peak_memory)),
        lambda row: row.peak_memory,
    ),
    Column(
        "samples/s",
        "cost",
        "Training pairs per second",
        lambda row: text.unless(row.no_seconds, text.quantity(row.samples_per_s)),
        lambda row: row.samples_per_s,
        "desc",
    ),
    Column(
        "train s",
        "cost",
        "Seconds of training",
        lambda row: text.unless(row.no_seconds, text.quantity(row.train_s)),
        lambda row: row.train_s,
    ),
    Column(
        "ms/query",
        "cost",
        "Milliseconds to search one caption among the test pictures, encoded beforehand",
        lambda row: text.milliseconds(row.query.t2i_s if row.query else None),
        lambda row: row.query.t2i_s if row.query else None,
    ),
    Column(
        "scoring", "protocol", "How a score is computed", lambda row: text.plain(row.scoring), lambda row: row.scoring
    ),
    Column(
        "selection",
        "protocol",
        "How the evaluated weights were chosen",
        lambda row: ", ".join(row.rules),
        lambda row: ", ".join(row.rules),
    ),
    Column(
        "tuning trials",
        "protocol",
        "Configurations tried on validation to find this one",
        lambda row: text.ranges(row.tuning_trials),
        lambda row: max(row.tuning_trials),
    ),
    Column(
        "p vs best",
        "protocol",
        "Paired sign-flip test against the best row, Holm-corrected",
        lambda row: text.NOTHING if row.p_holm is None else f"{row.p_holm:.2g}",
        lambda row: row.p_holm,
    ),
)
"""All columns but mR and its interval, in the order of the page."""
