"""What a loss may look at, of all rows of all processes.

Views are gathered outside the graph: the loss's gradient with respect to each row of them is computed by every process, and
each takes its own rows on (:mod:`petlbench.harness.grad_cache`). So no gradient travels through a collective, where it is
easily lost (own rows only: towers learn at 1/W of the rate, the temperature at the whole) or counted W times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from petlbench.harness.distributed.world import World
from petlbench.methods.base import Batch


def gathered_ids(batch: Batch, world: World) -> Batch:
    """Ids and labels of the rows of all processes; pictures, words and kept features stay where they are."""
    columns = [c for c in (batch.image_ids, batch.text_ids, batch.labels) if c is not None]
    together = world.gathered(torch.stack(columns, 1)).unbind(1)
    labels: Tensor | None = together[2] if batch.labels is not None else None
    return Batch(images=None, tokens=None, image_ids=together[0], text_ids=together[1], labels=labels)
