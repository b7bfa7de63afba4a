"""What befalls runs in the night: the rows of docs/reliability.md that no other file tests."""

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from filelock import FileLock
from reliable import a_trial, holds_at_most, one_cache, path_of, work_of  # noqa: F401 (a fixture)
from small_trials import tiny_backbone  # noqa: F401 (a fixture)
from support import ROOT

from petlbench.harness import checkpoint as checkpoint_module
from petlbench.harness import record as record_module
from petlbench.harness.checkpoint import Checkpoints
from petlbench.harness.disk import DiskFull
from petlbench.harness.leftovers import clear_finished, remove_half_written
from petlbench.harness.record import write_record
from petlbench.harness.spec import Trial
from petlbench.harness.trial import run_trial

pytestmark = pytest.mark.usefixtures("tiny_backbone")


class Killed(BaseException):
    """Stands for a signal: not an Exception, so nothing is recorded."""


def killed_after(trial: Trial, epoch: int) -> None:
    def die(line):
        if line["epoch"] == epoch:
            raise Killed

    with pytest.raises(Killed):
        run_trial(trial, die)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The record of the trial when nothing happens, and its checkpoints as they were after the second epoch."""
    from petlbench.methods.backbones.random_models import random_clip

    folder = tmp_path_factory.mktemp("undisturbed")
    trial = a_trial(folder)

    def keep(line):
        if line["epoch"] == 2:
            shutil.copytree(work_of(trial), folder / "kept")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("petlbench.harness.parts.load_backbone", lambda name, **options: random_clip(seed=7))
        return run_trial(trial, keep), folder / "kept"


@pytest.fixture
def undisturbed(told):
    return told[0]


@pytest.fixture
def after_two_epochs(told):
    return told[1]


def same(found, expected) -> bool:
    """Whether two records have the same results, bit for bit."""
    curves = [[(e.epoch, e.loss, e.parts, e.lr, e.val_mR) for e in record.curve] for record in (found, expected)]
    return found.metrics == expected.metrics and curves[0] == curves[1] and found.selection == expected.selection


# Checkpoints ----------------------------------------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("pattern", "damage", "said"),
    [
        ("engine/*model_states.pt", cut_short, "bytes, expected"),
        ("best.safetensors", one_bit, "is not what was written"),
        ("state.json", Path.unlink, "state.json is missing"),
        ("checksums.json", cut_short, "JSONDecodeError"),
        ("checksums.json", Path.unlink, "checksums.json is missing"),
    ],
)
def test_damage_is_found_before_anything_is_loaded(tmp_path, after_two_epochs, pattern, damage, said):
    shutil.copytree(after_two_epochs, tmp_path / "work")
    (path,) = (tmp_path / "work" / "epoch-00002").glob(pattern)
    damage(path)
    checkpoints = Checkpoints(tmp_path / "work")
    assert checkpoints.progress().epoch == 1
    (note,) = checkpoints.notes()
    assert "epoch-00002 was damaged" in note and said in note and "went on from epoch-00001" in note


def test_a_truncated_checkpoint_gives_way_to_the_epoch_before_it(tmp_path, undisturbed):
    trial = a_trial(tmp_path)
    killed_after(trial, 2)
    assert [p.name for p in sorted(work_of(trial).glob("epoch-*"))] == ["epoch-00001", "epoch-00002"]
    (path,) = work_of(trial).glob("epoch-00002/engine/*model_states.pt")
    cut_short(path)
    epochs = []
    record = run_trial(trial, lambda line: epochs.append(line["epoch"]))
    assert epochs == [2, 3]
    (note,) = record.notes
    assert "epoch-00002 was damaged" in note
    assert same(record, undisturbed)


def test_where_no_checkpoint_is_whole_the_trial_starts_afresh_and_the_record_says_so(tmp_path, undisturbed):
    trial = a_trial(tmp_path)
    killed_after(trial, 2)
    for path in work_of(trial).glob("epoch-*/state.json"):
        one_bit(path)
    killed_after(trial, 1)  # the warning is not lost with the process
    record = run_trial(trial)
    assert len(record.notes) == 2 and "started afresh" in record.notes[1]
    assert same(record, undisturbed)


# Full disks -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_at_a_checkpoint_keeps_the_older_one_and_the_trial_goes_on_later(
    tmp_path, undisturbed, monkeypatch
):
    trial = a_trial(tmp_path)
    seal, calls = checkpoint_module._seal, []

    def full(folder):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(folder)

    monkeypatch.setattr(checkpoint_module, "_seal", full)
    with pytest.raises(DiskFull, match=r"checkpoint of epoch 2 cannot be written to .*MiB wanted.*free\)\. Make room"):
        run_trial(trial)
    assert not path_of(trial).exists(), "a full disk is not the trial's fault"
    assert [p.name for p in work_of(trial).iterdir()] == ["epoch-00001"]
    epochs = []
    record = run_trial(trial, lambda line: epochs.append(line["epoch"]))
    assert epochs == [2, 3] and same(record, undisturbed)


def test_a_full_disk_at_the_record_keeps_the_old_one(tmp_path, undisturbed, monkeypatch):
    path = tmp_path / "r.json"
    write_record(undisturbed, path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record_module.os, "fsync", full)
    with pytest.raises(DiskFull, match=rf"a record cannot be written to {tmp_path}: the disk is full \(\S+ \w+ wanted"):
        write_record(undisturbed.model_copy(update={"notes": ["new"]}), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_files_that_may_not_grow_end_the_trial_behind_its_last_checkpoint(tmp_path, undisturbed):
    """The system itself refuses to write: RLIMIT_FSIZE."""
    trial = a_trial(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(DiskFull, match="the checkpoint of epoch 2 cannot be written to"):
            run_trial(trial, lambda line: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not path_of(trial).exists()
    assert [p.name for p in work_of(trial).iterdir()] == ["epoch-00001"]
    assert same(run_trial(trial), undisturbed)


IN_A_SMALL_PLACE = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from petlbench.harness import parts
    from petlbench.harness.disk import DiskFull
    from petlbench.harness.trial import run_trial
    from petlbench.methods.backbones.random_models import random_clip
    from reliable import a_trial
    parts.load_backbone = lambda name, **options: random_clip(seed=7)
    def fill(line):
        try:
            Path(sys.argv[1], "fill").write_bytes(bytes(2**25))
        except OSError:
            pass
    try:
        run_trial(a_trial(Path(sys.argv[1])), fill)
    except DiskFull as error:
        print(error)
        sys.exit(2)
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    """A tmpfs of a few MiB in a mount namespace of its own, whose room is used up behind the first epoch."""
    unshare = ["unshare", "-rm", "sh", "-c"]
    if subprocess.run([*unshare, f"mount -t tmpfs none {tmp_path}"], check=False).returncode:
        pytest.skip("this system allows no mount namespaces")
    code = textwrap.dedent(IN_A_SMALL_PLACE)
    words = [*unshare, f'mount -t tmpfs -o size=24m none {tmp_path} && exec "$@"', "sh", sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*words, str(tmp_path), str(ROOT / "tests")], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert (
        "checkpoint of epoch 2" in done.stdout and "the disk is full" in done.stdout and "0 bytes free" in done.stdout
    )


def test_what_killed_processes_leave_behind_is_removed(tmp_path, undisturbed, after_two_epochs):
    trial = a_trial(tmp_path)
    stem = path_of(trial).stem
    path_of(trial).parent.mkdir(parents=True)
    (path_of(trial).parent / f".{stem}.json.x1y2").write_text('{"half')
    (path_of(trial).parent / f".{stem}.x3y4").mkdir()
    neighbour = path_of(trial).parent / f".{stem}0.json.x5y6"
    neighbour.write_text("another trial's")
    remove_half_written(path_of(trial))
    assert list(path_of(trial).parent.iterdir()) == [neighbour]

    shutil.copytree(after_two_epochs, work_of(trial))
    with FileLock(f"{work_of(trial)}.lock"):
        clear_finished([trial])
        assert work_of(trial).exists(), "a process is at work there"
    clear_finished([trial])
    assert not work_of(trial).exists()


def test_out_of_memory_halves_what_goes_through_at_once_and_keeps_the_batch(tmp_path, undisturbed, monkeypatch):
    sizes = holds_at_most(monkeypatch, 4)
    record = run_trial(a_trial(tmp_path))
    assert [size for size in sizes if size > 4] == [10, 5]
    assert record.cost.micro_batch == 2, "10, 5, 2"
    assert [note.split("(")[0] for note in record.notes] == [
        "out of memory in epoch 1 with 10 pairs at a time ",
        "out of memory in epoch 1 with 5 pairs at a time ",
    ]
    assert "with the gradient of the whole batch of 10" in record.notes[0]
    assert record.spec_id == undisturbed.spec_id
    assert [e.loss for e in record.curve] == pytest.approx([e.loss for e in undisturbed.curve], rel=1e-4)
    assert record.metrics["test"].recalls == pytest.approx(undisturbed.metrics["test"].recalls, abs=3.4)


def test_memory_that_runs_out_later_repeats_that_epoch_only_and_a_resumed_trial_remembers(
    tmp_path, undisturbed, monkeypatch
):
    trial = a_trial(tmp_path)
    sizes, lines = [], []

    def report(line):
        lines.append(line)
        if line["epoch"] == 1:
            sizes.extend([holds_at_most(monkeypatch, 5)])
        if line["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_trial(trial, report)
    assert [line["epoch"] for line in lines] == [1, 2]
    sizes[0].clear()
    record = run_trial(trial)
    assert max(sizes[0]) == 5, "what did not fit is not tried again"
    assert len(record.notes) == 1 and "in epoch 2" in record.notes[0]
    assert [e.loss for e in record.curve] == pytest.approx([e.loss for e in undisturbed.curve], rel=1e-4)


# Clocks ---------------------------------------------------------------------------------------------------------------


def test_no_decision_and_no_duration_depends_on_the_clock(tmp_path, undisturbed, monkeypatch):
    real, trial, decade = time.time, a_trial(tmp_path), 10 * 365 * 86400
    jumps = iter([decade, -decade, 2 * decade])

    def jump(line):
        ahead = next(jumps)
        monkeypatch.setattr(time, "time", lambda: real() + ahead)

    record = run_trial(trial, jump)
    monkeypatch.setattr(time, "time", real)
    assert same(record, undisturbed)
    assert 0 < record.cost.train_s < 600 and 0 < record.cost.eval_s < 600
    # A record from the future is replaced where that is asked for, and taken where another process has just written it.
    ahead = real() + decade
    os.utime(path_of(trial), (ahead, ahead))
    first = path_of(trial).stat().st_ino
    epochs = []
    run_trial(trial, lambda line: epochs.append(line["epoch"]))
    assert epochs == [1, 2, 3] and path_of(trial).stat().st_ino != first
    os.utime(path_of(trial), (1, 1))
    assert same(run_trial(trial, lambda line: epochs.append("again"), seen=None), undisturbed)
    assert "again" not in epochs


# The page -------------------------------------------------------------------------------------------------------------


def test_every_test_that_the_page_names_exists():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.split("## ")[0].splitlines() if line.startswith("| ")][2:]
    named = [re.findall(r"`(test_\w+\.py)::(test_\w+)`", row) for row in rows]
    assert len(rows) > 12 and all(named)
    for file, test in {pair for row in named for pair in row}:
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{test}"
