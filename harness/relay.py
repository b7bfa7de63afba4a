"""Between Ray Tune and a run: names of its trials, and a callback for its events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from petlbench.harness.progress import Display
from petlbench.harness.recorded import Planned
from petlbench.harness.resources import RETRIES
from petlbench.harness.spec import Trial, TrialSpec, file_name

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
    return f"{spec.dataset.name}/{spec.method.name}/{file_name(spec.backbone.name)}-s{spec.seed}-{spec.spec_id[:8]}"


def relay(display: Display, by_id: dict[str, Planned], cluster: Cluster | None) -> Any:
    """A callback that hands Tune's events to the display and fetches what other nodes send back; counts ``restarts``."""
    from ray import tune

    def planned_of(trial: Any) -> Planned:
        return by_id[trial.config["job"]["spec_id"]]

    class Relay(tune.Callback):
        """Hands Tune's events to the display, and fetches what other nodes send back."""

        restarts = 0

        def __reduce__(self) -> tuple[Any, ...]:
            return tune.Callback, ()  # Tune pickles it for a restore that is never used here

        def _collect(self, trial: Any) -> None:
            if cluster is not None:
                cluster.collect(trial.config["job"]["spec_id"])

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            display.started(planned_of(trial))

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if "pairs_per_s" in result:
                display.scoring(planned_of(trial), result)
            elif "epoch" in result:
                display.epoch(planned_of(trial), result)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._collect(trial)
            last = trial.last_result or {}
            ended = display.failed if "failed" in last else display.finished if "finished" in last else display.stopped
            ended(planned_of(trial))

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.restarts += 1
            display.restarted(planned_of(trial), trial.num_failures, RETRIES)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._collect(trial)
            display.failed(planned_of(trial))

    return Relay()
