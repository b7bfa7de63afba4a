"""Is a results folder fit to be shared? Every record, its name, its place and its ranks, and nothing that is none of these."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from petlbench.harness.json_files import RecordError
from petlbench.harness.record import SCHEMA
from petlbench.harness.record_files import RANKS_SUFFIX, RECORD_SUFFIX, find_records, read_record, record_path
from petlbench.harness.spec import TrialSpec
from petlbench.leaderboard.entry_ranks import disagreements, read_ranks
from petlbench.leaderboard.group import group_entries
from petlbench.leaderboard.load import Entry, Problem, joined, load_records
from petlbench.leaderboard.table import Board, make_board
from petlbench.leaderboard.transfer import check_transfers, load_transfers

if TYPE_CHECKING:
    from petlbench.leaderboard.html_writer import Figure

OTHER_FOLDERS = {"schema", "boards", "experiments", "scratch", "search", "plots", "gallery", "transfer"}
"""Folders of a results folder that hold no records meant for a board."""

_ADAPTER = ".adapter"
_AGAIN = "restore it from version control, or run the trial again"


@dataclass
class Report:
    """What :func:`validate` found.

    Attributes:
        entries: Records that can be read, in the order of their names.
        problems: Everything that is wrong, in the order of names.
        migrated: Name of each record of an older schema version to that version.
    """

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    migrated: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems


def validate(root: Path, *, board: bool = False) -> Report:
    """Check a results folder; problems are collected, not raised.

    Args:
        root: Folder of records.
        board: Also check that the board files in it are what the records produce; plots are taken as they lie there.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
    """
    loaded = load_records(root)
    report = Report(entries=loaded.entries)
    for problem in loaded.problems:
        report.problems.extend(_every_complaint(root, problem))
    owners: dict[str, tuple[str, Any]] = {}
    for entry in loaded.entries:
        version = json.loads(entry.path.read_text(encoding="utf-8"))["schema_version"]
        if version != SCHEMA:
            report.migrated[entry.name] = version
        said = [*_names(root, entry), *_agreement(entry), *_ranks(entry, owners)]
        report.problems.extend(Problem(entry.name, message) for message in said)
    report.problems.extend(_strays(root, loaded.entries))
    transfers = load_transfers(root)
    report.problems.extend(check_transfers(root, transfers))
    report.problems.extend(problem for group in group_entries(transfers.entries) for problem in group.problems)
    if board:
        report.problems.extend(_boards(root, make_board(joined(loaded, transfers))))
    report.problems.sort(key=lambda problem: (problem.name, problem.message))
    return report


def _every_complaint(root: Path, problem: Problem) -> list[Problem]:
    """All that the schema has against a record, where the reader stopped at the first."""
    path = root / problem.name
    try:
        read_record(path)
    except RecordError as error:
        if isinstance(error.__cause__, ValidationError):
            return [
                Problem(
                    problem.name,
                    f"{path}: key `{'.'.join(map(str, issue['loc']))}`: {issue['msg']}"
                    + ("" if issue["type"] == "missing" else f" (found {repr(issue['input'])[:80]})"),
                )
                for issue in error.__cause__.errors()
            ]
    except OSError:  # told as the loader told it
        pass
    return [problem]


def _names(root: Path, entry: Entry) -> Iterator[str]:
    """The record lies where its spec says."""
    spec, spec_id = entry.record.spec, entry.record.spec_id
    expected = record_path(root, spec, spec_id)
    if entry.path != expected:
        yield f"{entry.path}: its spec belongs at {expected}; rename the record, and its ranks with it"
    if entry.record.status == "ok" and entry.ranks_path.name != (ranks := entry.path.stem + RANKS_SUFFIX):
        yield f"{entry.path}: key `artifacts.ranks` names {entry.ranks_path.name}, expected {ranks}; rename that file and the key"
    parts = (spec["dataset"]["name"], spec["method"]["name"])
    if any(not str(part) or str(part) in {".", ".."} or set(str(part)) & set("/\\\0") for part in parts):
        yield f"{entry.path}: key `spec`: {' or '.join(map(repr, parts))} is no name of a folder; {_AGAIN}"


def _agreement(entry: Entry) -> Iterator[str]:
    """What a record states twice, it states alike."""
    record, path = entry.record, entry.path
    try:
        TrialSpec.model_validate(record.spec)
    except ValidationError as error:
        for issue in error.errors():
            yield f"{path}: key `spec.{'.'.join(map(str, issue['loc']))}`: {issue['msg']}; {_AGAIN}"
    pairs: list[tuple[str, Any, str, Any]] = [
        ("method.name", record.method.name, "spec.method.name", record.spec["method"]["name"])
    ]
    if record.data is not None:
        pairs.append(("data.name", record.data.name, "spec.dataset.name", record.spec["dataset"]["name"]))
    asked = (record.spec.get("protocol") or {}).get("selection")
    if record.selection is not None and asked is not None and record.selection.rule != "none":
        pairs.append(("selection.rule", record.selection.rule, "spec.protocol.selection", asked))
    for key, value, other, said in pairs:
        if value != said:
            yield f"{path}: key `{key}` is {value!r}, but key `{other}` is {said!r}; {_AGAIN}"


def _ranks(entry: Entry, owners: dict[str, tuple[str, Any]]) -> Iterator[str]:
    """The ranks beside a finished record give its recalls, under every tie rule that it states."""
    record = entry.record
    if record.status != "ok":
        return
    try:
        ranks = read_ranks(entry)
    except (OSError, ValueError) as error:
        yield str(error)
        return
    test = record.metrics["test"]
    yield from disagreements(entry, ranks, test.tie_rule, test.recalls)
    for rule, stated in sorted(test.other_rules.items()):
        yield from disagreements(entry, ranks, rule, stated, f"other_rules.{rule}")
    assert record.data is not None  # load_records lets no record of status ok through without it
    split = record.data.splits["test"]
    first, owner = owners.setdefault(split.sha256, (entry.name, ranks.owner))
    if not np.array_equal(owner, ranks.owner):
        yield (
            f"{entry.ranks_path}: array `owner` differs from that of {first}, though both records state the same test "
            f"split; {_AGAIN}"
        )


def _strays(root: Path, entries: list[Entry]) -> Iterator[Problem]:
    """Files among the records that belong to none, and records that lie where no board looks."""
    records = set(find_records(root))
    tops = {path.parents[1] for path in records}
    belonging = {entry.ranks_path for entry in entries}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if relative.parts[0] in OTHER_FOLDERS or any(part.startswith(".") for part in relative.parts[:-1]):
            continue
        name = relative.as_posix()
        if path.is_symlink():
            yield Problem(name, f"{path}: is a link; a results folder holds the files themselves")
        elif path.is_dir() or path in records:
            continue
        elif path.name.startswith("."):
            if path.suffix and _of_a_record(path.name.lstrip(".")) and len(relative.parts) == 3:
                yield Problem(name, f"{path}: left by a write that was interrupted; delete it")
        elif _is_stray(path, root / relative.parts[0] in tops, len(relative.parts), belonging, records):
            yield Problem(
                name,
                f"{path}: belongs to no record; expected DATASET/METHOD/NAME{RECORD_SUFFIX} with NAME{RANKS_SUFFIX} and "
                f"NAME{_ADAPTER}* beside it; move or delete it",
            )


def _is_stray(path: Path, among_records: bool, depth: int, ranks: set[Path], records: set[Path]) -> bool:
    """Whether a file belongs to no record.

    Args:
        path: The file.
        among_records: Whether its folder of the top level is that of a data set.
        depth: Parts of its path below the results folder.
        ranks: Files of ranks that records name.
        records: All records.
    """
    if depth == 1 or not among_records:  # other folders are nobody's business, unless they hide records
        return path.name.endswith(RANKS_SUFFIX) or _looks_like_record(path)
    if path in ranks:
        return False
    # The ranks of a record that cannot be read are not known by name; they are no second problem.
    for suffix, place in ((RANKS_SUFFIX, path), (_ADAPTER, path.parent if depth == 4 else path)):
        stem, found, _ = place.name.partition(suffix)
        if found and place.with_name(f"{stem}{RECORD_SUFFIX}") in records:
            return False
    return True


def _of_a_record(name: str) -> bool:
    return f"{RECORD_SUFFIX}." in name or f"{RANKS_SUFFIX}." in name


def _looks_like_record(path: Path) -> bool:
    if path.suffix != RECORD_SUFFIX:
        return False
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whatever it is, it is no record
        return False
    return isinstance(payload, dict) and "spec_id" in payload


def _boards(root: Path, board: Board) -> Iterator[Problem]:
    """Board files that are there, against those that the records give."""
    from petlbench.leaderboard.board import WRITERS, file_name, render_board

    there = [name for name in WRITERS if (root / file_name(name)).is_file()]
    if not there:
        yield Problem(
            "board.md", f"{root / 'board.md'}: there is no board; run `benchmark leaderboard --results {root}`"
        )
    for path, fresh in render_board(board, root, there, _shown(root / file_name("html"), board)).items():
        if fresh != path.read_bytes():
            yield Problem(
                path.name,
                f"{path}: is not what the records produce; run `benchmark leaderboard --results {root}` and commit it",
            )


def _shown(page: Path, board: Board) -> Sequence[Figure]:
    """The plots that a page was given: they lie beside it, and what they show is no matter of the page."""
    if not page.is_file() or b"<figure>" not in page.read_bytes():
        return ()
    from petlbench.leaderboard.plots.write import page_figures

    return page_figures(board, page.parent)
