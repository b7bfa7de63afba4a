"""One transfer, one JSON file: a trained trial, tested on the test split of another data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from petlbench.harness.json_files import RecordError, read_json, validated
from petlbench.harness.record import MetricsPart, Record, SplitPart
from petlbench.harness.record_files import write_record
from petlbench.harness.record_scoring import Part
from petlbench.harness.spec import canonical_sha256, file_name

TRANSFER_VERSION: Literal[1] = 1
FOLDER = "transfer"
"""Folder of a results folder that holds transfers, apart from the records."""


class LeftOut(Part):
    """A test picture that was left out, since the source's pictures show the same."""

    image: str
    near: str
    """Picture of the source."""
    split: str
    """Its split, ``train`` or ``val``."""
    distance: int
    """Bits of 64 by which the perceptual hashes differ."""
    correlation: float
    """Of the small grey pictures."""
    turn: int
    """Orientation in which they agree: 0 upright, 1 to 3 quarter turns, 4 to 7 the same mirrored."""


class NearRule(Part):
    """When two pictures count as the same; see ``petlbench.datasets.perceptual``."""

    hash: Literal["dct64"] = "dct64"
    distance: int
    correlation: float
    turns: int


class TargetPart(Part):
    """What was tested on."""

    name: str
    title: str
    card_version: str
    whole: SplitPart
    """The test split as it was read."""
    test: SplitPart
    """The same without the pictures that were left out; what the metrics are of."""
    rule: NearRule
    left_out: list[LeftOut] = Field(default_factory=list)
    shared_captions: int
    """Captions of ``test`` whose string, without case and outer blanks, stands in the source's train split too. They are
    ranked like the others."""


class TransferRecord(Part):
    """Schema version 1. See ``results/README.md``."""

    transfer_version: Literal[1] = TRANSFER_VERSION
    transfer_id: str
    """Hash of what was tested, on what, after which de-duplication: see :func:`identity`."""
    source: Record
    """The record of the trial, without its learning curve."""
    target: TargetPart
    metrics: MetricsPart
    notes: list[str] = Field(default_factory=list)
    """What a reader must know beside the numbers."""
    device: str
    provenance: dict[str, Any]
    artifacts: dict[str, str]
    """``ranks``, beside the file."""


def identity(spec_id: str, target: TargetPart) -> str:
    """The ``transfer_id``: SHA-256 of the source's spec, the target's splits and the rule of de-duplication."""
    told = {
        "spec_id": spec_id,
        "target": target.name,
        "whole": target.whole.sha256,
        "test": target.test.sha256,
        "rule": target.rule.model_dump(mode="json"),
    }
    return canonical_sha256(told)


def transfer_path(root: Path, source: Record, target: str, transfer_id: str) -> Path:
    """``ROOT/transfer/<source>-to-<target>/<method>/<backbone>-s<seed>-<first 8 of transfer_id>.json``."""
    spec = source.spec
    folder = root / FOLDER / f"{spec['dataset']['name']}-to-{target}" / spec["method"]["name"]
    return folder / f"{file_name(str(spec['backbone']['name']))}-s{spec['seed']}-{transfer_id[:8]}.json"


def write_transfer(record: TransferRecord, path: Path) -> Path:
    """Write like a record; see :func:`petlbench.harness.record_files.write_record`."""
    return write_record(record, path)


def read_transfer(path: Path) -> TransferRecord:
    """Read and validate a transfer.

    Raises:
        RecordError: Naming the file, the key, what was found and what to do.
    """
    hint = "restore it from version control, or make it again with `benchmark transfer`"
    payload = read_json(path, hint)
    version = payload.get("transfer_version") if isinstance(payload, dict) else None
    if version != TRANSFER_VERSION:
        raise RecordError(
            f"{path}: key `transfer_version` is {version!r}, this petlbench reads {TRANSFER_VERSION}; upgrade petlbench, or {hint}"
        )
    record = validated(TransferRecord, payload, path, hint)
    if record.transfer_id != (expected := identity(record.source.spec_id, record.target)):
        raise RecordError(
            f"{path}: key `transfer_id` is {record.transfer_id[:12]}..., but what it states hashes to {expected[:12]}...: the "
            f"file was edited; {hint}"
        )
    return record


def find_transfers(root: Path) -> Iterator[Path]:
    """Transfers of a results folder, sorted."""
    for path in sorted((root / FOLDER).glob("*/*/*.json")):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path
