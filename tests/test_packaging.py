"""One import name, four rooms, and a wheel that holds them whole."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cli_calls import python
from support import ROOT

ROOMS = ("harness", "methods", "datasets", "leaderboard")
WHOSE = "import datasets; print(datasets.__file__); print(hasattr(datasets, 'load_dataset'))"


def hugging_faces(origin: str | None) -> bool:
    return origin is not None and "site-packages" in origin and origin.endswith(str(Path("datasets", "__init__.py")))


# In the checkout


def test_datasets_is_hugging_faces_under_pytest():
    """Also run by the next test in processes of its own, however pytest is started."""
    assert hugging_faces(importlib.util.find_spec("datasets").origin)
    assert importlib.util.find_spec("petlbench.datasets.split") is not None


@pytest.mark.parametrize("how", ["python -m pytest", "pytest"])
def test_datasets_is_hugging_faces_however_pytest_is_started(how):
    starts = {
        "pytest": [Path(sys.executable).with_name("pytest")],
        "python -m pytest": [sys.executable, "-m", "pytest"],
    }
    inner = "tests/test_packaging.py::test_datasets_is_hugging_faces_under_pytest"
    command = [*map(str, starts[how]), "-q", "-p", "no:cacheprovider", inner]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_datasets_is_hugging_faces_at_the_root_of_the_checkout():
    done = python("-c", f"{WHOSE}; import petlbench.datasets.split as s; print(s.Split.__module__)", cwd=ROOT)
    origin, real, ours = done.stdout.split()
    assert hugging_faces(origin) and (real, ours) == ("True", "petlbench.datasets.split"), done.stderr


def test_the_rooms_are_relative_links_and_datasets_is_no_package():
    for room in ROOMS:
        link = ROOT / "src" / "petlbench" / room
        assert link.is_symlink() and not link.readlink().is_absolute() and link.resolve() == ROOT / room
    # One such file would hide Hugging Face's library from everything started in the checkout.
    assert not list((ROOT / "datasets").rglob("__init__.py"))


# The wheel


def shell(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the checkout's files, without network."""
    pytest.importorskip("setuptools", "77", reason="the build back end, setuptools 77 or newer, is not installed")
    pytest.importorskip("build")
    if not (ROOT / ".git").exists():
        pytest.skip("which files belong to the checkout is only known inside a git checkout")
    copy = tmp_path_factory.mktemp("copy")
    names = shell("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, names):
        source, target = ROOT / name, copy / name
        if source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.readlink())
        elif source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    shell(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out", ".", cwd=copy)
    (path,) = (copy / "out").glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """A folder with the installed wheel, and a folder elsewhere to work in."""
    target, elsewhere = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target")
    shell(*pip, target, wheel, cwd=elsewhere)
    return target, elsewhere


def test_the_wheel_holds_every_module_and_all_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        content = {name: archive.read(name) for name in names if name.endswith(".safetensors")}
    data = ("datasets/cards/*.yaml", "harness/experiments/*.yaml", "harness/templates/*", "leaderboard/templates/*")
    data += ("leaderboard/published/*.yaml",)
    patterns = [*(f"{room}/**/*.py" for room in ROOMS), *data, "methods/backbones/weights/*"]
    rooms = {
        f"petlbench/{p.relative_to(ROOT).as_posix()}" for pattern in patterns for p in ROOT.glob(pattern) if p.is_file()
    }
    top = {f"petlbench/{name}" for name in ("__init__.py", "__main__.py", "errors.py", "py.typed")}
    assert names == rooms | top
    for name in ("datasets/cards/scenes.yaml", "harness/experiments/embedded.yaml", "harness/templates/method.py.txt"):
        assert f"petlbench/{name}" in names
    weights = "methods/backbones/weights/tiny_clip.safetensors"
    assert content[f"petlbench/{weights}"] == (ROOT / weights).read_bytes()


def test_an_installed_wheel_works_outside_the_checkout(installed):
    target, elsewhere = installed
    env = {"PYTHONPATH": str(target)}
    done = python("-m", "petlbench", "ls", "datasets", "--json", cwd=elsewhere, env=env)
    assert {row["name"] for row in json.loads(done.stdout)} >= {"scenes", "ucm", "rsicd"}, done.stderr
    code = f"""
import petlbench, sys
from pathlib import Path
from petlbench.harness import provenance
from petlbench.harness.cli.new_method import write_method
from petlbench.harness.experiment import EMBEDDED, load_experiment
assert Path(petlbench.__file__).is_relative_to({str(target)!r}), petlbench.__file__
assert provenance._git() is None
assert load_experiment(EMBEDDED).datasets == ["scenes"]
write_method("my_own", Path("."))
{WHOSE}
"""
    done = python("-c", code, cwd=elsewhere, env=env)
    assert done.returncode == 0, done.stderr
    origin, real = done.stdout.split()
    assert hugging_faces(origin) and real == "True" and (elsewhere / "my_own.py").is_file()


def test_an_installed_wheel_has_both_commands(installed):
    target, elsewhere = installed
    for name in ("benchmark", "petlbench"):
        done = python(target / "bin" / name, "--version", cwd=elsewhere, env={"PYTHONPATH": str(target)})
        assert done.returncode == 0 and done.stdout.startswith("petlbench "), done.stderr


def test_an_installed_wheel_plans_the_embedded_experiment(installed):
    """Registry, cards, shipped weights and the embedded file are all found inside the installation."""
    target, elsewhere = installed
    arguments = ("-m", "petlbench", "plan", "zero_shot", "--json")
    done = python(*arguments, cwd=elsewhere, env={"PYTHONPATH": str(target)})
    (trial,) = json.loads(done.stdout)["trials"]
    assert (trial["method"], trial["backbone"]) == ("zero_shot", "tiny-clip")
    assert Path(trial["record"]).is_relative_to(elsewhere.resolve())
