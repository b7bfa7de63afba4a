"""A Ray of our own, or a connection to a cluster, for the time of a command."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from petlbench.harness.failure import first_line
from petlbench.harness.resources import ResourceError, Resources
from petlbench.harness.signals import while_ray_starts

_STARTS = 3
"""Attempts to start Ray."""

_PATIENCE_S = 60.0
"""How long a node that Ray has started may take to say what it has."""

_OVERLOADED = "This machine is likely to be overloaded; give the same command again when it has less to do"


@contextmanager
def ray_session(resources: Resources) -> Iterator[None]:
    """A connection to the cluster at ``resources.address``, or a Ray of our own that ends with the block.

    Raises:
        ResourceError: Ray did not start, or its node does not say what it has.
    """
    quiet_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    with while_ray_starts():
        if resources.address:
            ray.init(address=resources.address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            _start_ray()
        try:
            _wait_for_own_node(cores=not resources.address)  # the driver of a cluster may be on a head without any
            yield
        finally:
            ray.shutdown()


def _start_ray() -> None:
    """Start Ray here. On a machine that is busy with other things its parts may not find each other in the time they have."""
    import ray

    for left in reversed(range(_STARTS)):
        try:
            # Without an address Ray would join any cluster that was started on this machine.
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray raises no narrower class here
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if not left:
                raise ResourceError(
                    f"Ray did not start in {_STARTS} attempts: {first_line(str(error))} {_OVERLOADED}"
                ) from error


def _wait_for_own_node(cores: bool) -> None:
    """Return when Ray lists this node with its resources, on a busy machine some time after its start.

    Args:
        cores: Whether there must be cores among them.

    Raises:
        ResourceError: It does not.
    """
    import ray

    own = ray.get_runtime_context().get_node_id()
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        alive = (node for node in ray.nodes() if node["Alive"] and node["NodeID"] == own)
        has: dict[str, float] = next((node["Resources"] for node in alive), {})
        if has.get("CPU") if cores else has:
            return
        if time.monotonic() > deadline:
            raise ResourceError(
                f"Ray started, but after {_PATIENCE_S:g} s its node here shows {has or 'no resources'}, expected cores. "
                f"{_OVERLOADED}"
            )
        time.sleep(0.1)  # Ray has nothing to wait on


def quiet_ray() -> None:
    """Ray's own progress report and usage ping off: the display speaks for the run. To be called before Ray starts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # files in a folder that is thrown away
    # Tune would stop at once where petlbench.harness.signals lets trials end their epoch.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # A failed trial reports no metric, and Tune would object.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE", "1")  # or a trial could be started again without end
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    # A process per core before there is work for any: on a busy machine Ray's own parts then start too late.
    os.environ.setdefault("RAY_enable_worker_prestart", "0")
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("ray.tune.tune", "ray.tune.execution"):  # failed trials and lost workers are told by the run itself
        logging.getLogger(name).setLevel(logging.CRITICAL)
