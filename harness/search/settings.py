"""What a search may be asked for: section ``search`` of an experiment, and the options of ``benchmark search``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

DEFAULT_TRIALS = 20
"""Configurations per method where neither a number nor a time is given."""

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(min|[smhd])\s*")

MIN_POPULATION = 4
"""Trials below which ``pbt`` has no population to speak of: its last trial is not a member."""


def _seconds(value: Any) -> Any:
    """``90s``, ``30m``, ``2h``, ``1h30m``, or a number of seconds."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not text or _SPAN.sub("", text):
        raise ValueError(f"expected a time such as 90s, 30m, 2h or 1h30m, found {value!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in _SPAN.findall(text))


class SearchConfig(BaseModel):
    """How every method's settings are searched; the budget is the same for all of them."""

    model_config = ConfigDict(extra="forbid")

    trials: int | None = Field(None, ge=1)
    """Configurations per method, the preset's own among them."""
    time: Annotated[float | None, BeforeValidator(_seconds)] = Field(None, gt=0)
    """Seconds of the clock per method, summed over interruptions; also written ``2h`` or ``90m``."""
    searcher: Literal["optuna", "random", "grid"] = "optuna"
    """What proposes configurations: Optuna's TPE, independent draws, or a shuffled grid."""
    scheduler: Literal["asha", "fifo", "pbt", "hyperband"] = "asha"
    """What stops configurations early, on the best validation mR so far; ``fifo`` stops none, ``pbt`` changes them."""
    seed: int = Field(1000, ge=0, le=2**32 - 1)
    """Of the searched trials and of the proposals; not to be a seed of the board that the outcome goes to."""
    grid_points: int = Field(5, ge=2)
    """Values that ``grid`` takes from an interval, ends included, evenly spaced (in the logarithm for ``loguniform``)."""
    grace: int = Field(1, ge=1)
    """Epochs that ``asha`` leaves every configuration."""
    reduction: float = Field(3, gt=1)
    """Of ``asha`` and ``hyperband``: one in so many configurations goes on from each rung."""
    interval: int | None = Field(None, ge=1)
    """Epochs between the exchanges of ``pbt``; None: a quarter of all epochs."""

    @model_validator(mode="after")
    def _some_budget(self) -> SearchConfig:
        if self.trials is None and self.time is None:
            self.trials = DEFAULT_TRIALS
        if self.scheduler == "pbt" and (self.trials or 0) < MIN_POPULATION:
            found = "only a time" if self.trials is None else f"{self.trials}"
            raise ValueError(
                f"scheduler pbt needs to know how large its population is: expected trials of at least {MIN_POPULATION} "
                f"(--trials N), found {found}"
            )
        return self
