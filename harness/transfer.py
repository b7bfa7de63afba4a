"""Testing trained trials on another data set, without the pictures that their own set already shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from petlbench.datasets.card import Card
from petlbench.datasets.load import load
from petlbench.datasets.perceptual import CORRELATION, DISTANCE, TURNS, Prints, near_pairs, prints
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import DataError, Split
from petlbench.datasets.splits import subset
from petlbench.harness import metrics
from petlbench.harness.device import device_name
from petlbench.harness.evaluate import metrics_part, split_part
from petlbench.harness.evaluation import finished, rebuild
from petlbench.harness.json_files import RecordError
from petlbench.harness.provenance import command_line, now, provenance
from petlbench.harness.record import Record
from petlbench.harness.record_files import RANKS_SUFFIX, read_record, record_path
from petlbench.harness.spec import OWN
from petlbench.harness.transfer_record import (
    LeftOut,
    NearRule,
    TargetPart,
    TransferRecord,
    identity,
    transfer_path,
    write_transfer,
)

if TYPE_CHECKING:
    from petlbench.harness.retrial import Places

Progress = Callable[[str, int, int], None]
"""Told what is done, how many pictures are done, and how many there are."""

SEEN = ("train", "val")
"""Splits of the source that a trial has learned from, or was chosen on."""


@dataclass(frozen=True)
class Target:
    """The data set to test on.

    Attributes:
        card: Of the set.
        test: Its test split, as read.
    """

    card: Card
    test: Split


def open_target(name: str, root: Path | None = None) -> Target:
    """The test split of a data set.

    Args:
        name: A card's name or path, or a folder.
        root: Folder of its files; None: as for any other verb.

    Raises:
        DataError: The set is unknown, its files are missing, or it has no test split.
    """
    card = load_card(name)
    splits = load(card, root)
    if "test" not in splits:
        raise DataError(f"data set {card.name}: it has no test split to transfer to (found {', '.join(splits)})")
    return Target(card, splits["test"])


class Transfers:
    """Tests records on one target; pictures are compared once per source set.

    Args:
        target: Of :func:`open_target`.
        progress: Told about the comparison of pictures.
    """

    def __init__(self, target: Target, progress: Progress):
        self.target, self.progress = target, progress
        self._prints: Prints | None = None
        self._near: dict[tuple[str, ...], list[LeftOut]] = {}

    def run(self, path: Path, places: Places, results: Path | None = None) -> tuple[Path, TransferRecord]:
        """Build a record's model again, test it, and write the transfer with its ranks.

        Args:
            path: The record; its adapter lies beside it.
            places: Where the source's data, weights and plugins lie on this machine.
            results: Results folder that takes the transfer; None: the one that holds the record.

        Returns:
            Where it was written, and what.

        Raises:
            RecordError: The record is unreadable or unfinished, is of the target itself, needs another record to rank, or
                lies in no results folder while none is given.
            DataError: Data are missing or changed, or nothing is left of the test split.
            PetlbenchError: The model cannot be built again; as of ``benchmark evaluate``.
        """
        started = now()
        record = finished(read_record(path), path)
        self._check(path, record.spec)
        results = results or _home(path, record)
        rebuilt = rebuild(path, record, places)
        left_out = self._left_out({name: rebuilt.parts.splits[name] for name in SEEN if name in rebuilt.parts.splits})
        test = self._without(left_out)
        part = TargetPart(
            name=self.target.card.name,
            title=self.target.card.title,
            card_version=self.target.card.version,
            whole=split_part(self.target.test, references=False),
            test=split_part(test, references=True),
            rule=NearRule(distance=DISTANCE, correlation=CORRELATION, turns=TURNS),
            left_out=left_out,
            shared_captions=_shared(test, rebuilt.parts.splits.get("train")),
        )
        tested = replace(rebuilt, parts=replace(rebuilt.parts, splits={"test": test})).rank("test", metrics.TOP)
        name = identity(record.spec_id, part)
        file = transfer_path(results, record, part.name, name)
        ranks = file.with_name(file.stem + RANKS_SUFFIX)
        transfer = TransferRecord(
            transfer_id=name,
            source=record.model_copy(update={"curve": [], "artifacts": {}}),
            target=part,
            metrics=metrics_part(tested),
            notes=_notes(rebuilt.parts.backbone.provenance.source, part.name),
            device=device_name(rebuilt.device),
            provenance=provenance(started, command_line()),
            artifacts={"ranks": ranks.name},
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        tested.ranks.save(ranks)  # first, so that a transfer never points at a file that does not exist
        write_transfer(transfer, file)
        return file, transfer

    def _check(self, path: Path, spec: dict) -> None:
        if spec["dataset"]["name"] == self.target.card.name:
            raise RecordError(
                f"{path}: was trained on {self.target.card.name} itself; its test result is in the record, and `benchmark "
                "evaluate` measures it again"
            )
        rerank = spec["protocol"].get("rerank")
        if rerank and rerank["first"] != OWN:
            raise RecordError(
                f"{path}: its shortlist comes from another record, which knows the captions of {spec['dataset']['name']} only; "
                "transfer a record that ranks by itself"
            )

    def _left_out(self, seen: dict[str, Split]) -> list[LeftOut]:
        """Test pictures of the target that a source shows, each with the nearest of the source's pictures."""
        key = tuple(split.sha256 for split in seen.values())
        if key not in self._near:
            pictures = self.target.test.images
            if self._prints is None:
                self._prints = prints(pictures, progress=self._saying(f"{self.target.card.name} test"))
            nearest: dict[int, LeftOut] = {}
            for name, split in seen.items():
                theirs = prints(split.images, progress=self._saying(f"source {name}"))
                for pair in near_pairs(self._prints, theirs):
                    known = nearest.get(pair.first)
                    if known is None or pair.correlation > known.correlation:
                        nearest[pair.first] = LeftOut(
                            image=pictures[pair.first].name,
                            near=split.images[pair.second].name,
                            split=name,
                            distance=pair.distance,
                            correlation=round(pair.correlation, 4),
                            turn=pair.turn,
                        )
            self._near[key] = [nearest[index] for index in sorted(nearest)]
        return self._near[key]

    def _saying(self, what: str) -> Callable[[int, int], None]:
        return lambda done, of: self.progress(what, done, of)

    def _without(self, left_out: list[LeftOut]) -> Split:
        names = {one.image for one in left_out}
        kept = [index for index, image in enumerate(self.target.test.images) if image.name not in names]
        if not kept:
            raise DataError(
                f"data set {self.target.card.name}: all {len(names)} test pictures are near duplicates of the source's, so "
                "nothing is left to test on"
            )
        return subset(self.target.test, kept, "test")


def _home(path: Path, record: Record) -> Path:
    """The results folder that a record lies in."""
    place = path.absolute()
    inside = record_path(Path(), record.spec, record.spec_id).parent.parts  # DATASET/METHOD
    if place.parent.parts[-len(inside) :] != inside:
        raise RecordError(
            f"{path}: does not lie in {Path(*inside)} of a results folder; say with --results where to write"
        )
    return place.parents[len(inside)]


def _shared(test: Split, train: Split | None) -> int:
    """Captions whose string, without case and outer blanks, stands in the training split too."""
    known = {caption.strip().casefold() for caption in train.captions} if train else set()
    return sum(caption.strip().casefold() in known for caption in test.captions)


def _notes(source: str, target: str) -> list[str]:
    if f"aligned on {target} " in source:
        return [f"the backbone itself was aligned on {target} ({source}), so this is no transfer to an unseen set"]
    return []
