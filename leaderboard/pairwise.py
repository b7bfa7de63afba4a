"""Every row of a table against every other on the same images: wins, tests, and groups that cannot be told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from petlbench.leaderboard import statistics
from petlbench.leaderboard.explain import Options
from petlbench.leaderboard.row import Row

LEVEL = 0.05
MAX_ROWS = 50
"""Of a longer table only the best rows are compared: the pairs grow with the square, and so do the flips they need."""


@dataclass(frozen=True, eq=False)
class Pairwise:
    """All pairs of R compared rows; ``[i, j]`` speaks of row ``i`` against row ``j``.

    The unit is the image with its captions: an image counts for the row that answers more of its queries (shares of mR,
    averaged over the seeds).
    """

    rows: tuple[Row, ...]
    """Best mR first; R of them."""
    left_out: tuple[Row, ...]
    """Rows without usable ranks, or beyond :data:`MAX_ROWS`."""
    images: int
    flips: int
    """Random sign vectors behind each p-value."""
    difference: NDArray[np.float64]
    """(R, R) mR of ``i`` minus that of ``j``, percentage points."""
    wins: NDArray[np.float64]
    """(R, R) share of the images on which ``i`` does better than ``j``, percent; on the rest they are equal or ``j`` wins."""
    p_holm: NDArray[np.float64]
    """(R, R) p-values of the sign-flip test, Holm-corrected over all pairs; symmetric, 1 on the diagonal."""
    differs: NDArray[np.bool_]
    """(R, R) whether ``p_holm`` is below :data:`LEVEL`."""
    groups: tuple[tuple[int, ...], ...]
    """Largest sets of rows of which no two differ, as rising indices into ``rows``, best first.

    Two rows differ exactly where no group holds both (a compact letter display, Piepho 2004).
    """

    @property
    def pairs(self) -> int:
        """Number of tests."""
        return len(self.rows) * (len(self.rows) - 1) // 2


def compare_rows(rows: Sequence[Row], options: Options | None = None) -> Pairwise | None:
    """Compare the rows of one table with each other.

    Args:
        rows: Of one table, best mR first.
        options: Random draws.

    Returns:
        None where fewer than two rows have usable ranks.
    """
    options = options or Options()
    measured = [row for row in rows if row.contributions is not None]
    compared = tuple(measured[:MAX_ROWS])
    if len(compared) < 2:
        return None
    shown = {row.group.key for row in compared}
    scores = statistics.image_scores(np.stack([row.contributions for row in compared if row.contributions is not None]))
    upper = np.triu_indices(len(compared), 1)
    flips = enough_flips(len(upper[0]), options.flips)
    p_holm = statistics.sign_flip_pairs(scores, flips, options.seed)
    p_holm[upper] = p_holm.T[upper] = statistics.holm(p_holm[upper])
    differs = p_holm < LEVEL
    means = np.array([row.mean["mR"] for row in compared])
    return Pairwise(
        rows=compared,
        left_out=tuple(row for row in rows if row.group.key not in shown),
        images=scores.shape[1],
        flips=flips,
        difference=means[:, None] - means,
        wins=win_shares(scores),
        p_holm=p_holm,
        differs=differs,
        groups=groups_not_told_apart(differs),
    )


def enough_flips(pairs: int, least: int) -> int:
    """Flips with which one of ``pairs`` tests can pass Holm's correction with room to spare.

    A p-value from F flips is at least 1 / (1 + F), and Holm multiplies the smallest by the number of pairs: with 9,999
    flips nothing could ever differ among 37 rows (666 pairs).
    """
    return max(least, math.ceil(5 * pairs / LEVEL) - 1)


def win_shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, R) percent of the N images on which row ``i`` scores higher than row ``j``.

    Args:
        scores: (R, N) of :func:`petlbench.leaderboard.statistics.image_scores`.
    """
    # Equal in exact arithmetic, but averaged over seeds in another order: rounding noise must not make a winner.
    return np.stack([100.0 * (row - scores > statistics.EQUAL).mean(1) for row in scores])


def groups_not_told_apart(differs: NDArray[np.bool_]) -> tuple[tuple[int, ...], ...]:
    """Largest sets of rows of which no two differ: maximal cliques by insert and absorb (Piepho 2004).

    Args:
        differs: (R, R) symmetric.

    Returns:
        Rising indices, sets in the order of their first row.
    """
    sets = [frozenset(range(len(differs)))]
    for i, j in zip(*np.nonzero(np.triu(differs, 1)), strict=True):
        kept = [members for members in sets if not (i in members and j in members)]
        cut = [members - {gone} for members in sets if i in members and j in members for gone in (i, j)]
        for members in sorted(cut, key=len, reverse=True):
            if not any(members <= other for other in kept):
                kept.append(members)
        sets = kept
    return tuple(sorted(tuple(sorted(members)) for members in sets))
