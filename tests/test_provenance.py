"""What a record says about the world it was made in."""

import json
import subprocess
import sys

import pytest

from petlbench.harness import provenance as module


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small checkout that the module believes to live in; ``git`` runs commands in it."""
    (tmp_path / "harness").mkdir()
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "a.py").write_text("1\n")
    (tmp_path / "notes.md").write_text("1\n")

    def git(*arguments):
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "harness" / "provenance.py"))
    module._git.cache_clear()
    yield tmp_path, git
    module._git.cache_clear()


def test_a_clean_checkout_names_its_commit(checkout):
    folder, git = checkout
    (folder / "notes.md").write_text("changed, but no code\n")
    assert module._git() == {"commit": git("rev-parse", "HEAD"), "dirty": False}


def test_changed_code_is_called_dirty(checkout):
    folder, _ = checkout
    (folder / "methods" / "a.py").write_text("2\n")
    assert module._git()["dirty"] is True


def test_an_installed_package_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "petlbench" / "harness" / "provenance.py"))
    module._git.cache_clear()
    try:
        assert module._git() is None
    finally:
        module._git.cache_clear()


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("lora", "lora"),
        ("results/scratch", "results/scratch"),
        ("train.epochs=5", "train.epochs=5"),
        ("/data/me/out", "out"),
        ("/data/me/a=b/out", "out"),
        ("~/out", "out"),
        ("--results=/data/me/out", "--results=out"),
        ("dataset.ucm.root=/data/me/sets/ucm", "dataset.ucm.root=ucm"),
        ("dataset.ucm.root=~/sets/ucm", "dataset.ucm.root=ucm"),
        ("ViT-B-32:openai", "ViT-B-32:openai"),
        ("hf:owner/name", "hf:owner/name"),
        ("https://me@example.org/a/b", "https://me@example.org/a/b"),
        ("results/experiments/ucm.yaml", "results/experiments/ucm.yaml"),
        ("--results=../out/new", "--results=../out/new"),
        ("--set=dataset.ucm.root=/data/me/ucm", "--set=dataset.ucm.root=ucm"),
        ("dataset.ucm={root: /data/me/ucm, extension: png}", "dataset.ucm={root: ucm, extension: png}"),
        ("plugins=[/data/me/a.py, ~/b.py]", "plugins=[a.py, b.py]"),
        ("-e/data/me/x.yaml", "-ex.yaml"),
        ("dataset.ucm.root='/data/me/my sets/ucm'", "dataset.ucm.root='ucm'"),
        ("dataset./data/me/mine.yaml.root=/data/me/ucm", "dataset.mine.yaml.root=ucm"),
    ],
)
def test_the_command_keeps_no_folders_of_its_user(monkeypatch, typed, kept):
    monkeypatch.setattr(sys, "argv", ["/data/me/bin/benchmark", "run", typed])
    assert module.command_line() == ["benchmark", "run", kept]


def test_everything_is_plain_json_and_packages_have_versions(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/benchmark", "run", "lora"])
    found = module.provenance(module.now(), module.command_line())
    assert json.loads(json.dumps(found)) == found
    assert found["command"] == ["benchmark", "run", "lora"]
    assert found["packages"].keys() == set(module.PACKAGES) and found["packages"]["torch"][0].isdigit()
    assert found["started"] <= found["finished"] and found["started"].endswith("+00:00")
