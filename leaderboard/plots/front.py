"""Which rows no other beats at the same or a lower price."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(prices: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Indices of the points for which no other is at least as cheap and at least as good, and better in one of the two.

    Args:
        prices: Lower is better.
        scores: Higher is better, as many.

    Returns:
        Rising in price; of equal points the first stands for all.
    """
    front: list[int] = []
    for index in sorted(range(len(prices)), key=lambda i: (prices[i], -scores[i], i)):
        if not front or scores[index] > scores[front[-1]]:
            front.append(index)
    return front
