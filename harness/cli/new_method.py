"""`benchmark new-method`: a working method in one file, to be changed into yours."""

from __future__ import annotations

import keyword
import os
import re
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from petlbench.errors import PetlbenchError

LONGEST = 40
_IMPORTED = {"DualEncoder", "Domain", "Iterable", "Method", "MethodConfig", "Preset", "Tensor", "PositiveInt"}
"""Names that the template imports and a class must not hide."""
_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


class NewMethodError(PetlbenchError):
    """The file cannot be written under this name."""


def new_method(
    name: Annotated[str, typer.Argument(help="Name in snake_case; the file is called NAME.py.")],
    out: Annotated[Path, typer.Option(help="Folder that the file is written to.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file of that name.")] = False,
) -> None:
    """Write a small working method to start from."""
    path = write_method(name, out, force=force)
    shown = os.path.relpath(path)
    typer.echo(
        f"wrote {shown}\n\n"
        "It works as it stands. Next:\n"
        f"  benchmark check {name} --plugin {shown}    # does it keep the contract? (seconds)\n"
        f"  benchmark run {name} --plugin {shown}      # train and measure it\n"
    )


def write_method(name: str, folder: Path, *, force: bool = False) -> Path:
    """Write ``folder/NAME.py`` from the template, whole or not at all.

    Args:
        name: Snake-case identifier that no known method has.
        folder: Created where it is missing.
        force: Overwrite an existing file; a known method is never shadowed.

    Returns:
        The file.

    Raises:
        NewMethodError: The name is no identifier, is taken, or the file exists.
    """
    _check_name(name)
    path = folder / f"{name}.py"
    if folder.exists() and not folder.is_dir():
        raise NewMethodError(f"--out {folder} is a file; give the folder that {name}.py is to be written to")
    if path.exists() and not force:
        raise NewMethodError(f"{path} exists; give --force to overwrite it, another name, or another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(method_source(name))
        Path(temporary).chmod(0o644)  # mkstemp's files are private, sources are not
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def method_source(name: str) -> str:
    """The template with the names filled in."""
    words = name.split("_")
    cls = "".join(word.capitalize() for word in words)
    if cls in _IMPORTED or f"{cls}Config" in _IMPORTED or keyword.iskeyword(cls):
        cls += "Tuning"
    template = (files("petlbench.harness") / "templates" / "method.py.txt").read_text(encoding="utf-8")
    return Template(template).substitute(name=name, cls=cls, config=f"{cls}Config", title=" ".join(words).capitalize())


def _check_name(name: str) -> None:
    if not _SNAKE.fullmatch(name) or keyword.iskeyword(name) or len(name) > LONGEST:
        near = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")[:LONGEST]
        hint = f", such as {near}" if _SNAKE.fullmatch(near) and near != name and not keyword.iskeyword(near) else ""
        raise NewMethodError(
            f"{name!r} cannot name a method: expected a Python identifier in snake_case of at most {LONGEST} characters{hint}"
        )
    if name in {"all", "all_methods"}:
        raise NewMethodError(f"{name!r} means every method on the command line; choose another name")
    from petlbench.methods import registry

    if known := registry.discover().get(name):
        raise NewMethodError(f"there is a method {name} already ({known.describe()}); choose another name")
