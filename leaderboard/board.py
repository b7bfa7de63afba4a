"""From a results folder to the files of a board: a pure function of the records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from petlbench.harness.record import write_atomically
from petlbench.leaderboard.csv_writer import render_csv
from petlbench.leaderboard.explain import Options
from petlbench.leaderboard.frame import to_json
from petlbench.leaderboard.markdown import render_markdown
from petlbench.leaderboard.table import Board, build_board

WRITERS: dict[str, Callable[[Board], str]] = {"md": render_markdown, "csv": render_csv, "json": to_json}
"""File ending to writer."""


def write_board(
    results: Path | Board, out_dir: Path, *, formats: Sequence[str] = ("md", "csv"), options: Options | None = None
) -> list[Path]:
    """Write ``board.md``, ``board.csv`` (and ``board.json``) atomically; equal records give equal bytes.

    Every format is rendered before the first file is written, so that an error leaves the old files as they were.

    Args:
        results: Folder of records, or a board that was built already.
        out_dir: Made if absent.
        formats: Keys of :data:`WRITERS`.
        options: Random draws; ignored where ``results`` is a board.

    Returns:
        The files, in the order of ``formats``.

    Raises:
        ValueError: Unknown format.
        FileNotFoundError: ``results`` is not a folder.
        OSError: ``out_dir`` cannot be written.
    """
    unknown = [name for name in formats if name not in WRITERS]
    if unknown:
        raise ValueError(f"unknown board format {unknown[0]!r}; choose from {', '.join(WRITERS)}")
    board = results if isinstance(results, Board) else build_board(results, options)
    rendered = {out_dir / f"board.{name}": WRITERS[name](board) for name in formats}
    for path, content in rendered.items():
        write_atomically(path, content.encode())
    return list(rendered)
