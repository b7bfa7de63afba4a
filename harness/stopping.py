"""Ends a run of Ray Tune when a signal asks for it: each trial after the epoch that it is in, all when time is up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from petlbench.harness.signals import Interruption

if TYPE_CHECKING:
    from ray.tune import Callback, Stopper


class Running:
    """Which of Tune's trials are at work; those that begin after the signal are not waited for."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self._waited: set[str] | None = None

    def began(self, trial_id: str) -> None:
        """A trial is in a worker."""
        self.ids.add(trial_id)

    def ended(self, trial_id: str) -> None:
        """It is not any more: done, failed, or lost with its process."""
        self.ids.discard(trial_id)
        if self._waited is not None:
            self._waited.discard(trial_id)

    def waited_for(self) -> int:
        """After the signal: how many of the trials that were running then still are."""
        if self._waited is None:
            self._waited = set(self.ids)
        return len(self._waited)


def watch(running: Running) -> Callback:
    """A callback of Ray Tune that keeps account of the trials at work."""
    from ray import tune

    class Watch(tune.Callback):
        """Keeps account."""

        def __reduce__(self) -> tuple[Any, ...]:
            return tune.Callback, ()  # Tune pickles it for a restore that is never used here

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            running.began(trial.trial_id)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            running.ended(trial.trial_id)

        on_trial_recover = on_trial_error = on_trial_complete

    return Watch()


def stopper(interruption: Interruption, running: Running, say: Callable[[str], None]) -> Stopper:
    """What Ray Tune asks after every report and in every turn of its loop.

    A trial reports after its checkpoint is written, so one that is stopped at a report loses nothing.

    Args:
        interruption: Says whether to stop.
        running: The trials at work.
        say: Tells the user.
    """
    from ray import tune
    from ray.tune.stopper import NoopStopper

    class Stop(tune.Stopper):
        """Stops when asked."""

        told = False

        def __reduce__(self) -> tuple[Any, ...]:
            return NoopStopper, ()  # Tune pickles it for a restore that is never used here

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            # A line about scored pairs is no epoch, but scores are kept as they come: nothing is lost there either.
            return interruption.asked and not ("finished" in result or "failed" in result)

        def stop_all(self) -> bool:
            if interruption.signal is None:
                return False
            waited = running.waited_for()
            if not self.told:
                say(
                    f"{interruption.signal.name}: {waited} running trial{'s' * (waited != 1)} may end the epoch, within "
                    f"{interruption.grace_s:g} s; a second signal ends everything at once"
                )
                self.told = True
            return not waited or interruption.overdue

    return Stop()
