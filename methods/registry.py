"""Finds methods: built-in files, entry points of installed packages, and loose files given with ``--plugin``.

Names are known without importing anything; a method's file is imported when the method is first used.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from petlbench.errors import PetlbenchError

if TYPE_CHECKING:
    from petlbench.methods.base import Method

GROUP = "petlbench.methods"
"""Entry-point group: ``name = "package.module:ClassName"``."""

_SUPPORT = {"__init__", "base", "registry", "losses", "official", "pair", "recipe"}


class UnknownMethod(PetlbenchError):
    """No method of that name is known."""


class PluginError(PetlbenchError):
    """A plugin file or entry point does not hold exactly one usable method."""


@dataclass(frozen=True)
class Source:
    """Where a method comes from, before it is imported."""

    name: str
    origin: str
    """``petlbench``, ``name version`` of a distribution, or the file name of a loose plugin."""
    builtin: bool
    path: Path | None = None
    entry: EntryPoint | None = None

    def describe(self) -> str:
        """For error messages: where exactly."""
        return str(self.path) if self.path else f"entry point {self.entry.value} of {self.origin}" if self.entry else ""


def discover(plugins: Iterable[str | Path] = ()) -> dict[str, Source]:
    """All known methods by name, built-ins first.

    Args:
        plugins: Loose method files; a method is called after its file.

    Raises:
        PluginError: Two methods have the same name (both origins are named), or a file is missing.
    """
    here = Path(__file__).resolve().parent
    found: dict[str, Source] = {}
    for path in sorted(here.glob("*.py")):
        if path.stem not in _SUPPORT and not path.stem.startswith("_"):
            found[path.stem] = Source(path.stem, "petlbench", True, path=path)
    candidates = [
        Source(e.name, f"{e.dist.name} {e.dist.version}" if e.dist else "unknown distribution", False, entry=e)
        for e in sorted(entry_points(group=GROUP), key=lambda e: e.name)
    ]
    for plugin in plugins:
        path = Path(plugin).expanduser().resolve()
        if not path.is_file():
            raise PluginError(f"--plugin {plugin}: no such file; give the path of a Python file that holds one method")
        candidates.append(Source(path.stem, path.name, False, path=path))
    for source in candidates:
        if other := found.get(source.name):
            raise PluginError(
                f"two methods are called {source.name!r}: {other.describe()} and {source.describe()}; rename one of them"
            )
        found[source.name] = source
    return found


def resolve(wanted: Sequence[str], known: Iterable[str]) -> list[str]:
    """Expand ``all-methods`` and check every name.

    Raises:
        UnknownMethod: With the closest known names.
    """
    names = list(known)
    chosen: list[str] = []
    for name in wanted:
        if name in {"all-methods", "all"}:
            chosen.extend(n for n in names if n not in chosen)
        elif name in names:
            if name not in chosen:
                chosen.append(name)
        else:
            near = difflib.get_close_matches(name.replace("-", "_"), names, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "known: " + ", ".join(names)
            raise UnknownMethod(f"unknown method {name!r}; {hint} (`benchmark ls methods` lists all)")
    return chosen


def load(source: Source) -> type[Method]:
    """Import a method's class and name it after its source.

    Raises:
        PluginError: The file holds no method or several, or the class breaks the contract.
    """
    from petlbench.methods.base import Method

    if source.entry is not None:
        try:
            cls = source.entry.load()
        except Exception as error:
            raise PluginError(_cannot(source.describe(), error)) from error
        if not (inspect.isclass(cls) and issubclass(cls, Method)):
            raise PluginError(f"{source.describe()}: not a subclass of petlbench.methods.base.Method")
    else:
        assert source.path is not None
        module = (
            importlib.import_module(f"petlbench.methods.{source.name}") if source.builtin else _import_file(source.path)
        )
        public = [
            c
            for c in vars(module).values()
            if inspect.isclass(c)
            and issubclass(c, Method)
            and c.__module__ == module.__name__
            and not c.__name__.startswith("_")
        ]
        classes = [c for c in public if not inspect.isabstract(c)]
        if not classes and len(public) == 1:
            classes = public  # what it lacks is said below
        if len(classes) != 1:
            found = ", ".join(c.__name__ for c in classes) or "none"
            raise PluginError(
                f"{source.path}: a method file holds exactly one public subclass of Method; found {found}. "
                "Prefix helper classes with an underscore, and see `benchmark new-method`"
            )
        cls = classes[0]
    if inspect.isabstract(cls):
        missing = " and ".join(f"{name}()" for name in sorted(cls.__abstractmethods__))
        raise PluginError(f"{source.describe()}: class {cls.__name__} does not define {missing}")
    if not getattr(cls, "title", ""):
        raise PluginError(f"{source.describe()}: class {cls.__name__} sets no `title`")
    cls.name = source.name
    return cls


def source_sha256(cls: type) -> str:
    """Hash of the file that defines a class; recorded so that a row can be traced to its code."""
    return hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()


def _import_file(path: Path):
    """Import a loose file under a private name, without touching sys.path (a stray neighbour must not shadow anything)."""
    name = f"petlbench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception):
            raise PluginError(_cannot(str(path), error, path)) from error
        raise
    return module


def _cannot(what: str, error: Exception, path: Path | None = None) -> str:
    """Why a method cannot be imported, with the line of its file where there is one."""
    own = str(path)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    told, _, _ = str(error).strip().partition("\n")
    if isinstance(error, SyntaxError):
        told = error.msg
        if error.filename == own:
            lines.append(error.lineno)
    place = f"{what}:{lines[-1]}" if lines else what
    return f"{place}: cannot be imported ({type(error).__name__}: {told}); mend it, or leave the method out"
