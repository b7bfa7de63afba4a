"""What the HTML pages share: head and style, a policy of their own, and templates that escape."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from petlbench.leaderboard import text


def render_page(name: str, *, with_script: bool = False, **filled: Any) -> str:
    """A page that needs nothing but itself; its policy lets a browser use its style, its script if any, and embedded pictures.

    Args:
        name: Of its template, its style sheet and its script in the package.
        with_script: Whether it has a script.
        filled: What the template fills in.
    """
    style = _source("page.css") + _source(f"{name}.css")
    script = _source(f"{name}.js") if with_script else ""
    policy = [
        "default-src 'none'",
        *([f"script-src '{_digest(script)}'"] if script else []),
        f"style-src '{_digest(style)}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    ours = {"style": Markup(style), "script": Markup(script)}  # from the package, hence not escaped
    return _environment().get_template(f"{name}.html").render(policy="; ".join(policy), **ours, **filled)


def embedded(kind: str, payload: bytes) -> str:
    """A picture as an address; ``kind`` is a MIME type such as ``image/jpeg``."""
    return f"data:{kind};base64," + base64.b64encode(payload).decode()


def _source(name: str) -> str:
    """A template, style sheet or script of the package."""
    return (files("petlbench.leaderboard") / "templates" / name).read_text(encoding="utf-8")


def _digest(inline: str) -> str:
    """``sha256-...``: names an inline script or style sheet in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    """Templates of the package; whatever they fill in is escaped, and a name that is not given is an error."""
    return Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )


def _finalize(value: Any) -> Any:
    """Text from data becomes one line without control characters; markup of our own stays as it is."""
    return text.plain(value) if type(value) is str else value
