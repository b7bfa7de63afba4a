"""What the HTML pages share: their sources in the package, hashes for a page's own policy, and templates that escape."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from petlbench.leaderboard import text


def source(name: str) -> str:
    """A template, style sheet or script of the package."""
    return (files("petlbench.leaderboard") / "templates" / name).read_text(encoding="utf-8")


def digest(inline: str) -> str:
    """``sha256-...``: names an inline script or style sheet in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()


def embedded(kind: str, payload: bytes) -> str:
    """A picture as an address; ``kind`` is a MIME type such as ``image/jpeg``."""
    return f"data:{kind};base64," + base64.b64encode(payload).decode()


@cache
def environment() -> Environment:
    """Templates of the package; whatever they fill in is escaped, and a name that is not given is an error."""
    return Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )


def _finalize(value: Any) -> Any:
    """Text from data becomes one line without control characters; markup of our own stays as it is."""
    return text.plain(value) if type(value) is str else value
