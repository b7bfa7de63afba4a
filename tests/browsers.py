"""A real browser for tests of pages."""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """A browser of the system's; the test is skipped where there is none."""
    found = os.environ.get("PETLBENCH_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(NAMES)}; or set PETLBENCH_CHROMIUM)")
    return found
