"""Helpers shared by the tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_path(*parts: str) -> Path:
    """A path inside the folder of real data and weights; skips the test where the folder is absent."""
    base = Path(os.environ.get("PETLBENCH_SHARED", ROOT.parent / "shared"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data not present: {path} (set PETLBENCH_SHARED to the folder that holds it)")
    return path
