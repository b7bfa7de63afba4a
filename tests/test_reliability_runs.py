"""Signals, kills and second commands while trials run under Ray: rows of docs/reliability.md."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager

import psutil
import pytest
import ray_work
from small_trials import small_plan
from support import ROOT

from petlbench.harness.record_files import find_records, read_record
from petlbench.harness.resources import Resources
from petlbench.harness.schedule import run_trials
from petlbench.harness.signals import CLEANUP_S


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    with ray_work.logged(tmp_path_factory.mktemp("log")) as folder:
        yield folder


@pytest.fixture(scope="module")
def two_cores(log):
    with ray_work.local_ray(cpus=2):
        yield


def events(log, planned, kind):
    labels = {p.trial.spec.label for p in planned}
    return [line for line in ray_work.told(log) if line["trial"] in labels and line["event"] == kind]


@contextmanager
def signalled_at(log, planned, kind, number):
    """Within this block this process gets a signal as soon as a trial tells an event; none afterwards."""
    left = threading.Event()

    def watch():
        while not left.wait(0.02):
            if events(log, planned, kind):
                return os.kill(os.getpid(), number)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        left.set()
        watcher.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_lets_trials_end_their_epoch_and_the_next_run_goes_on(two_cores, log, tmp_path, number):
    planned = small_plan(tmp_path, methods=["lora" if number == signal.SIGTERM else "adapter"], seeds=[0, 1, 2]).planned
    display = ray_work.Quiet()
    before = signal.getsignal(number)
    with signalled_at(log, planned, "epoch", number):
        outcome = run_trials(planned, Resources(), display, run=ray_work.slow_trial)
    assert (outcome.signal, outcome.interrupted, outcome.failed, outcome.restarts) == (number, True, [], 0)
    assert outcome.finished < 3 and signal.getsignal(number) == before
    (said,) = (note for note in display.notes if note.startswith(f"{number.name}: "))  # a trial may have ended before
    assert "may end the epoch" in said
    again = run_trials(planned, Resources(), ray_work.Quiet(), run=ray_work.slow_trial)
    assert (again.finished, again.signal, again.interrupted) == (3, None, False)
    told = [(line["trial"], line["epoch"]) for line in events(log, planned, "epoch")]
    assert len(told) == len(set(told)) == 3 * ray_work.EPOCHS, "no epoch was lost and none repeated"


@pytest.mark.slow
def test_a_trial_that_does_not_end_its_epoch_in_time_is_ended(two_cores, log, tmp_path):
    planned = small_plan(tmp_path, methods=["full_finetune"], seeds=[3]).planned
    began = time.monotonic()
    with signalled_at(log, planned, "held", signal.SIGTERM):
        outcome = run_trials(planned, Resources(grace_s=1), ray_work.Quiet(), run=ray_work.held_trial)
    assert (outcome.signal, outcome.finished, outcome.failed) == (signal.SIGTERM, 0, [])
    assert time.monotonic() - began < 120, "not the ten minutes that it holds"


# The real command -----------------------------------------------------------------------------------------------------

MARK = "PETLBENCH_TEST_MARK"
SETTINGS = [
    *("--set", "dataset.scenes={train: 60, val: 30, test: 30}", "--set", "train.batch_size=20"),
    *("--set", "train.sampling=image", "--set", "resources.cpus_per_trial=1"),
]


class Command:
    """One `benchmark run` in a session of its own."""

    def __init__(self, results, cache, *words):
        self.mark, self.log = uuid.uuid4().hex, results.with_suffix(f".{time.monotonic_ns()}.log")
        env = {**os.environ, MARK: self.mark, "PETLBENCH_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        line = [sys.executable, "-m", "petlbench", "run", *words, *SETTINGS, "--results", str(results)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                line, env=env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def text(self):
        return self.log.read_text()

    def wait_for(self, text):
        deadline = time.monotonic() + 400
        while text not in self.text:
            assert self.process.poll() is None and time.monotonic() < deadline, self.text
            time.sleep(0.05)

    def end(self):
        return self.process.wait(400)

    def workers(self):
        return ray_work.workers_of(self.process.pid)

    def left(self):
        """Living processes that it started."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.name())
            except psutil.Error:
                pass  # gone, or another user's
        return found

    def gone(self, within):
        deadline = time.monotonic() + within
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.2)
        return not self.left()


@pytest.mark.slow
def test_a_killed_worker_a_killed_command_and_a_scheduler_that_signals_every_process(tmp_path):
    results, cache = tmp_path / "results", tmp_path / "cache"
    words = ["lora", "-b", "tiny-clip", "-d", "scenes", "--seed", "0", "--set", "train.epochs=60"]
    first = Command(results, cache, *words)
    first.wait_for("epoch 3/60")
    (worker,) = first.workers()
    worker.kill()
    first.wait_for("started again (1 of at most 3 times)")
    first.wait_for("epoch 8/60")
    first.process.kill()
    first.end()
    assert first.gone(60), first.left()

    # Slurm sends SIGTERM to each process of a job step: Ray's own are hit too.
    second = Command(results, cache, *words)
    second.wait_for("epoch 12/60")
    assert "epoch 2/60" not in second.text
    os.killpg(second.process.pid, signal.SIGTERM)
    began = time.monotonic()
    assert second.end() == 128 + signal.SIGTERM, second.text
    assert time.monotonic() - began < 25 + CLEANUP_S + 5
    assert second.gone(60), second.left()

    third = Command(results, cache, *words)
    assert third.end() == 0, third.text
    (record,) = map(read_record, find_records(results))
    assert [line.epoch for line in record.curve] == list(range(1, 61))
    assert record.notes == []


@pytest.mark.slow
def test_two_commands_on_one_results_folder_run_each_trial_once(tmp_path):
    results, cache = tmp_path / "results", tmp_path / "cache"
    words = ["lora", "linear_probe", "full_finetune", "-b", "tiny-clip", "-d", "scenes", "--seed", "0", "--jobs", "1"]
    pair = [Command(results, cache, *words, "--set", "train.epochs=8") for _ in range(2)]
    assert [command.end() for command in pair] == [0, 0], pair[0].text + pair[1].text
    trained = [
        line.split(" epoch ")[0].split()[-1] for c in pair for line in c.text.splitlines() if " epoch 8/8" in line
    ]
    assert sorted(label.split("/")[0] for label in trained) == ["full_finetune", "linear_probe", "lora"]
    assert all(read_record(path).status == "ok" for path in find_records(results))
    assert (results / "board.md").is_file() and not list(results.glob(".work/*/epoch-*"))
