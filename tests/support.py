"""Helpers shared by the tests."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petlbench.datasets.split import DataError

ROOT = Path(__file__).resolve().parent.parent


def shared_path(*parts: str) -> Path:
    """A path inside the folder of real data and weights; skips the test where the folder is absent."""
    base = Path(os.environ.get("PETLBENCH_SHARED", ROOT.parent / "shared"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data not present: {path} (set PETLBENCH_SHARED to the folder that holds it)")
    return path


def refused(read: Callable[[], Any], *told: str, error: type[Exception] = DataError) -> str:
    """The message of the error that ``read`` raises; it must contain every string of ``told``."""
    with pytest.raises(error) as caught:
        read()
    message = str(caught.value)
    for part in told:
        assert part in message, message
    return message
