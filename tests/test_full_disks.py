"""Disks that are full: what stood there before stands, and the trial goes on where there is room."""

import errno
import os
import resource
import subprocess
import sys
import textwrap

import pytest
from small_trials import a_trial, same, tiny_backbone  # noqa: F401 (a fixture)
from support import ROOT

from petlbench.datasets.split import DataError
from petlbench.harness import checkpoint as checkpoint_module
from petlbench.harness import json_files
from petlbench.harness.disk import DiskFull, room_for, why_full
from petlbench.harness.leftovers import work_folder
from petlbench.harness.record_files import path_of, write_record
from petlbench.harness.trial import run_trial

pytestmark = pytest.mark.usefixtures("tiny_backbone", "one_cache")


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
    assert [p.name for p in work_folder(trial).iterdir()] == ["epoch-00001"]
    epochs = []
    record = run_trial(trial, lambda line: epochs.append(line["epoch"]))
    assert epochs == [2, 3] and same(record, undisturbed)


def test_a_full_disk_anywhere_else_is_not_the_trials_fault_either(tmp_path, undisturbed, monkeypatch):
    """Notes, cached features, stores of scores: whoever writes them, the trial is not recorded as failed."""
    trial = a_trial(tmp_path)

    def full(*given, **options):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise DataError("the picture cache cannot be written") from error

    with monkeypatch.context() as patch:
        patch.setattr("petlbench.harness.trial.keep", full)
        with pytest.raises(DiskFull, match=r"the disk is full: the picture cache cannot be written\. Make room there"):
            run_trial(trial)
    assert not path_of(trial).exists()
    assert same(run_trial(trial), undisturbed)


def test_a_full_disk_at_the_record_keeps_the_old_one(tmp_path, undisturbed, monkeypatch):
    path = tmp_path / "r.json"
    write_record(undisturbed, path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json_files.os, "fsync", full)
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
    assert [p.name for p in work_folder(trial).iterdir()] == ["epoch-00001"]
    assert same(run_trial(trial), undisturbed)


IN_A_SMALL_PLACE = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from petlbench.harness import parts
    from petlbench.harness.disk import DiskFull
    from petlbench.harness.trial import run_trial
    from petlbench.methods.backbones.random_models import random_clip
    from small_trials import a_trial
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


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full"),
        (OSError(errno.EDQUOT, "x"), "the quota is used up"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "the disk is full"),
        (RuntimeError("shape mismatch"), None),
        (PermissionError(errno.EACCES, "Permission denied"), None),
    ],
)
def test_errors_of_full_disks_are_known_by_their_many_names(tmp_path, error, reason):
    assert why_full(error) == reason
    with pytest.raises(DiskFull if reason else type(error)), room_for("it", tmp_path, 1):
        raise error
