"""A search through the real command and real Ray: its worker is killed, then its driver, then it is interrupted."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import ray_work
import yaml
from support import ROOT

from petlbench.harness.record_files import find_records, read_record
from petlbench.harness.search.study import Study

EPOCHS = 6
WORDS = [
    *("search", "lora", "-b", "tiny-clip", "-d", "scenes", "--trials", "2", "--scheduler", "fifo", "--jobs", "1"),
    *("--set", "dataset.scenes.train=60", "--set", "dataset.scenes.val=30", "--set", "dataset.scenes.test=30"),
    *("--set", "train.batch_size=20", "--set", "train.sampling=image", "--set", f"train.epochs={EPOCHS}"),
    *("--set", "seeds=[0]", "--tracker", "tensorboard", "--then-run"),
]


pytestmark = pytest.mark.slow  # four starts of the command


class Search:
    """Starts the command and watches the study's files."""

    def __init__(self, folder):
        self.results = folder / "results"
        self.words = [sys.executable, "-m", "petlbench", *WORDS, "--results", str(self.results)]
        self.env = {**os.environ, "PETLBENCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        self.log = folder / "log"

    def start(self):
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.words, env=self.env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def trials(self):
        return [json.loads(path.read_text()) for path in sorted(self.results.glob("search/*/*/*/trials/*.json"))]

    def epochs(self):
        return sum(len(trial["curve"]) for trial in self.trials())

    def wait_for(self, epochs):
        deadline = time.monotonic() + 400
        while self.epochs() < epochs:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def end(self):
        code = self.process.wait(timeout=400)
        return code, self.log.read_text()

    def workers(self):
        return ray_work.workers_of(self.process.pid)


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """A search that was killed twice, interrupted once, and then finished by the same command."""
    found = Search(tmp_path_factory.mktemp("search"))
    try:
        _kill_and_finish(found)
        yield found
    finally:
        found.process.kill()  # still alive where something above has failed


def _kill_and_finish(found):
    found.start()
    found.wait_for(2)
    (worker,) = found.workers()
    worker.kill()
    before = found.epochs()
    found.wait_for(before + 1)  # Ray starts the trial again, and it goes on
    found.process.send_signal(signal.SIGKILL)
    found.process.wait()
    found.reached = [found.trials()]

    found.start()
    found.wait_for(EPOCHS + 1)
    found.process.send_signal(signal.SIGINT)
    found.interrupted = found.end()
    found.reached.append(found.trials())

    found.start()
    found.finished = found.end()


def test_nothing_is_lost_and_nothing_is_repeated(search):
    killed, interrupted, end = *search.reached, search.trials()
    assert [trial["status"] for trial in killed] == ["running"]
    assert interrupted[0]["status"] == "ok" and interrupted[1]["status"] == "running"
    assert [trial["status"] for trial in end] == ["ok", "ok"]
    for trial in end:
        assert [entry["epoch"] for entry in trial["curve"]] == list(range(1, EPOCHS + 1))
        assert trial["samples_seen"] == 60 * EPOCHS
    assert interrupted[0]["curve"][: len(killed[0]["curve"])] == killed[0]["curve"]
    assert end[0] == interrupted[0], "what was finished is not touched again"
    assert end[1]["curve"][: len(interrupted[1]["curve"])] == interrupted[1]["curve"]
    assert end[1]["started"] == interrupted[1]["started"], "and what was begun is not begun again"


def test_an_interruption_says_how_to_go_on_and_leaves_no_best_configuration(search):
    code, text = search.interrupted
    assert (
        code == 130
        and "SIGINT: 1 running trial may end the epoch" in text
        and "interrupted; the same command goes on where it stopped" in text
    )
    assert "Traceback" not in text
    assert "1 to go on with" in search.finished[1]


def test_the_search_ends_with_the_tuned_board_over_other_seeds(search):
    code, text = search.finished
    assert code == 0, text
    (folder,) = search.results.glob("search/scenes/lora/tiny-clip-*")
    best = yaml.safe_load((folder / "best.yaml").read_text())
    (record,) = map(read_record, find_records(search.results))
    assert (record.spec["seed"], best["study"]["seed"]) == (0, 1000)
    assert record.spec["train"]["lr"] == best["config"]["train.lr"]
    assert record.spec["method"]["options"]["rank"] == best["config"]["method.rank"]
    assert (record.selection.budget_trials, record.selection.study) == (2, best["study"]["id"])
    assert (search.results / "board.md").exists()


def test_the_folder_holds_tables_pictures_and_no_checkpoints(search):
    (folder,) = search.results.glob("search/scenes/lora/tiny-clip-*")
    names = {path.name for path in folder.iterdir()}
    assert {"study.json", "best.yaml", "trials.csv", "trials.md", "history.svg", "slices.png"} <= names
    assert ".work" not in names
    study = Study.read(folder)
    assert study.state.spent_s > 0 and study.about.versions["ray"][0].isdigit()


def test_the_tracker_got_the_curves_of_searched_and_of_board_trials(search):
    written = [path.relative_to(search.results).parts for path in search.results.rglob("events.out.tfevents.*")]
    assert {parts[1] for parts in written} == {"search", "scenes"}
