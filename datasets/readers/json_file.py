"""JSON files, with errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from petlbench.datasets.split import DataError


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: The file cannot be read, is not UTF-8 or no JSON; names the line.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: the annotations cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}:{error.colno}: not valid JSON ({error.msg}). "
            "The file may be cut off or edited by hand; fetch it again or repair this place."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error


def kind(thing: Any) -> str:
    """A word for a JSON value in an error message."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "missing"}
    if isinstance(thing, (list, str)) and not thing:
        return "empty"
    return names.get(type(thing), "a number")
