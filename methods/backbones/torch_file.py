"""What lies beside the tensors of a PyTorch file, read without building any object, and the file without it.

Training scripts store their configuration next to the weights, often as objects of a YAML library, and then PyTorch's
restricted reader refuses the whole file. Nothing is ever called here: instructions are walked, and where they would make
an object, an empty stand-in takes its place that keeps the plain values put into it.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

_PLAIN = (str, int, float, bool, type(None))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_STRAIGHT = ("UNICODE", "INT", "LONG", "FLOAT")
"""Instructions of these families carry the value that they push."""


class _Mark:
    """Begins a run of values on the stack."""


class _Made:
    """Where an object would be: what was put into it."""

    def __init__(self) -> None:
        self.entries: dict[Any, Any] = {}
        self.members: list[Any] = []


class _Item(NamedTuple):
    value: Any
    start: int
    """Where the instructions that made it begin."""


def plain_values(path: Path) -> dict[str, Any]:
    """The plain values (text, numbers, lists and dictionaries of them) of the dictionary that a file holds.

    Tensors and everything else that is an object appear as None. Empty for files of another make than ``torch.save`` since
    1.6, and for safetensors.
    """
    stream = _stream(path)
    return {} if stream is None else {str(key.value): _plain(value.value) for key, value in _top(stream[1])}


def without_objects(path: Path, kept: Collection[str]) -> io.BytesIO | None:
    """A copy in memory that ends with the first of the ``kept`` keys; None where that is not possible."""
    stream = _stream(path)
    if stream is None:
        return None
    name, data = stream
    found = _top(data)
    place = next((i for i, (key, _) in enumerate(found) if key.value in kept), len(found))
    if place >= len(found) - 1:
        return None  # nothing follows that could be left out
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for entry in old.infolist():
            content = data[: found[place + 1][0].start] + b"u." if entry.filename == name else old.read(entry)
            new.writestr(entry.filename, content)
    copy.seek(0)
    return copy


def _stream(path: Path) -> tuple[str, bytes] | None:
    """Name and content of the instructions inside the file."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return (names[0], archive.read(names[0])) if len(names) == 1 else None


def _top(data: bytes) -> list[tuple[_Item, _Item]]:
    """Keys and values of the outermost dictionary, in order; empty where there is another thing or the data is damaged."""
    try:
        return _walk(data)
    except (ValueError, IndexError, KeyError):  # ValueError: what pickletools makes of damaged data
        return []


def _walk(data: bytes) -> list[tuple[_Item, _Item]]:
    stack: list[_Item] = []
    memo: dict[Any, Any] = {}
    top: list[tuple[_Item, _Item]] = []

    def popped(count: int | None) -> list[_Item]:
        """The last ``count`` values, or all down to the last mark, which goes too."""
        first = len(stack) - count if count is not None else _last_mark(stack) + 1
        items = stack[first:]
        del stack[first if count is not None else first - 1 :]
        return items

    for code, value, start in pickletools.genops(data):
        assert start is not None
        name = code.name
        if name == "STOP":
            break
        if name == "MARK":
            stack.append(_Item(_Mark, start))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else value] = stack[-1].value
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(_Item(memo[value], start))
        elif name in ("SETITEM", "SETITEMS"):
            items = popped(2 if name == "SETITEM" else None)
            pairs = list(zip(items[::2], items[1::2], strict=True))
            if len(stack) == 1:
                top += pairs
            if isinstance(stack[-1].value, _Made):
                stack[-1].value.entries.update({k.value: v.value for k, v in pairs if isinstance(k.value, _PLAIN)})
        elif name in ("APPEND", "APPENDS"):
            items = popped(1 if name == "APPEND" else None)
            if isinstance(stack[-1].value, _Made):
                stack[-1].value.members += [item.value for item in items]
        elif name == "BUILD":
            popped(1)  # the object's own bookkeeping
        elif name in ("TUPLE", "LIST"):
            found = stack[_last_mark(stack)].start
            made = _Made()
            made.members = [item.value for item in popped(None)]
            stack.append(_Item(made, found))
        elif name in ("REDUCE", "NEWOBJ") or name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = popped(2 if name in ("REDUCE", "NEWOBJ") else int(name[-1]))
            made = _Made()
            made.members = [item.value for item in items] if name.startswith("TUPLE") else []
            stack.append(_Item(_number(items[1].value) if name == "NEWOBJ" else made, items[0].start))
        elif name in _CONSTANTS or name.endswith(_STRAIGHT) or name in ("BININT1", "BININT2", "LONG1", "LONG4"):
            stack.append(_Item(_CONSTANTS.get(name, value), start))
        else:
            _other(code, start, stack)
    return top if len(stack) == 1 else []


def _other(code: pickletools.OpcodeInfo, start: int, stack: list[_Item]) -> None:
    """Any further instruction: takes and leaves as many values as it is documented to."""
    taken = len(code.stack_before)
    if pickletools.markobject in code.stack_before:
        taken = len(stack) - _last_mark(stack)
    begins = stack[-taken].start if taken else start
    if taken:
        del stack[-taken:]
    stack += [_Item(_Made(), begins) for _ in code.stack_after]


def _last_mark(stack: list[_Item]) -> int:
    return max(index for index, item in enumerate(stack) if item.value is _Mark)


def _number(arguments: Any) -> Any:
    """For an object that is made of one plain value, such as a library's own kind of number, that value."""
    members = arguments.members if isinstance(arguments, _Made) else []
    return members[0] if len(members) == 1 and isinstance(members[0], _PLAIN) else _Made()


def _plain(value: Any) -> Any:
    if isinstance(value, _Made):
        if value.entries:
            return {key: _plain(entry) for key, entry in value.entries.items()}
        return [_plain(member) for member in value.members] or None
    return value if isinstance(value, _PLAIN) else None
