"""One run of Ray Tune. What must survive it lies in records, checkpoints and studies; Tune's own folder is thrown away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from petlbench.harness.leftovers import scratch_folder
from petlbench.harness.resources import RETRIES
from petlbench.harness.signals import Interruption
from petlbench.harness.stopping import Running, stopper, watch

if TYPE_CHECKING:
    from ray.tune import ResultGrid


def run_tune(
    work: Callable[[dict[str, Any]], None],
    bundle: Callable[[dict[str, Any]], dict[str, float]],
    name: Callable[[Any], str],
    interruption: Interruption,
    note: Callable[[str], None],
    callbacks: Sequence[Any],
    param_space: dict[str, Any] | None = None,
    **options: Any,
) -> ResultGrid:
    """Run trials until none is left, or a signal has asked to stop and those that were running have ended their epoch.

    Args:
        work: What a worker does with the configuration of a trial.
        bundle: What it asks of the machine, by configuration.
        name: Of a Tune trial and of its folder.
        interruption: Says whether to stop.
        note: Tells the user of it.
        callbacks: Get Tune's events.
        param_space: Configurations, where no searcher proposes them.
        **options: Of ``ray.tune.TuneConfig``.
    """
    from ray import tune

    running = Running()
    with scratch_folder() as scratch:
        return tune.Tuner(
            tune.with_resources(work, lambda config: tune.PlacementGroupFactory([bundle(config)])),
            param_space=param_space,
            tune_config=tune.TuneConfig(
                reuse_actors=True,  # importing torch, open_clip and DeepSpeed anew would cost more than a small trial
                trial_name_creator=name,
                trial_dirname_creator=name,
                **options,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(scratch),
                verbose=0,
                stop=stopper(interruption, running, note),
                callbacks=[watch(running), *callbacks],
                # What a trial raises is caught in the worker: what Ray sees is the loss of a process or of a node.
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        ).fit()
