"""The main job through the real command, real Ray and real DeepSpeed: run, skip, fail, die, finish."""

import json
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


def run(*words: str, cache: Path, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        command("run", *words), env=environment(cache), cwd=cwd, capture_output=True, text=True, timeout=420
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


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
def first_run(tmp_path_factory, cache):
    """Every built-in method at the sizes of the embedded default and a plugin that fails, one epoch, one seed."""
    folder = tmp_path_factory.mktemp("run")
    plugin = folder / "failing.py"
    plugin.write_text(FAILING)
    words = ["all-methods", "-e", str(EMBEDDED), "--seed", "0", "--plugin", str(plugin), *SETTINGS]
    words += ["--results", str(folder / "results")]
    return folder / "results", words, run(*words, cache=cache)


def test_every_method_is_recorded_and_ranked(first_run):
    results, _, done = first_run
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


def test_a_failing_method_is_recorded_and_the_others_go_on(first_run):
    results, _, done = first_run
    assert done.returncode == 1
    assert "failed: failing/scenes/tiny-clip/s0: RuntimeError: no such luck" in done.stdout
    (path,) = results.glob("scenes/failing/*.json")
    record = read_record(path)
    assert record.status == "failed"
    assert "build" in record.error.traceback
    assert "no such luck" in (results / "board.md").read_text()


def test_workers_see_the_hugging_face_library_not_our_folder(first_run):
    results, _, _ = first_run
    (path,) = results.glob("scenes/failing/*.json")
    assert "site-packages" in read_record(path).error.message


def test_the_log_is_plain_and_tells_epochs_and_counts(first_run):
    _, _, done = first_run
    assert "\x1b" not in done.stdout
    assert "lora/scenes/tiny-clip/s0 epoch 1/1 loss " in done.stdout
    assert "val mR" in done.stdout
    assert re.search(r"vilt_full/scenes/tiny-vilt/s0 scores [\d,]+ of [\d,]+ pairs, [\d,]+/s, 0:\d\d left", done.stdout)
    assert "1 failed" in done.stdout


def test_the_same_command_repeats_only_what_failed(first_run, cache):
    results, words, _ = first_run
    before = {p: p.stat().st_mtime_ns for p in find_records(results) if "failing" not in str(p)}
    again = run(*words, cache=cache)
    assert f"{len(before)} of {len(before) + 1} trials are recorded already" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_records_and_ranks_allow_a_rebuilt_board(first_run, tmp_path):
    results, _, _ = first_run
    out = subprocess.run(
        command("leaderboard", "--results", str(results), "--out", str(tmp_path)),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "board.md").read_bytes() == (results / "board.md").read_bytes()


def done_yet(results: Path, method: str) -> list[Path]:
    return list(results.glob(f"scenes/{method}/*.json"))


def checkpoints(results: Path) -> list[int]:
    """Epochs of checkpoints that belong to no finished trial."""
    finished = {read_record(p).spec_id[:16] for p in find_records(results)}
    found = [p for p in results.glob(".work/*/epoch-*") if p.parent.name not in finished]
    return [int(p.name.split("-")[1]) for p in found]


def test_killed_driver_then_the_same_command_finishes_the_rest(tmp_path, cache):
    results = tmp_path / "results"
    words = ["full_finetune", "lora", "-b", "tiny-clip", "-d", "scenes", "--seed", "0", *SETTINGS, "--jobs", "1"]
    words += ["--set", "method.full_finetune.train.epochs=1", "--set", "method.lora.train.epochs=8"]
    words += ["--results", str(results)]
    driver = subprocess.Popen(
        command("run", *words), env=environment(cache), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    # Wait for the first record and for a checkpoint of the other trial, then kill the driver without warning.
    while not (done_yet(results, "full_finetune") and checkpoints(results)):
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    (done,) = results.glob("scenes/full_finetune/*.json")
    stamp = done.stat().st_mtime_ns
    assert not list(results.glob("scenes/lora/*.json"))
    reached = max(checkpoints(results))

    again = run(*words, cache=cache)
    assert again.returncode == 0, again.stdout + again.stderr
    assert done.stat().st_mtime_ns == stamp, "what was finished is not repeated"
    (record,) = results.glob("scenes/lora/*.json")
    assert [e.epoch for e in read_record(record).curve] == list(range(1, 9))
    first = next(line for line in again.stdout.splitlines() if "lora/scenes" in line and " epoch " in line)
    assert int(first.split(" epoch ")[1].split("/")[0]) > reached - 1, "the killed trial went on from its checkpoint"
    for path in find_records(results):
        json.loads(path.read_text())
