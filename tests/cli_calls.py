"""Calls of the command line, in this process or in one of its own."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from data_files import write_picture

from petlbench.harness.cli import main

SMALL_SCENES = ("--set", "dataset.scenes={train: 30, val: 30, test: 30}")


class Called(NamedTuple):
    """What a call left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The message of a call that must have failed as the user's mistake, without a traceback."""
        assert self.code == 2, self
        assert self.err.startswith("error: ") and "Traceback" not in self.err, self
        return self.err.removeprefix("error: ")


def call(*arguments: str | Path, columns: str | None = "200") -> Called:
    """Run ``benchmark ARGUMENTS`` through its entry point, with COLUMNS set, or unset."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
        patch.setenv("TERM", "dumb")
        if columns:
            patch.setenv("COLUMNS", columns)
        else:
            patch.delenv("COLUMNS", raising=False)
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return Called(code, out.getvalue(), err.getvalue())


def python(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def small_set(folder: Path, name: str = "toyset") -> tuple[Path, Path]:
    """A card of one's own and the folder of its twelve pictures: eight to train, two to validate, two to test."""
    root = folder / "files"
    items = []
    for index in range(12):
        split = "train" if index < 8 else "val" if index < 10 else "test"
        picture = f"{'port' if index % 2 else 'park'}_{index}.jpg"
        write_picture(root / "pictures" / picture, seed=index)
        captions = [f"number {index} seen from {place}" for place in ("above", "afar")]
        sentences = [{"raw": caption} for caption in captions]
        items.append({"filename": picture, "split": split, "sentences": sentences, "class": picture.split("_")[0]})
    (root / "set.json").write_text(json.dumps({"images": items}), encoding="utf-8")
    card = folder / f"{name}.yaml"
    card.write_text(
        f"name: {name}\ntitle: Toy\nversion: 1\nlicence: none\ncitation: none\nformat: karpathy\n"
        "files: {annotations: set.json, images: pictures}\n"
        "expected:\n  train: {images: 8, captions: 16}\n  val: {images: 2, captions: 4}\n  test: {images: 2, captions: 4}\n",
        encoding="utf-8",
    )
    return card, root


def use_set(card: Path, root: Path) -> tuple[str, ...]:
    """Options that name a set of one's own."""
    return ("-d", str(card), "--set", f"dataset.{card}.root={root}")
