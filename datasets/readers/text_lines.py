"""Lines of a text file, with errors that name the line."""

from __future__ import annotations

from pathlib import Path

from petlbench.datasets.split import DataError


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file without surrounding white space; a final newline makes no further line.

    Raises:
        DataError: The file cannot be read or is not UTF-8 (names the line).
    """
    text = read_text(path)
    # Not splitlines: captions may hold characters that Unicode counts as line ends.
    lines = text.removesuffix("\n").split("\n") if text else []
    return [line.strip() for line in lines]


def read_text(path: Path) -> str:
    """Content of a UTF-8 text file, without a byte-order mark.

    Raises:
        DataError: The file cannot be read or is not UTF-8 (names the line).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: UTF-16 text, as some spreadsheets write it; save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from error
