"""Kill runs of the benchmark at random moments, let them finish, and see that nothing is lost and nothing half-written.

    python scripts/soak.py                              # 100 kills, at most 15 minutes of killing
    python scripts/soak.py --kills 20 --minutes 3 --seed 7 --report soak.json

First the trials run once undisturbed. Then the same command runs on another results folder, and at moments that the seed
decides a worker gets SIGKILL, or the command itself SIGKILL or SIGTERM; it is started again, sometimes twice at once. When all
trials have their records, the next round begins in a fresh folder. In the end the last round is finished in peace, and the
audit compares every record, every rank and every trained tensor with the undisturbed ones, bit for bit. Exit code 1: something
was lost, damaged, repeated or left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from soak_audit import Found, audit, results

from petlbench.harness.record_files import find_records, read_record

MARK = "PETLBENCH_SOAK"
"""In the environment of a command and of all that it starts, Ray's own processes among them."""

WORDS = [
    *("lora", "linear_probe", "full_finetune", "-d", "scenes", "-b", "tiny-clip", "--seed", "0", "--seed", "1"),
    *("--set", "dataset.scenes={train: 60, val: 30, test: 30}", "--set", "train.batch_size=20"),
    *("--set", "train.sampling=image", "--set", "train.epochs=30"),
    # One thread in every run: the last bits of a sum depend on how many share it.
    *("--set", "resources.cpus_per_trial=1", "--jobs", "2"),
]
KINDS = {"worker": 0.7, "driver": 0.2, "term": 0.1}
"""What is killed, and how often: a worker or the command (SIGKILL), the command (SIGTERM)."""
EARLY = 0.15
"""How often the command is killed at any moment between its start and its first epoch, else when workers are there."""
RIVALS = 0.1
"""How often a second command is started on the same folder."""
PATIENCE_S = 1800.0
"""Within this an undisturbed command must end."""
LINGER_S = 90.0
"""Within this everything that a killed command started must be gone."""


@dataclass
class Command:
    """One `benchmark run`, with all that it starts."""

    results: Path
    cache: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.log = self.results.with_suffix(f".{self.mark[:6]}.log")
        env = {**os.environ, MARK: self.mark, "PETLBENCH_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "petlbench", "run", *WORDS, "--results", str(self.results)]
        self.began = time.monotonic()
        self.first_epoch_s: float | None = None
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                words, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """Processes in which a trial runs."""
        found = []
        for process in _descendants(self.process.pid):
            try:
                if "ImplicitFunc" in "".join(process.cmdline()[:1]):
                    found.append(process)
            except psutil.Error:
                pass  # gone in the meantime
        return found

    def end(self, patience: float = PATIENCE_S) -> int:
        """Wait for the end by itself; notes when the first epoch was told."""
        deadline = time.monotonic() + patience
        while (code := self.process.poll()) is None:
            if self.first_epoch_s is None and " epoch " in self.log.read_text():
                self.first_epoch_s = time.monotonic() - self.began
            if time.monotonic() > deadline:
                raise Found(f"the command did not end within {patience:g} s; its log: {self.log}")
            time.sleep(0.05)
        return code

    def kill(self, number: int) -> None:
        """Send a signal to the command itself."""
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def strays(marks: set[str]) -> list[psutil.Process]:
    """Living processes that commands with these marks started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) in marks:
                found.append(process)
        except psutil.Error:
            pass  # gone, or not ours to look at
    return found


class Soak:
    """Rounds of runs that are killed."""

    def __init__(self, folder: Path, kills: int, minutes: float, gap_s: float, seed: int):
        self.folder, self.kills, self.random = folder, kills, random.Random(seed)
        self.limit_s, self.gap_s = 60 * minutes, gap_s
        self.cache = folder / "cache"
        self.counts: Counter[str] = Counter()
        self.dead: set[str] = set()
        self.lingered = 0.0
        self.stamps: dict[Path, tuple[int, int]] = {}
        self.rounds: list[Path] = []
        self.commands = 0

    def run(self) -> None:
        """The undisturbed run, the kills, the audit."""
        self.reference = self.folder / "undisturbed"
        command = self.finish(self.reference)
        self.pace = command.first_epoch_s or 1.0
        self.expected = results(self.reference)
        print(f"undisturbed: {len(self.expected)} trials, first epoch after {self.pace:.1f} s", flush=True)
        began = time.monotonic()
        while self.total < self.kills and time.monotonic() - began < self.limit_s:
            self.round(began)
        self.killing_s = time.monotonic() - began
        for folder in self.rounds:
            self.look(folder)
            self.counts.update(audit(folder, self.expected))
        self.wait_for_strays()

    @property
    def total(self) -> int:
        """Kills so far."""
        return sum(self.counts[kind] for kind in KINDS)

    def round(self, began: float) -> None:
        """Kill until all trials have their records, or enough was killed; then let the command finish."""
        folder = self.folder / f"round-{len(self.rounds) + 1}"
        self.rounds.append(folder)
        while self.total < self.kills and time.monotonic() - began < self.limit_s:
            command = self.start(folder)
            rival = self.start(folder) if self.random.random() < RIVALS else None
            self.counts["rivals"] += rival is not None
            self.disturb(command)
            if rival is not None and rival.alive:
                self.kill(rival, "driver")
            self.look(folder)
            if len(self.finished(folder)) == len(self.expected) and not command.alive:
                return
        self.finish(folder)

    def finish(self, folder: Path) -> Command:
        """Let a command run to its end in peace. On a machine that is very busy Ray may not start; then once more."""
        for left in reversed(range(5)):
            command = self.start(folder)
            code = command.end()
            self.dead.add(command.mark)
            if code == 0:
                return command
            if not left or command.first_epoch_s is not None:
                raise Found(f"the undisturbed command on {folder.name} ended with {code}; its log: {command.log}")
            self.counts["commands that could not start Ray"] += 1
        raise AssertionError("the loop returns or raises")

    def start(self, folder: Path) -> Command:
        """The command, once more."""
        self.commands += 1
        return Command(folder, self.cache)

    def disturb(self, command: Command) -> None:
        """Kill workers until it is the command's own turn, or it ends."""
        if self.random.random() < EARLY:
            time.sleep(self.random.uniform(0, self.pace))
            if command.alive:
                self.kill(command, self.random.choice(["driver", "term"]))
        while command.alive:
            if not command.workers():
                time.sleep(0.1)
                continue
            time.sleep(self.random.uniform(0, self.gap_s))
            kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
            if command.alive and self.kill(command, kind) and kind != "worker":
                break
        self.dead.add(command.mark)

    def kill(self, command: Command, kind: str) -> bool:
        """Whether there was something to kill."""
        workers = command.workers()
        if kind == "worker":
            if not workers:
                return False
            try:
                self.random.choice(workers).kill()
            except psutil.NoSuchProcess:
                return False
        elif kind == "driver":
            self.counts["drivers killed before any worker"] += not workers
            command.kill(signal.SIGKILL)
        else:
            command.kill(signal.SIGTERM)
            self.counts[f"exit code after SIGTERM: {command.end()}"] += 1
        self.counts[kind] += 1
        if kind != "worker":
            self.dead.add(command.mark)
        print(f"{self.total:4d} {kind}{'' if workers else ' (no worker yet)'}", flush=True)
        return True

    def finished(self, folder: Path) -> list[Path]:
        """Records of trials that are through."""
        return [path for path in find_records(folder) if read_record(path).status == "ok"]

    def look(self, folder: Path) -> None:
        """Between two commands: every record can be read, and none that was finished has been touched."""
        for path in self.finished(folder):
            found = path.stat()
            now = found.st_ino, found.st_mtime_ns
            if self.stamps.setdefault(path, now) != now:
                raise Found(f"{path} was finished already and was written again")

    def wait_for_strays(self) -> None:
        """Everything that killed commands started ends by itself."""
        began = time.monotonic()
        while found := strays(self.dead):
            if time.monotonic() - began > LINGER_S:
                raise Found(f"{len(found)} processes are left: {[p.name() for p in found][:9]}")
            time.sleep(0.5)
        self.lingered = time.monotonic() - began

    def report(self) -> dict[str, object]:
        """The figures."""
        return {
            "kills": self.total,
            "counts": dict(self.counts),
            "commands": self.commands,
            "rounds": len(self.rounds),
            "minutes of killing": round(self.killing_s / 60, 1),
            "seconds to a first epoch, undisturbed": round(self.pace, 1),
            "seconds until no process was left": round(self.lingered, 1),
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=15, help="of killing; finishing and audit come on top")
    parser.add_argument("--gap", type=float, default=8, help="at most so many seconds between two kills of workers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; default: a new temporary folder")
    parser.add_argument("--report", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="petlbench-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"working in {folder}", flush=True)
    soak = Soak(folder.absolute(), options.kills, options.minutes, options.gap, options.seed)
    try:
        soak.run()
    except Found as flaw:
        sys.exit(f"after {soak.total} kills: {flaw}")
    text = json.dumps(soak.report(), indent=1)
    if options.report:
        options.report.write_text(text + "\n", encoding="utf-8")
    print(text)
    if soak.total < options.kills:
        sys.exit(f"all is well, but time was up after {soak.total} of {options.kills} kills")


if __name__ == "__main__":
    main()
