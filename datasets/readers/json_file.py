"""JSON files, with errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from petlbench.datasets.readers.common import check_name
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


def picture_name(item: Any, key: str, place: str, wanted: str) -> str:
    """The picture file that an item names under a key.

    Args:
        item: What should be an object with the keys ``wanted``.
        key: The key.
        place: Where it stands, for messages.
        wanted: The keys that are expected, for messages.

    Raises:
        DataError: It is no object, or names no file inside the picture folder.
    """
    if not isinstance(item, dict):
        raise DataError(f"{place}: found {kind(item)}, expected an object with {wanted}")
    name = item.get(key)
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{place}: key `{key}` is {kind(name)}, expected the name of the picture file")
    check_name(name, place)
    return name


def kind(thing: Any) -> str:
    """A word for a JSON value in an error message."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "missing"}
    if isinstance(thing, (list, str)) and not thing:
        return "empty"
    return names.get(type(thing), "a number")
