"""The data folder is the user's: whatever the verb, not a byte, name or time in it changes, and it may be read-only."""

import hashlib
import os
from pathlib import Path

import pytest
from cli_calls import call, small_set, use_set
from small_trials import tiny_backbone  # noqa: F401 (a fixture)

from petlbench.harness.experiment import load_experiment
from petlbench.harness.plan import make_plan


def tree(folder: Path) -> dict[str, tuple]:
    """Content, size, mode and times of everything in a folder."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        stat = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[path.relative_to(folder).as_posix()] = (
            content,
            stat.st_size,
            stat.st_mode,
            stat.st_mtime_ns,
            stat.st_ctime_ns,
        )
    return found


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))
    card, root = small_set(tmp_path)
    captions = root / "set.json"
    captions.write_text(captions.read_text().replace("number 3 seen from above", "two  ships"))  # for --fix
    for path in [*sorted(root.rglob("*")), root]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield card, root
    for path in [root, *sorted(root.rglob("*"))]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def verbs(card, root, out):
    """Everything that opens a data set without training on it."""
    where = (card, "--root", root)
    yield "prepare", ("data", "prepare", *where, "--resolution", 32)
    yield "doctor", ("data", "doctor", *where, "--against", f"{card}={root}")
    yield "doctor without a card", ("data", "doctor", root)
    yield "doctor with a mended copy", ("data", "doctor", *where, "--select", "D01", "--fix", out / "mended")
    for form in ("karpathy", "csv", "pir-json", "vilt-arrow"):
        yield form, ("data", "export", *where, "--format", form, "--out", out / form)
    yield "copy", ("data", "export", *where, "--format", "csv", "--pictures", "copy", "--out", out / "copied")
    yield "plan", ("plan", "zero_shot", *use_set(card, root), "--backbone", "tiny-clip", "--results", out / "results")
    yield "cache", ("cache", "clear", "--all", "--yes")


def test_no_verb_touches_the_data_folder(data, tmp_path):
    card, root = data
    before = tree(root)
    for name, arguments in verbs(card, root, tmp_path / "out"):
        called = call(*arguments)
        assert called.code == 0, (name, called)
        assert tree(root) == before, name


def test_formats_that_hold_pictures_are_not_touched_either(data, tmp_path):
    card, root = data
    assert call("data", "export", card, "--root", root, "--format", "vilt-arrow", "--out", tmp_path / "arrow").code == 0
    before = tree(tmp_path / "arrow")
    for arguments in (("prepare", "--resolution", 32), ("doctor",), ("doctor", "--no-pixels")):
        assert call("data", arguments[0], tmp_path / "arrow", *arguments[1:]).code == 0
        assert tree(tmp_path / "arrow") == before, arguments


@pytest.mark.usefixtures("tiny_backbone")
def test_a_trial_does_not_touch_the_data_folder(data, tmp_path):
    from petlbench.harness.trial import run_trial

    card, root = data
    before = tree(root)
    sets = (f"dataset.{card}.root={root}", "train.epochs=1", "train.batch_size=4")
    experiment = load_experiment(
        None, sets, methods=["full_finetune"], datasets=[str(card)], results=str(tmp_path / "results"), seeds=[0]
    )
    (planned,) = make_plan(experiment).planned
    assert run_trial(planned.trial).status == "ok"
    assert tree(root) == before


def test_the_cache_folder_is_the_platforms(monkeypatch, tmp_path):
    from petlbench.datasets.cache import cache_folder

    monkeypatch.delenv("PETLBENCH_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert cache_folder() == tmp_path / "xdg" / "petlbench"
