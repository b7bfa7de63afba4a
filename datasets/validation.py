"""Turning YAML text into a checked model; errors name the file, the line, the key and the nearest known key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from petlbench.datasets.split import DataError

M = TypeVar("M", bound=BaseModel)
Lines = dict[tuple[str, ...], int]


class Yaml(yaml.SafeLoader):
    """YAML whose whole numbers are decimal: ``010`` and ``1:30`` are texts, not 8 and 90, so that a mistake is told."""


Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:int"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))


def suggest(word: str, known: Iterable[str]) -> str:
    """``did you mean `x`?``, or the list of known words when nothing is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known) or 'none'}"


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping in a YAML file, and the line (from 1) of each of its keys.

    Raises:
        DataError: The file cannot be read, is no YAML, is no mapping, or names a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=Yaml)
        values = yaml.load(text, Loader=Yaml)  # a SafeLoader; tags and dates are only understood here
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise DataError(f"{place}: not valid YAML ({getattr(error, 'problem', None) or error})") from error
    if not isinstance(root, yaml.MappingNode):
        raise DataError(f"{path}: expected `key: value` lines at the top level")
    lines: Lines = {}
    _note_lines(root, (), lines, path)
    return values, lines


def checked(model: type[M], values: Any, source: str, lines: Lines | None = None, prefix: tuple[str, ...] = ()) -> M:
    """Validate ``values`` against ``model``; all complaints come in one :class:`DataError`.

    Args:
        model: The pydantic model.
        values: What to validate.
        source: What the user knows the values by, e.g. the path of a card.
        lines: Line of each key in ``source``, from :func:`read_yaml`.
        prefix: Where in ``source`` the values lie.

    Raises:
        DataError: One line per complaint: place, key, what was found, what was expected.
    """
    try:
        found = model.model_validate(values)
    except ValidationError as error:
        told = [_complaint(issue, model, source, lines or {}, prefix) for issue in error.errors()]
        raise DataError("\n".join(told)) from error
    # Python counts True as 1: `on` for a number is a mistake, not a one.
    wrong = [
        {"loc": place, "type": "bool", "input": value, "msg": "Expected a number"}
        for place, value in _switches(values, found)
    ]
    if wrong:
        raise DataError("\n".join(_complaint(issue, model, source, lines or {}, prefix) for issue in wrong))
    return found


def _switches(
    given: Any, found: Any, place: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], bool]]:
    """Where a truth value was given and a number was made of it."""
    if isinstance(given, bool):
        if isinstance(found, int | float) and not isinstance(found, bool):
            yield place, given
    elif isinstance(given, Mapping):
        for key, value in given.items():
            inner = found.get(key) if isinstance(found, Mapping) else getattr(found, str(key), None)
            yield from _switches(value, inner, (*place, key))
    elif isinstance(given, list | tuple) and isinstance(found, list | tuple) and len(given) == len(found):
        for index, (value, inner) in enumerate(zip(given, found, strict=True)):
            yield from _switches(value, inner, (*place, index))


def _complaint(issue: Any, model: type[BaseModel], source: str, lines: Lines, prefix: tuple[str, ...]) -> str:
    inner = tuple(str(part) for part in issue["loc"] if part != "[key]")  # pydantic's mark of a wrong dict key
    where = prefix + inner
    # A missing key has no line of its own: point at the nearest key around it.
    line = next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), None)
    place = f"{source}:{line}" if line else source
    key = f"key `{'.'.join(where)}`"
    if issue["type"] == "extra_forbidden":
        owner = _model_at(model, inner[:-1])
        return f"{place}: {key} is unknown; {suggest(inner[-1], owner.model_fields if owner else ())}"
    if issue["type"] == "missing":
        return f"{place}: {key} is missing"
    return f"{place}: {key} has the value {issue['input']!r}; {issue['msg'][0].lower()}{issue['msg'][1:]}"


def _model_at(model: Any, path: tuple[str, ...]) -> type[BaseModel] | None:
    """The nested model that ``path`` leads to: through fields, and through the values of dicts and lists."""
    found: Any = model
    for part in path:
        if isinstance(found, type) and issubclass(found, BaseModel):
            if part not in found.model_fields:
                return None
            found = found.model_fields[part].annotation
        else:
            found = next(reversed(get_args(found)), None)  # dict[str, V] and list[V]: V
        found = next((arg for arg in get_args(found) if _is_model(arg)), found) if not _is_container(found) else found
    return found if _is_model(found) else None


def _is_model(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)


def _is_container(thing: Any) -> bool:
    return getattr(thing, "__origin__", None) in (dict, list, tuple)


def _note_lines(node: yaml.Node, where: tuple[str, ...], lines: Lines, path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*where, str(key.value))
            line = key.start_mark.line + 1
            if here in lines:
                raise DataError(f"{path}:{line}: key `{'.'.join(here)}` is given twice (first on line {lines[here]})")
            lines[here] = line
            _note_lines(value, here, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*where, str(index))] = value.start_mark.line + 1
            _note_lines(value, (*where, str(index)), lines, path)
