"""The first answers of every query in both directions, collected from blocks of scores while ranks are counted in them."""

from __future__ import annotations

import torch
from torch import Tensor


class FirstAnswers:
    """Keeps the best candidates of every query under the index rule: higher scores first, of equal ones the lower index.

    Args:
        text_ids: (M,) distinct string of each caption, on the device of the scores.
        k: Answers per query, fewer where there are fewer candidates; 0 keeps none.
    """

    def __init__(self, text_ids: Tensor, k: int):
        self.text_ids, self.k = text_ids, k
        self._of_images: list[Tensor] = []
        self._scores: Tensor | None = None  # (U, at most K) of the pictures seen so far, best first
        self._of_texts: Tensor | None = None

    def see(self, scores: Tensor, start: int) -> None:
        """Take in the scores of pictures ``start`` onward, (rows, U); blocks come in order."""
        if not self.k:
            return
        self._of_images.append(best(scores.index_select(1, self.text_ids), self.k))
        here = torch.arange(start, start + len(scores), device=scores.device).expand(scores.shape[1], -1)
        pool, ids = scores.T, here
        if self._scores is not None and self._of_texts is not None:
            # What was kept lies before the block and is sorted, so a place in the pool orders ties as the index does.
            pool, ids = torch.cat([self._scores, pool], dim=1), torch.cat([self._of_texts, ids], dim=1)
        chosen = best(pool, self.k)
        self._scores, self._of_texts = pool.gather(1, chosen), ids.gather(1, chosen)

    def found(self) -> tuple[Tensor, Tensor]:
        """(N, K) captions of every picture and (M, K) pictures of every caption, best first.

        Raises:
            RuntimeError: No scores were seen.
        """
        if self._of_texts is None:
            raise RuntimeError("no scores were seen, or none were to be kept")
        return torch.cat(self._of_images), self._of_texts.index_select(0, self.text_ids)


def best(scores: Tensor, k: int) -> Tensor:
    """(Q, K) the first candidates of every row in the stable descending order.

    ``topk`` alone orders ties as it pleases. So all candidates that reach the K-th score are taken, put in order of their
    index and then sorted stably, which is exact and far cheaper than sorting everything.

    Args:
        scores: (Q, G), without NaN.
        k: At least 1; G where there are fewer candidates.
    """
    k = min(k, scores.shape[1])
    last = scores.topk(k, dim=1).values[:, -1:]
    reach = int((scores >= last).sum(dim=1).max())
    ids = scores.topk(reach, dim=1, sorted=False).indices.sort(dim=1).values
    order = scores.gather(1, ids).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return ids.gather(1, order)
