"""Finding methods: lazily, by exact names, from three places, and never by accident."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from petlbench.methods import registry
from petlbench.methods.base import Method

METHOD = """
from petlbench.methods.base import Method


class {cls}(Method):
    title = "{cls}"

    def build(self, backbone):
        return backbone

    def trainable(self, model):
        return ()
"""


def write(path: Path, *classes: str, text: str = METHOD, extra: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(text.format(cls=c) for c in classes) + extra)
    return path


def run_python(code: str, *, cwd: Path, path: Path | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- names ---


def test_listing_names_imports_nothing_heavy(tmp_path):
    code = """
import sys
from petlbench.methods import registry
names = list(registry.discover())
assert {"zero_shot", "linear_probe", "lora", "full_finetune"} <= set(names), names
heavy = {"torch", "ray", "deepspeed", "transformers", "open_clip", "peft", "pydantic"} & set(sys.modules)
print(sorted(heavy))
"""
    assert run_python(code, cwd=tmp_path).strip() == "[]"


def test_support_modules_are_no_methods():
    assert not {"base", "registry", "losses", "recipe", "__init__", "backbones"} & set(registry.discover())


def test_names_come_from_files():
    for name, source in registry.discover().items():
        if source.builtin:
            assert source.path is not None and source.path.stem == name
            assert registry.load(source).name == name


def test_all_methods_keeps_order_and_repeats_nothing():
    known = ["a", "b", "c"]
    assert registry.resolve(["c", "all-methods", "a"], known) == ["c", "a", "b"]
    assert registry.resolve(["b", "b"], known) == ["b"]
    assert registry.resolve([], known) == []


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("linear-prob", "did you mean linear_probe"),
        ("Lora2", "did you mean lora"),
        ("xyz", "known: "),
    ],
)
def test_unknown_names_get_a_suggestion(word, says):
    with pytest.raises(registry.UnknownMethod, match=f"unknown method {word!r}.*{says}"):
        registry.resolve([word], registry.discover())


# --- loose files ---


def test_a_plugin_is_called_after_its_file(tmp_path):
    path = write(tmp_path / "mine.py", "SomethingElse")
    source = registry.discover([path])["mine"]
    cls = registry.load(source)
    assert issubclass(cls, Method)
    assert (cls.name, cls.title, source.origin, source.builtin) == ("mine", "SomethingElse", "mine.py", False)
    assert registry.load(source) is cls  # imported once


def test_a_plugin_may_import_built_in_methods_and_hold_helpers(tmp_path):
    path = write(
        tmp_path / "mine.py", "Mine", extra="\nfrom petlbench.methods.lora import Lora\nclass _Helper(Mine): pass\n"
    )
    assert registry.load(registry.discover([path])["mine"]).__name__ == "Mine"


def test_a_plugin_does_not_touch_the_search_path(tmp_path):
    # A neighbour named like a library must not shadow it.
    (tmp_path / "packaging.py").write_text("raise RuntimeError('shadowed')")
    path = write(tmp_path / "mine.py", "Mine", extra="\nimport packaging.version\n")
    before = list(sys.path)
    cls = registry.load(registry.discover([path])["mine"])
    assert sys.path == before
    assert str(tmp_path) not in str(sys.modules["packaging"].__file__)
    assert "mine" not in sys.modules
    assert registry.source_sha256(cls) == registry.source_sha256(registry.load(registry.discover([path])["mine"]))


def test_files_of_one_name_in_two_folders_do_not_meet(tmp_path):
    one = registry.load(registry.discover([write(tmp_path / "a" / "mine.py", "One")])["mine"])
    two = registry.load(registry.discover([write(tmp_path / "b" / "mine.py", "Two")])["mine"])
    assert (one.__name__, two.__name__) == ("One", "Two")


def test_a_missing_plugin_is_named(tmp_path):
    with pytest.raises(registry.PluginError, match=r"nowhere\.py: no such file"):
        registry.discover([tmp_path / "nowhere.py"])


def test_two_plugins_of_one_name_are_both_named(tmp_path):
    one, two = write(tmp_path / "a" / "mine.py", "One"), write(tmp_path / "b" / "mine.py", "Two")
    with pytest.raises(registry.PluginError, match="two methods are called 'mine'") as caught:
        registry.discover([one, two])
    assert str(one) in str(caught.value) and str(two) in str(caught.value)


def test_a_plugin_cannot_replace_a_built_in_method(tmp_path):
    path = write(tmp_path / "lora.py", "Mine")
    with pytest.raises(registry.PluginError, match="two methods are called 'lora'") as caught:
        registry.discover([path])
    assert str(path) in str(caught.value)


def test_what_a_class_lacks_is_named(tmp_path):
    half = "from petlbench.methods.base import Method\nclass Half(Method):\n    title = 'Half'\n"
    path = write(tmp_path / "mine.py", extra=half + "    def build(self, backbone):\n        return backbone\n")
    with pytest.raises(registry.PluginError, match=r"mine\.py.*: class Half does not define trainable\(\)"):
        registry.load(registry.discover([path])["mine"])


@pytest.mark.parametrize(
    ("classes", "extra", "says"),
    [
        (("One", "Two"), "", "found One, Two"),
        ((), "x = 1\n", "found none"),
        (("_Hidden",), "", "found none"),
    ],
)
def test_a_file_holds_exactly_one_method(tmp_path, classes, extra, says):
    path = write(tmp_path / "mine.py", *classes, extra=extra)
    with pytest.raises(registry.PluginError, match=f"exactly one public subclass of Method; {says}") as caught:
        registry.load(registry.discover([path])["mine"])
    assert str(path) in str(caught.value)


def test_a_method_needs_a_title(tmp_path):
    path = write(tmp_path / "mine.py", "Mine", text=METHOD.replace('title = "{cls}"', "pass"))
    with pytest.raises(registry.PluginError, match="class Mine sets no `title`"):
        registry.load(registry.discover([path])["mine"])


def test_an_error_inside_a_plugin_is_not_swallowed(tmp_path):
    path = write(tmp_path / "mine.py", extra="import no_such_package_anywhere\n")
    source = registry.discover([path])["mine"]  # names are known without importing
    for _ in range(2):  # nor is a half-imported module kept
        with pytest.raises(registry.PluginError, match="no_such_package_anywhere") as caught:
            registry.load(source)
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)


# --- installed packages ---


def distribution(folder: Path, name: str, entries: str, version: str = "1.2") -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{entries}\n")


def test_entry_points_are_found_and_imported_on_use(tmp_path):
    site = tmp_path / "site"
    write(site / "other_pkg" / "prompting.py", "Prompting")
    distribution(site, "other-pkg", "prompting = other_pkg.prompting:Prompting")
    code = """
import sys
from petlbench.methods import registry
source = registry.discover()["prompting"]
assert "other_pkg" not in sys.modules and "torch" not in sys.modules
cls = registry.load(source)
print(source.origin, source.builtin, cls.name, cls.__module__)
"""
    assert run_python(code, cwd=tmp_path, path=site).split() == [
        "other-pkg",
        "1.2",
        "False",
        "prompting",
        "other_pkg.prompting",
    ]


def test_two_packages_with_one_method_name_are_both_named(tmp_path):
    site = tmp_path / "site"
    distribution(site, "first", "prompting = first.x:A")
    distribution(site, "second", "prompting = second.y:B")
    code = """
from petlbench.methods import registry
try:
    registry.discover()
except registry.PluginError as error:
    print(error)
"""
    out = run_python(code, cwd=tmp_path, path=site)
    assert "entry point first.x:A of first 1.2" in out and "entry point second.y:B of second 1.2" in out


def test_an_entry_point_must_be_a_method(tmp_path):
    site = tmp_path / "site"
    distribution(site, "odd", "odd = collections:OrderedDict")
    code = """
from petlbench.methods import registry
try:
    registry.load(registry.discover()["odd"])
except registry.PluginError as error:
    print(error)
"""
    out = run_python(code, cwd=tmp_path, path=site)
    assert "entry point collections:OrderedDict of odd 1.2: not a subclass of petlbench.methods.base.Method" in out


@pytest.mark.parametrize(
    ("source", "line", "told"),
    [
        ("import nothing_of_that_name\n", 1, "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1\nclass Mine(:\n", 2, "SyntaxError"),
        (
            "from petlbench.methods.base import Method\n\n\nraise RuntimeError('not today')\n",
            4,
            "RuntimeError: not today",
        ),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named_with_the_line(tmp_path, source, line, told):
    path = tmp_path / "mine.py"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(registry.PluginError) as caught:
        registry.load(registry.discover([path])["mine"])
    assert str(caught.value).startswith(f"{path}:{line}: cannot be imported ({told}")


def test_an_installed_plugin_that_cannot_be_imported_is_named(monkeypatch):
    entry = EntryPoint("theirs", "nothing_of_that_name:Theirs", registry.GROUP)
    source = registry.Source("theirs", "their-package 1.0", False, entry=entry)
    with pytest.raises(
        registry.PluginError, match=r"entry point nothing_of_that_name:Theirs of their-package 1\.0: cannot be"
    ):
        registry.load(source)
