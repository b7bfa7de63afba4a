"""Who gets what of a machine or a cluster, and how many trials run at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from petlbench.harness.resources import GIB, ResourceError, Resources
from petlbench.harness.spec import Trial


@dataclass(frozen=True)
class Measured:
    """What the probe of :mod:`petlbench.harness.probe` saw of a method at its batch size.

    Attributes:
        need: Bytes that torch's allocator held at its peak (GPU), or resident bytes (CPU).
        overhead: Bytes that the process took of the card beside them: context and libraries; what others held counts too.
        device: Name of the card, or of the processor.
        capacity: Bytes of the card, or of the machine.
        kind: Which of the two.
    """

    need: int
    overhead: int
    device: str
    capacity: int
    kind: Literal["cuda_reserved", "process_resident"]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.need + self.overhead

    def part(self, resources: Resources) -> float:
        """The smallest part 1/n of the card, n at most ``max_per_gpu``, that holds the peak and the reserve."""
        reserve = max(self.overhead, int(resources.gpu_reserve_gib * GIB))
        fits = [n for n in range(1, resources.max_per_gpu + 1) if self.need + reserve <= self.capacity / n]
        return unit_part(1 / max(fits, default=1))


@dataclass(frozen=True)
class Node:
    """A machine of the cluster as Ray sees it.

    Attributes:
        name: What messages call it.
        cpus: Cores.
        gpus: Whole GPUs.
        memory: Bytes that Ray lets trials ask for; 0 where unknown.
        id: Ray's.
    """

    name: str
    cpus: int
    gpus: int
    memory: int = 0
    id: str = ""


@dataclass(frozen=True)
class Share:
    """What each worker of a trial gets, and how many trials fit at once.

    Attributes:
        cpus: Cores of a worker.
        gpus: GPUs of a worker; below 1 where trials share one.
        concurrent: Trials of this kind that run at once, on all nodes together.
        workers: Processes per trial.
        memory: Bytes of host memory that Ray keeps for a worker; 0: it does not ask.
        beside: Trials that run at once on one machine.
    """

    cpus: int
    gpus: float
    concurrent: int
    workers: int = 1
    memory: int = 0
    beside: int = 1

    @property
    def bundle(self) -> dict[str, float]:
        """Ray's form of what a worker gets."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {kind: amount for kind, amount in asked.items() if amount or kind == "CPU"}

    @property
    def text(self) -> str:
        """``1/4 GPU, 2 cores``; ``4 workers with 1 GPU, 8 cores each``."""
        gpus = f"1/{round(1 / self.gpus)} GPU, " if self.packed else f"{self.gpus:g} GPU, " if self.gpus else ""
        each = f"{gpus}{self.cpus} core{'s' * (self.cpus > 1)}"
        kept = f", {self.memory / GIB:.1f} GiB" if self.memory else ""
        return f"{self.workers} workers with {each} each" if self.workers > 1 else f"{each}{kept}"

    @property
    def packed(self) -> bool:
        """Whether other trials may be on the same GPU."""
        return 0 < self.gpus < 1


def unit_part(gpus: float) -> float:
    """The part 1/n that as many trials fit on as on ``gpus``: 0.4 packs two, as 0.5 does.

    Cut to Ray's four decimals, so that n of them are never more than one GPU.
    """
    if gpus >= 1 or gpus == 0:
        return gpus
    return int(10_000 / int(1 / gpus + 1e-6)) / 10_000


def shares(
    resources: Resources,
    nodes: Sequence[Node],
    trials: Iterable[Trial],
    measured: Mapping[str, Measured] | None = None,
) -> dict[str, Share]:
    """Divide nodes among the trials of a run.

    Args:
        resources: What the user asked for.
        nodes: What Ray sees.
        trials: To be run.
        measured: What trials need, by spec id, where ``auto`` was asked; a trial that is not there gets a whole GPU.

    Returns:
        The share of each trial, by spec id.

    Raises:
        ResourceError: No node can hold a trial.
    """
    trials = list(trials)
    found = {}
    for trial in trials:
        spec_id = trial.spec.spec_id
        need = (measured or {}).get(spec_id)
        trains = trial.spec.train.get("epochs", 1) > 0
        found[spec_id] = _share(resources, nodes, len(trials), trial.spec.method.name, need, trains)
    most = max((s.concurrent for s in found.values()), default=1)
    beside = max((s.beside for s in found.values()), default=1)
    return {key: replace(s, concurrent=most, beside=beside) for key, s in found.items()}


def with_machine(trial: Trial, portion: Share, resources: Resources) -> Trial:
    """The trial with what its share of the machine decides."""
    update = {
        "threads": portion.cpus,
        "workers": portion.workers,
        "gpus_per_worker": portion.gpus,
        "gpu_reserve": int(resources.gpu_reserve_gib * GIB),
        "concurrent_trials": portion.beside,
    }
    return trial.model_copy(update={"paths": trial.paths.model_copy(update=update)})


def _share(
    resources: Resources,
    nodes: Sequence[Node],
    trials: int,
    method: str,
    need: Measured | None = None,
    trains: bool = True,
) -> Share:
    asked = resources.gpus_of(method)
    workers = resources.workers_of(method) if trains else 1
    some_gpu = any(node.gpus for node in nodes)
    each, memory = 1.0 if some_gpu else 0.0, 0
    if asked == "auto":
        if need is not None and workers == 1:
            each = need.part(resources) if some_gpu else 0.0
            memory = 0 if some_gpu else min(need.total, max(node.memory for node in nodes))
    elif asked is not None:
        each = unit_part(asked / workers) if trains else min(1.0, unit_part(asked))
        if each > 1:
            raise ResourceError(
                f"{_key('gpus', method, resources)} asks for {asked:g} GPUs for {workers} worker{'s' * (workers > 1)}; a "
                f"process uses one GPU, so set {_key('workers', method, resources)}={int(asked)}"
            )
    cpus = resources.cpus_of(method)
    per_cpu = max(1, cpus // workers) if cpus else _fair_cpus(nodes, each) if each else 1
    fits_on = [_fit(node, per_cpu, each, memory) for node in nodes]
    if sum(fits_on) < workers:
        raise ResourceError(_too_much(resources, nodes, method, per_cpu, each, workers))
    room = sum(fits_on) // workers
    concurrent = max(1, min(room, resources.max_concurrent or room, trials))
    if cpus is None and not each:  # fewer trials than cores: let each use more
        most = max(node.cpus for node in nodes)
        per_cpu = max(
            n for n in range(1, most + 1) if n == 1 or sum(node.cpus // n for node in nodes) >= concurrent * workers
        )
        fits_on = [_fit(node, per_cpu, each, memory) for node in nodes]
    beside = max(1, min(concurrent, max(fits_on) // workers))
    return Share(per_cpu, each, concurrent, workers, memory, beside)


def _fair_cpus(nodes: Sequence[Node], each: float) -> int:
    """Cores that go with a GPU or a part of one, on the node that has the fewest per GPU."""
    # A part is cut to four decimals (0.3333), so as many as fit on a GPU are counted, not multiplied.
    fair = [
        int(node.cpus / node.gpus / round(1 / each) if each < 1 else node.cpus / node.gpus * each)
        for node in nodes
        if node.gpus
    ]
    return max(1, min(fair, default=1))


def _fit(node: Node, cpus: int, gpus: float, memory: int) -> int:
    """Workers that a node holds."""
    room = node.cpus // cpus
    if gpus:
        room = min(room, node.gpus * int(1 / gpus + 1e-6))
    if memory:
        room = min(room, node.memory // memory)
    return room


def _too_much(resources: Resources, nodes: Sequence[Node], method: str, cpus: int, gpus: float, workers: int) -> str:
    there = "; ".join(f"{node.name}: {node.cpus} cores, {node.gpus} GPUs" for node in nodes)
    whose = f" of {method}" if method else ""
    each = f"{cpus} core{'s' * (cpus > 1)}" + (f" and {gpus:g} GPU" if gpus else "")
    many = f"{workers} workers with {each} each" if workers > 1 else each
    no_gpu = gpus and not any(node.gpus for node in nodes)
    keys = [_key("cpus", method, resources)] if resources.cpus_of(method) and not no_gpu else []
    keys += [_key("gpus", method, resources)] if gpus else []
    keys += [_key("workers", method, resources)] if workers > 1 else []
    return f"a trial{whose} needs {many}, and Ray sees {there}; lower {' or '.join(keys)}"


def _key(what: Literal["cpus", "gpus", "workers"], method: str, resources: Resources) -> str:
    own = resources.per_method.get(method)
    if own is not None and getattr(own, what) is not None:
        return f"resources.per_method.{method}.{what}"
    return f"resources.{what}_per_trial"
