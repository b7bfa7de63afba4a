"""Checkpoints that are damaged, and what killed processes leave behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from filelock import FileLock
from small_trials import a_trial, killed_after, same, tiny_backbone  # noqa: F401 (a fixture)
from support import ROOT

from petlbench.harness.checkpoint import Checkpoints
from petlbench.harness.leftovers import clear_finished, remove_half_written, scratch_folder, work_folder
from petlbench.harness.record_files import path_of
from petlbench.harness.trial import run_trial

pytestmark = pytest.mark.usefixtures("tiny_backbone", "one_cache")


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
    assert [p.name for p in sorted(work_folder(trial).glob("epoch-*"))] == ["epoch-00001", "epoch-00002"]
    (path,) = work_folder(trial).glob("epoch-00002/engine/*model_states.pt")
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
    for path in work_folder(trial).glob("epoch-*/state.json"):
        one_bit(path)
    killed_after(trial, 1)  # the warning is not lost with the process
    record = run_trial(trial)
    assert len(record.notes) == 2 and "started afresh" in record.notes[1]
    assert same(record, undisturbed)


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

    shutil.copytree(after_two_epochs, work_folder(trial))
    with FileLock(f"{work_folder(trial)}.lock"):
        clear_finished([trial])
        assert work_folder(trial).exists(), "a process is at work there"
    clear_finished([trial])
    assert not work_folder(trial).exists()


HELD = """
    import os, signal
    from petlbench.harness.leftovers import scratch_folder
    with scratch_folder() as folder:
        print(folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_scratch_of_a_killed_command_is_removed_by_the_next_and_that_of_a_living_one_is_not(tmp_path, monkeypatch):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(HELD)], env=env, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL and Path(killed.stdout.strip()).is_dir(), killed.stderr
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as first:
        assert list(tmp_path.iterdir()) == [first]
        with scratch_folder() as second:
            assert set(tmp_path.iterdir()) == {first, second}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changed", [False, True])
def test_epochs_of_another_version_of_the_method_are_not_gone_on_from(tmp_path, monkeypatch, undisturbed, changed):
    trial = a_trial(tmp_path)
    killed_after(trial, 2)
    if changed:
        monkeypatch.setattr("petlbench.methods.registry.source_sha256", lambda cls: "f" * 64)
    epochs = []
    record = run_trial(trial, lambda line: epochs.append(line["epoch"]))
    assert same(record, undisturbed), "the code does the same here, so the results are"
    assert epochs == ([1, 2, 3] if changed else [3])
    said = ["the method's file changed after epoch-00002, which was not used; the trial started afresh"]
    assert record.notes == (said if changed else [])
