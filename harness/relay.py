"""Between Ray Tune and a run: names of its trials, and a callback for its events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from petlbench.harness.plan import Planned
from petlbench.harness.progress import Display
from petlbench.harness.resources import RETRIES
from petlbench.harness.spec import Trial, TrialSpec
from petlbench.harness.stopping import Running

if TYPE_CHECKING:
    from petlbench.harness.cluster import Cluster


def spec_of(config: Mapping[str, Any]) -> TrialSpec:
    """The spec in the configuration of a Tune trial."""
    return Trial.model_validate(config["job"]["trial"]).spec


def name_of(trial: Any) -> str:
    """Readable name of a Tune trial and of its scratch folder."""
    return scratch_name(spec_of(trial.config))


def scratch_name(spec: TrialSpec) -> str:
    """Name of a trial's scratch folder, by which its end is known also where it never reported anything."""
    return f"{spec.method.name}-s{spec.seed}-{spec.spec_id[:8]}"


def place_of(trial: Any) -> str:
    """Readable relative path of a Tune trial, for trackers."""
    spec = spec_of(trial.config)
    backbone = spec.backbone.name.replace("/", "_").replace(":", "_")
    return f"{spec.dataset.name}/{spec.method.name}/{backbone}-s{spec.seed}-{spec.spec_id[:8]}"


def relay(display: Display, by_id: dict[str, Planned], cluster: Cluster | None, running: Running) -> Any:
    """A callback that hands Tune's events to the display and fetches what other nodes send back; counts ``restarts``."""
    from ray import tune

    class Relay(tune.Callback):
        """Hands Tune's events to the display, and fetches what other nodes send back."""

        restarts = 0

        def __init__(
            self,
            show: Display | None = None,
            planned: dict[str, Planned] | None = None,
            home: Cluster | None = None,
        ):
            self.show, self.planned, self.home = show, planned or {}, home

        def __getstate__(self) -> dict[str, Any]:
            # Tune pickles its callbacks for a restore that is never used here.
            return {"show": None, "planned": {}, "home": None}

        def _tell(self, event: str, trial: Any, *more: Any) -> None:
            if self.show is not None:
                getattr(self.show, event)(self.planned[spec_of(trial.config).spec_id], *more)

        def _collect(self, trial: Any) -> None:
            if self.home is not None:
                self.home.collect(spec_of(trial.config).spec_id)

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            running.began(trial.trial_id)
            self._tell("started", trial)

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if "pairs_per_s" in result:
                self._tell("scoring", trial, result)
            elif "epoch" in result:
                self._tell("epoch", trial, result)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            running.ended(trial.trial_id)
            self._collect(trial)
            last = trial.last_result or {}
            self._tell("failed" if "failed" in last else "finished" if "finished" in last else "stopped", trial)

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            running.ended(trial.trial_id)
            self.restarts += 1
            self._tell("restarted", trial, trial.num_failures, RETRIES)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            running.ended(trial.trial_id)
            self._collect(trial)
            self._tell("failed", trial)

    return Relay(display, by_id, cluster)
