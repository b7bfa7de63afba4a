"""Kill processes of single trials at random moments, hundreds of times within minutes, and audit what they leave.

    python scripts/soak_trials.py                       # 300 kills, at most 15 minutes

Where `soak.py` kills the real command, most of whose time goes into starting Ray and importing libraries, here each process is
forked from one that has imported everything, so that kills fall into what a trial itself does: building, training, writing
checkpoints, ranks, trained tensors and the record. Now and then two processes have the same trial. The audit is the same.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from soak_audit import Found, audit, difference, results

from petlbench.harness.experiment import load_experiment
from petlbench.harness.leftovers import work_folder
from petlbench.harness.plan import make_plan
from petlbench.harness.record_files import good_record
from petlbench.harness.spec import Trial
from petlbench.harness.trial import run_trial

SETS = (
    "dataset.scenes={train: 60, val: 30, test: 30}",
    *("train.batch_size=20", "train.sampling=image", "train.epochs=6"),
)
METHODS = ["lora", "linear_probe", "full_finetune", "zero_shot"]
RIVALS = 0.15
"""How often a second process gets the same trial."""


def plan(folder: Path) -> list[tuple[Trial, Path]]:
    """The trials and where their records go."""
    asked = load_experiment(None, SETS, methods=METHODS, results=str(folder), seeds=[0, 1])
    return [(planned.trial, planned.path) for planned in make_plan(asked).planned]


def fork(trial: Trial, path: Path, log: Path) -> int:
    """A process that runs a trial, and its id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        run_trial(trial, seen=None)
        code = 0
    except BaseException as error:
        print(f"{path}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def ended(pid: int) -> int | None:
    """Exit code, negative for a signal; None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


class Soak:
    """Rounds of trials whose processes are killed."""

    def __init__(self, folder: Path, kills: int, minutes: float, seed: int):
        self.folder, self.kills, self.limit_s = folder, kills, 60 * minutes
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """The undisturbed trials, the kills, the audits."""
        began = time.monotonic()
        trials = plan(self.folder / "undisturbed")
        for trial, path in trials:
            self.peacefully(trial, path)
        self.expected = results(self.folder / "undisturbed")
        self.typical_s = (time.monotonic() - began) / len(trials)
        print(f"undisturbed: {len(trials)} trials, {self.typical_s:.1f} s each", flush=True)
        self.began = time.monotonic()
        while self.going():
            self.counts["rounds"] += 1
            self.round(self.folder / f"round-{self.counts['rounds']}")
        self.minutes = (time.monotonic() - self.began) / 60

    def going(self) -> bool:
        """Whether more is to be killed."""
        return self.counts["kills"] < self.kills and time.monotonic() - self.began < self.limit_s

    def round(self, folder: Path) -> None:
        """Until every trial has its record, or enough was killed."""
        trials = plan(folder)
        while self.going() and (left := [(t, p) for t, p in trials if good_record(p, t) is None]):
            self.disturbed(*self.random.choice(left), folder)
        for trial, path in trials:
            if good_record(path, trial) is None:
                self.peacefully(trial, path)
        self.counts.update(audit(folder, self.expected))
        print(f"round {self.counts['rounds']}: {self.counts['kills']} kills so far", flush=True)

    def peacefully(self, trial: Trial, path: Path) -> None:
        """Run a trial to its end."""
        log = self.folder / "log"
        if code := os.waitstatus_to_exitcode(os.waitpid(fork(trial, path, log), 0)[1]):
            raise Found(f"{path}: the trial ended with {code}; see {log}")

    def disturbed(self, trial: Trial, path: Path, folder: Path) -> None:
        """One or two processes for a trial; each is killed at some moment, if it has not ended before."""
        pids = [fork(trial, path, self.folder / "log") for _ in range(1 + (self.random.random() < RIVALS))]
        self.counts["two processes on one trial"] += len(pids) > 1
        for pid in pids:
            until = time.monotonic() + self.random.uniform(0, self.typical_s)
            while (code := ended(pid)) is None and time.monotonic() < until:
                time.sleep(0.005)
            if code is None:
                os.kill(pid, signal.SIGKILL)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code == -signal.SIGKILL:
                self.counts["kills"] += 1
                self.counts[f"killed {self.moment(trial, path)}"] += 1
            elif code:
                raise Found(f"{path}: the trial ended with {code}; see {self.folder / 'log'}")
        record = good_record(path, trial)
        if record is not None and (differs := difference(record, path, *self.expected[record.spec_id])):
            raise Found(f"{path}: {differs} other than undisturbed")

    def moment(self, trial: Trial, path: Path) -> str:
        """When it was, by what lies there."""
        work = work_folder(trial)
        if list(work.glob(".writing-*")):
            return "while a checkpoint was written"
        if list(path.parent.glob(f".{path.stem}.*")):
            return "while a result was written"
        if path.exists():
            return "after the record"
        return "after an epoch" if list(work.glob("epoch-*")) else "before the first checkpoint"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; default: a new temporary folder")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="petlbench-soak-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PETLBENCH_CACHE"] = str(folder / "cache")
    print(f"working in {folder}", flush=True)
    soak = Soak(folder, options.kills, options.minutes, options.seed)
    try:
        soak.run()
    except Found as flaw:
        sys.exit(f"after {soak.counts['kills']} kills: {flaw}")
    for name, count in soak.counts.items():
        print(f"{count:6,d} {name}")
    print(f"all is well after {soak.minutes:.1f} minutes")


if __name__ == "__main__":
    main()
