"""`benchmark new-method`: what it writes works, and it never overwrites or shadows anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from typer.testing import CliRunner

from petlbench.harness.cli.new_method import NewMethodError, method_source, write_method
from petlbench.harness.contract import check_method
from petlbench.methods import registry

AWKWARD = ["none", "mine", "my_adapter", "method", "tensor", "preset", "dual_encoder", "domain", "a", "x9", "a" * 40]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["my_adapter", "method"])
def test_the_written_method_keeps_the_contract(tmp_path, name):
    cls = registry.load(registry.discover([write_method(name, tmp_path)])[name])
    assert cls.name == name
    checks = check_method(cls)
    assert not [c for c in checks if c.outcome == "failed"]
    kept = {c.name for c in checks if c.outcome == "ok"}
    assert {"count", "identity_start", "gradients", "training", "save and load", "space"} <= kept


def test_the_example_of_the_contributing_page_keeps_the_contract(tmp_path):
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(source.splitlines()) <= 45
    path = tmp_path / "branch_gain.py"
    path.write_text(source, encoding="utf-8")
    checks = check_method(registry.load(registry.discover([path])["branch_gain"]))
    assert not [c for c in checks if c.outcome == "failed"]
    assert {"count", "identity_start", "gradients", "save and load"} <= {c.name for c in checks if c.outcome == "ok"}


def test_the_written_files_pass_the_linter(tmp_path):
    for name in AWKWARD:
        write_method(name, tmp_path)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), "--no-cache", "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", AWKWARD)
def test_no_class_hides_what_the_template_imports(name):
    source = method_source(name)
    imported = set(re.findall(r"\w+", " ".join(re.findall(r"import (.*)", source))))
    defined = set(re.findall(r"^class (\w+)", source, re.M))
    assert len(defined) == 3 and not defined & imported


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("My-Adapter", "such as my_adapter"),
        ("MyAdapter", "such as my_adapter"),
        ("my adapter", "such as my_adapter"),
        ("9lives", "snake_case"),
        ("class", "snake_case"),
        ("../escape", "such as escape"),
        ("", "snake_case"),
        ("_hidden", "such as hidden"),
        ("a" * 41, "at most 40"),
        ("all", "means every method"),
        ("lora", r"a method lora already \(.*lora\.py\)"),
    ],
)
def test_bad_names_are_refused(tmp_path, name, says):
    with pytest.raises(NewMethodError, match=says):
        write_method(name, tmp_path / "out", force=True)
    assert not (tmp_path / "out").exists()


def test_an_existing_file_is_kept_unless_forced(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("precious")
    with pytest.raises(NewMethodError, match=r"mine\.py exists; give --force"):
        write_method("mine", tmp_path)
    assert path.read_text() == "precious"
    assert write_method("mine", tmp_path, force=True) == path
    assert path.read_text() == method_source("mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]  # no temporary file is left


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_method("mine", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_out_must_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NewMethodError, match="is a file; give the folder"):
        write_method("mine", tmp_path / "file")


def test_the_verb_prints_the_next_steps(tmp_path, monkeypatch):
    from petlbench.harness.cli.app import app

    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["new-method", "mine", "--out", "plugins"])
    assert result.exit_code == 0, result.output
    path = Path("plugins") / "mine.py"
    assert path.is_file()
    assert f"benchmark check mine --plugin {path}" in result.output
    assert f"benchmark run mine --plugin {path}" in result.output
