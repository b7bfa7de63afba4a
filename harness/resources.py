"""What the user asks for: cores, GPUs or parts of them, workers, a cluster; in general and by method."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from petlbench.datasets.validation import suggest
from petlbench.errors import PetlbenchError
from petlbench.harness.signals import GRACE_S

GIB = 2**30

RETRIES = 3
"""How often a trial whose process or node was lost is started again within a run of the command."""


class ResourceError(PetlbenchError):
    """No machine can give what was asked; the message names the key, what was found and the way out."""


def _whole_or_below_one(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("a trial has whole GPUs, or a part of one that is below 1 (0.5, 0.25)")
    return gpus


Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole_or_below_one)] | Literal["auto"]
"""GPUs of a trial; ``auto``: the smallest part of one that holds the measured memory of the method."""


class MethodResources(BaseModel):
    """What a trial of one method may use; what is None is as for every method."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    cpus: int | None = Field(None, ge=1)
    gpus: Gpus | None = None
    workers: int | None = Field(None, ge=1)


class Resources(BaseModel):
    """What one trial may use, and where trials run."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    cpus_per_trial: int | None = Field(None, ge=1)
    """None: one where there is no GPU, else the machine's cores divided by its GPUs."""
    gpus_per_trial: Gpus | None = None
    """None: one per worker if there is a GPU, else none. Parts below 1 pack trials: 0.5 two, 0.25 four; their cost is not
    shown. ``auto`` measures what each method needs."""
    workers_per_trial: int | None = Field(None, ge=1)
    """Processes that train a trial together; None: one per GPU of the trial."""
    per_method: dict[str, MethodResources] = Field(default_factory=dict)
    """Exceptions by method: ``{lora: {gpus: 0.25}}``."""
    max_concurrent: int | None = Field(None, ge=1)
    max_per_gpu: int = Field(8, ge=1)
    """Most trials that ``auto`` puts on one GPU."""
    gpu_reserve_gib: float = Field(1.0, ge=0)
    """GiB of its part that a trial on a shared GPU leaves to what torch's allocator does not count: the CUDA context and
    the libraries. The allocator is held to the rest."""
    grace_s: float = Field(GRACE_S, ge=0)
    """Seconds that running trials have to end their epoch after SIGINT or SIGTERM."""
    address: str | None = None
    """Address of a running Ray cluster; None starts Ray here for the run."""
    ship_data: bool = False
    """Send data sets, weights and plugins, once, to the nodes of a cluster that do not see their paths."""

    def gpus_of(self, method: str) -> float | Literal["auto"] | None:
        """What was asked for a method."""
        own = self.per_method.get(method, MethodResources()).gpus
        return self.gpus_per_trial if own is None else own

    def cpus_of(self, method: str) -> int | None:
        """What was asked for a method."""
        return self.per_method.get(method, MethodResources()).cpus or self.cpus_per_trial

    def workers_of(self, method: str) -> int:
        """Processes per trial of a method."""
        asked = self.per_method.get(method, MethodResources()).workers or self.workers_per_trial
        gpus = self.gpus_of(method)
        return asked or (max(1, int(gpus)) if isinstance(gpus, float) else 1)

    @property
    def asks_auto(self) -> bool:
        """Whether any method's part of a GPU is to be measured."""
        return "auto" in (self.gpus_per_trial, *(own.gpus for own in self.per_method.values()))


def check_methods(resources: Resources, known: Collection[str]) -> None:
    """See that every exception is of a method that exists.

    Raises:
        ResourceError: With the nearest known name.
    """
    for name in resources.per_method:
        if name not in known:
            raise ResourceError(f"resources.per_method.{name}: there is no method `{name}`; {suggest(name, known)}")
