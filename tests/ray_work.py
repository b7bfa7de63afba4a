"""What a Ray worker does in the place of a trial, so that tests of scheduling need neither torch nor seconds."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from factories import make_payload, make_ranks
from rich.console import Console

from petlbench.harness.leftovers import work_folder
from petlbench.harness.metrics import Ranks
from petlbench.harness.progress import PlainDisplay
from petlbench.harness.record import Record
from petlbench.harness.record_files import path_of, write_record
from petlbench.harness.spec import Trial

EPOCHS = 3


class Quiet(PlainDisplay):
    """Keeps notes and failures."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.notes, self.failures = [], []

    def note(self, text):
        self.notes.append(text)

    def failed(self, planned):
        super().failed(planned)
        self.failures.append(planned.trial.spec.method.name)


@contextmanager
def logged(folder: Path) -> Iterator[Path]:
    """Within this block, Ray's workers find this module and write their events to a folder; enter it before Ray starts."""
    words = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    # Not mock.patch.dict: it takes back what Ray sets for later sessions of the process too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_LOG", str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, words)))
        yield folder


@contextmanager
def local_ray(cpus: int, gpus: int = 0) -> Iterator[None]:
    """A Ray with so many cores and virtual GPUs within this block."""
    import ray

    from petlbench.harness.ray_session import quiet_ray

    quiet_ray()
    ray.init(
        address="local",
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def record_of(trial: Trial, ranks: Ranks) -> Record:
    """A good record of a trial that was not run."""
    payload = make_payload(ranks)
    payload |= {"spec": trial.spec.model_dump(mode="json"), "spec_id": trial.spec.spec_id}
    return Record.model_validate(payload)


def note(trial: Trial, **more: Any) -> None:
    """One line of JSON per event into a folder that every process sees (``FAKE_LOG``)."""
    import ray

    line = {"trial": trial.spec.label, "time": time.time(), "pid": os.getpid(), **more}
    line["node"] = ray.get_runtime_context().get_node_id()
    with (Path(os.environ["FAKE_LOG"]) / f"{os.getpid()}.log").open("a") as file:
        file.write(json.dumps(line) + "\n")


def workers_of(pid: int) -> list[psutil.Process]:
    """Processes below a command in which a trial runs."""
    inner = psutil.Process(pid).children(recursive=True)
    return [process for process in inner if "ImplicitFunc" in "".join(process.cmdline()[:1])]


def told(folder: Path) -> list[dict[str, Any]]:
    """All lines, in order of time."""
    lines = [json.loads(line) for path in folder.glob("*.log") for line in path.read_text().splitlines()]
    return sorted(lines, key=lambda line: line["time"])


def _first_to_hold() -> bool:
    try:
        (Path(os.environ["FAKE_LOG"]) / "held").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _wait_for_trials_on(gpus: int) -> None:
    """Pass time until trials were seen on so many GPUs, as processes may take longer to start than trials to end."""
    end = time.monotonic() + 120
    folder = Path(os.environ["FAKE_LOG"])
    while len({line.get("devices") for line in told(folder) if line["event"] == "start"} - {None}) < gpus:
        if time.monotonic() > end:
            raise TimeoutError(f"no trial came to a second GPU within 120 s; {gpus} GPUs were expected to be used")
        time.sleep(0.1)


def fake_trial(
    trial: Trial, report: Callable[[dict[str, Any]], None], seconds: float = 0.3, hold: bool = False, gpus: int = 0
) -> None:
    """A few epochs that only pass time and leave a checkpoint each, then a record with ranks and an adapter."""
    work = work_folder(trial)
    work.mkdir(parents=True, exist_ok=True)
    state = work / "epoch"
    done = int(state.read_text()) if state.exists() else 0
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    note(
        trial,
        event="start",
        done=done,
        devices=devices,
        threads=trial.paths.threads,
        part=trial.paths.gpus_per_worker,
        pictures=len(list(Path(trial.paths.dataset_root).rglob("*.jpg"))) if trial.paths.dataset_root else None,
    )
    _wait_for_trials_on(gpus)
    for epoch in range(done + 1, EPOCHS + 1):
        time.sleep(seconds)
        state.write_text(str(epoch))
        note(trial, event="epoch", epoch=epoch)
        if hold and epoch == 1 and _first_to_hold():
            note(trial, event="held")
            time.sleep(600)
        report({"epoch": epoch, "epochs": EPOCHS, "loss": 1.0 / epoch, "best_mR": float(epoch)})
    path = path_of(trial)
    ranks = make_ranks(2.0, trial.spec.seed)
    record = record_of(trial, ranks)
    record.artifacts = {"ranks": f"{path.stem}.ranks.npz", "weights": f"{path.stem}.adapter"}
    folder = path.with_name(f"{path.stem}.adapter")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    ranks.save(path.with_name(f"{path.stem}.ranks.npz"))
    write_record(record, path)
    note(trial, event="end")


def trial_on_two_gpus(trial: Trial, report: Callable[[dict[str, Any]], None]) -> None:
    """The same, but it ends only once trials were seen on two GPUs."""
    fake_trial(trial, report, gpus=2)


def held_trial(trial: Trial, report: Callable[[dict[str, Any]], None]) -> None:
    """The same, but the first to come here waits behind its first checkpoint until its node is lost."""
    fake_trial(trial, report, hold=True)


def slow_trial(trial: Trial, report: Callable[[dict[str, Any]], None]) -> None:
    """The same, slowly enough to be stopped within."""
    fake_trial(trial, report, seconds=0.6)


def failing_trial(trial: Trial, report: Callable[[dict[str, Any]], None]) -> None:
    """Raises."""
    note(trial, event="start")
    raise ValueError("no such luck")


def dying_trial(trial: Trial, report: Callable[[dict[str, Any]], None]) -> None:
    """The process ends without a word."""
    note(trial, event="start")
    os._exit(1)
