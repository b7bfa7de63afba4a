"""What `benchmark plan` says of the share that each trial will get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from petlbench.harness.recorded import Planned
    from petlbench.harness.resources import Resources
    from petlbench.harness.shares import Node, Share


@dataclass(frozen=True)
class Portions:
    """Shares by spec id.

    Attributes:
        shares: Of the trials to run.
        unmeasured: Those for which ``auto`` was asked and that no probe has measured yet.
        notes: What the user should know.
    """

    shares: dict[str, Share]
    unmeasured: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def text(self, spec_id: str) -> str:
        """``1/4 GPU, 2 cores``; empty for a trial that is not to be run."""
        if spec_id in self.unmeasured:
            return "auto, to be measured"
        return self.shares[spec_id].text if spec_id in self.shares else ""


def portions_of(planned: Sequence[Planned], resources: Resources, *, probe: bool = False) -> Portions:
    """Shares as a run would give them.

    Args:
        planned: Trials to run.
        resources: What was asked.
        probe: Measure what is not known; else nothing is computed.

    Raises:
        ResourceError: No node can hold a trial.
    """
    from petlbench.harness.shares import shares

    trials = [item.trial for item in planned]
    if not trials:
        return Portions({})
    notes: list[str] = []
    if probe or resources.address:
        from petlbench.harness.cluster import nodes, open_cluster
        from petlbench.harness.probe import known, measure, smallest_card
        from petlbench.harness.ray_session import ray_session

        with ray_session(resources):
            there, measured = nodes(), {}
            if probe:
                with open_cluster(trials, resources) as cluster:
                    measured = measure(trials, resources, cluster, notes.append)
            elif resources.asks_auto:
                measured = known(trials, resources, smallest_card())
    else:
        from petlbench.harness.probe import card_here, known

        there = [_this_machine()]
        measured = known(trials, resources, card_here()) if resources.asks_auto else {}
    asked = {t.spec.spec_id for t in trials if resources.gpus_of(t.spec.method.name) == "auto"}
    unmeasured = set() if probe else asked - set(measured)
    return Portions(shares(resources, there, trials, measured), unmeasured, notes)


def _this_machine() -> Node:
    import os

    import psutil
    import torch

    from petlbench.harness.shares import Node

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Node("this machine", cores, torch.cuda.device_count(), psutil.virtual_memory().total)
