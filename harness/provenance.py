"""In which world a trial ran: code, packages, machine."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# The folders of an absolute path at the beginning of a word, or after what may stand before a value: not those of a URL, nor of
# hf:OWNER/NAME. Folders may hold blanks; what follows a comma or a bracket is another value.
_FOLDERS = re.compile(
    r"""(?:^|(?<=[=\[{(,:\s'"])|(?<=^-[a-zA-Z])|(?<=\w\.)(?=/))(?<!:/)(?:~[^/\s]*)?/(?!/)(?:[^/,=\[\]{}'"]*/)*"""
)

PACKAGES = (
    "petlbench",
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "peft",
    "deepspeed",
    "ray",
    "optuna",
    "numpy",
    "pillow",
)


def now() -> str:
    """UTC time, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(started: str, command: list[str]) -> dict[str, Any]:
    """Everything needed to tell, later, what produced a record."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "started": started,
        "finished": now(),
        "command": command,
        "git": _git(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": packages(),
        "cuda": torch.version.cuda if cuda else None,
        "gpu": torch.cuda.get_device_name(0) if cuda else None,
        "gpu_count": torch.cuda.device_count() if cuda else 0,
    }


@lru_cache
def packages() -> dict[str, str]:
    """Installed versions of :data:`PACKAGES`."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@lru_cache
def _git() -> dict[str, Any] | None:
    """Commit and dirtiness of the checkout that holds this file; None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain", "--untracked-files=no", "--", "src", "harness", "methods", "datasets")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def command_line() -> list[str]:
    """The command as typed, but absolute paths without their folders: records are shared, a user's folders are not."""
    return [Path(sys.argv[0]).name, *map(_without_folders, sys.argv[1:])]


def _without_folders(word: str) -> str:
    """``/data/sets/ucm`` becomes ``ucm``, wherever in the word it stands: ``dataset.ucm.root=/data/sets/ucm``, ``[/a/b.py]``."""
    return Path(word).name if word.startswith(("/", "~")) else _FOLDERS.sub("", word)
