"""One trial in several processes: the same batches, losses and gradients as in one (see ``docs/scaling.md``)."""
