"""The main job through the real command, real Ray and real DeepSpeed: run, skip, fail, die, finish."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT

from petlbench.harness.experiment import EMBEDDED
from petlbench.harness.record_files import find_records, read_record
from petlbench.leaderboard.text import markdown
from petlbench.methods import registry

SETTINGS = [
    *("--set", "dataset.scenes.train=60", "--set", "dataset.scenes.val=30", "--set", "dataset.scenes.test=30"),
    *("--set", "train.batch_size=20", "--set", "train.sampling=image"),
]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "petlbench", *words]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "PETLBENCH_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "160", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


LONG, EPOCHS = "adapter", 20
FAILS = "failing"

FAILING = '''
"""Fails on purpose, and reports what a worker sees under the name of Hugging Face's library."""
import datasets

from petlbench.methods.base import Method


class Failing(Method):
    title = "Failing"

    def build(self, backbone):
        raise RuntimeError(f"no such luck; datasets is {datasets.__file__}")

    def trainable(self, model):
        return []
'''


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory, cache):
    """A plugin that fails, then every built-in method at the sizes of the embedded default, one seed; one epoch, but twenty
    of the first of them. Killed without warning when a trial has failed, one is done and that one has checkpoints.

    Gives the results folder, the words of the command, the records that stand with their times, and the last
    epoch reached.
    """
    folder = tmp_path_factory.mktemp("run")
    plugin, results, log = folder / f"{FAILS}.py", folder / "results", folder / "log"
    plugin.write_text(FAILING)
    words = [FAILS, "all-methods", "-e", str(EMBEDDED), "--seed", "0", "--plugin", str(plugin), *SETTINGS]
    words += ["--set", f"method.{LONG}.train.epochs={EPOCHS}", "--results", str(results)]
    with log.open("w") as out:
        driver = subprocess.Popen(command("run", *words), env=environment(cache), cwd=ROOT, stdout=out, stderr=out)
        deadline = time.monotonic() + 240
        while not (written(results) and written(results, "failed") and max(checkpoints(results), default=0) > 1):
            assert driver.poll() is None, "the run ended before it could be killed: " + log.read_text()
            assert time.monotonic() < deadline, "no checkpoint appeared: " + log.read_text()
            time.sleep(0.05)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    return results, words, written(results) | written(results, "failed"), max(checkpoints(results))


def written(results: Path, status: str = "ok") -> dict[Path, int]:
    """Records with the times they were written at."""
    return {p: p.stat().st_mtime_ns for p in find_records(results) if read_record(p).status == status}


def checkpoints(results: Path) -> list[int]:
    """Epochs of checkpoints that belong to no finished trial."""
    finished = {read_record(p).spec_id[:16] for p in find_records(results)}
    found = [p for p in results.glob(".work/*/epoch-*") if p.parent.name not in finished]
    return [int(p.name.split("-")[1]) for p in found]


@pytest.fixture(scope="module")
def second_run(killed_run, cache):
    """The same command again, to its end."""
    results, words, _, _ = killed_run
    line = command("run", *words)
    return results, subprocess.run(line, env=environment(cache), cwd=ROOT, capture_output=True, text=True, timeout=420)


def test_after_a_killed_run_the_same_command_does_what_failed_and_what_is_left(killed_run, second_run):
    results, _, before, reached = killed_run
    _, done = second_run
    (failed,) = written(results, "failed")
    good, now = before.keys() - {failed}, written(results)
    assert {p: now[p] for p in good} == {p: before[p] for p in good}, "what was finished is not repeated"
    assert failed.stat().st_mtime_ns > before[failed], "what failed is"
    already, of = map(int, re.search(r"(\d+) of (\d+) trials are recorded already", done.stdout).groups())
    # A worker may end a trial after its driver is gone, so more may be recorded than were seen.
    assert len(good) <= already < of == len(list(find_records(results)))
    (path,) = results.glob(f"scenes/{LONG}/*.json")
    assert path not in before
    assert [e.epoch for e in read_record(path).curve] == list(range(1, EPOCHS + 1))
    first = next(line for line in done.stdout.splitlines() if f"{LONG}/scenes" in line and " epoch " in line)
    assert int(first.split(" epoch ")[1].split("/")[0]) > reached - 1, "the killed trial went on from its checkpoint"


def test_every_method_is_recorded_and_ranked(second_run):
    results, done = second_run
    records = {r.method.name: r for r in map(read_record, find_records(results))}
    builtin = {name for name, source in registry.discover().items() if source.builtin}
    good = {name: r for name, r in records.items() if r.status == "ok"}
    assert set(good) == builtin, done.stdout + done.stderr
    assert {good["vilt_lora"].spec["backbone"]["name"], good["lora"].spec["backbone"]["name"]} == {
        "tiny-vilt",
        "tiny-clip",
    }
    board = (results / "board.md").read_text()
    for record in good.values():
        assert markdown(record.method.name) in board
        assert f"{record.metrics['test'].recalls['mR']:.2f}" in board
    assert (results / "board.csv").is_file()


def test_a_failing_method_is_recorded_and_the_others_go_on(second_run):
    results, done = second_run
    assert done.returncode == 1
    assert f"failed: {FAILS}/scenes/tiny-clip/s0: RuntimeError: no such luck" in done.stdout
    (path,) = results.glob(f"scenes/{FAILS}/*.json")
    record = read_record(path)
    assert record.status == "failed"
    assert "build" in record.error.traceback
    assert "no such luck" in (results / "board.md").read_text()


def test_workers_see_the_hugging_face_library_not_our_folder(second_run):
    results, _ = second_run
    (path,) = results.glob(f"scenes/{FAILS}/*.json")
    assert "site-packages" in read_record(path).error.message


def test_the_log_is_plain_and_tells_epochs_and_counts(second_run):
    _, done = second_run
    assert "\x1b" not in done.stdout
    assert "lora/scenes/tiny-clip/s0 epoch 1/1 loss " in done.stdout
    assert "val mR" in done.stdout
    assert re.search(r"vilt_full/scenes/tiny-vilt/s0 scores [\d,]+ of [\d,]+ pairs, [\d,]+/s, 0:\d\d left", done.stdout)
    assert "1 failed" in done.stdout


def test_records_and_ranks_allow_a_rebuilt_board(second_run, tmp_path):
    results, _ = second_run
    out = subprocess.run(
        command("leaderboard", "--results", str(results), "--out", str(tmp_path)),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "board.md").read_bytes() == (results / "board.md").read_bytes()
