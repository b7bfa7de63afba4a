"""A record with what it was tested on: the split, opened again and checked, the ranks, and the first answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petlbench.datasets.captions import cleaned
from petlbench.datasets.load import load
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import DataError, Split
from petlbench.harness.json_files import RecordError
from petlbench.harness.metrics import METRIC_VERSION, Ranks, recalls
from petlbench.harness.record import Record
from petlbench.harness.record_files import ranks_path, read_record
from petlbench.harness.spec import without_hashes
from petlbench.leaderboard.load import METRICS, check_record

if TYPE_CHECKING:
    from petlbench.harness.retrial import Places

_ANOTHER = 1.0  # points of mR beyond which a model is another one; rounding moves single queries
_CLOSE = 1e-6  # percentage points; recalls are ratios of whole numbers


@dataclass(frozen=True, eq=False)
class Told:
    """A finished trial, its test split and where the right answers landed.

    Attributes:
        path: The record.
        record: Its content.
        split: The test split with the captions as they were published, which people read.
        scored: The same split with the captions as they were scored; another one only where the recipe cleans them.
        ranks: Of the record, in the order of the split.
        answers: The same with the first answers that were asked for; those of the model, built again, where the record's
            ranks do not hold them.
        notes: What a reader must know of them.
    """

    path: Path
    record: Record
    split: Split
    scored: Split
    ranks: Ranks
    answers: Ranks
    notes: tuple[str, ...] = ()

    @property
    def rebuilt(self) -> bool:
        """Whether the model was built again for the first answers."""
        return self.answers is not self.ranks

    @property
    def name(self) -> str:
        """Method, backbone and seed, such as ``lora, tiny-clip, seed 0``."""
        spec = self.record.spec
        return f"{self.record.method.name}, {spec['backbone']['name']}, seed {spec['seed']}"


def tell(path: Path, places: Places, top: int = 0) -> Told:
    """Read a record, open its test split, and find its ranks.

    Args:
        path: The record; its ranks lie beside it.
        places: Where data, weights and plugins lie on this machine.
        top: First answers that are needed of every query. Where the ranks do not hold so many, the model is built again
            from its stored adapter; where other hardware rounds its sums differently, that is noted.

    Raises:
        RecordError: The record is unreadable or unfinished, or its ranks are missing or belong to another split.
        DataError: The data are missing, or are not those of the record.
        PetlbenchError: The model was needed and cannot be built again; as of ``benchmark evaluate``.
    """
    record = _sound(path)
    if record.status != "ok" or "test" not in record.metrics:
        raise RecordError(f"{path}: the trial has status `{record.status}` and no test metrics; run it again")
    split = open_split(record, path, places)
    scored = cleaned(split) if record.spec["train"].get("captions") == "cleaned" else split
    ranks = stored_ranks(record, path)
    _same_shape(ranks, split, path)
    if holds(ranks, top, split):
        return Told(path, record, split, scored, ranks, ranks)
    answers, notes = _again(path, record, places, top)
    return Told(path, record, split, scored, ranks, answers, notes)


def tell_each(paths: Sequence[Path], places: Places, top: int = 0) -> list[Told]:
    """:func:`tell` of several records, each with the places of its own backbone and method."""
    return [tell(path, own, top) for path, own in zip(paths, share_places(places, paths), strict=True)]


def share_places(places: Places, paths: Sequence[Path]) -> list[Places]:
    """Places per record: each gets those of its own backbone and method.

    Raises:
        RecordError: A place is given for a backbone or method that none of the records has, or a record is unreadable.
    """
    specs = [_sound(path).spec for path in paths]
    for part in ("backbone", "method"):
        known = [spec[part]["name"] for spec in specs]
        for given in getattr(places, part):
            if given not in known:
                raise RecordError(
                    f"--set {part}.{given}...: the {part} of the records is {' or '.join(dict.fromkeys(known))}"
                )

    def own(part: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        return {name: given for name, given in getattr(places, part).items() if name == spec[part]["name"]}

    return [replace(places, backbone=own("backbone", spec), method=own("method", spec)) for spec in specs]


def _sound(path: Path) -> Record:
    """A record that a board would take."""
    record = read_record(path)
    check_record(record, path)
    return record


def holds(ranks: Ranks, top: int, split: Split) -> bool:
    """Whether the ranks hold this many first answers, or as many as there are candidates."""
    wanted = ((ranks.i2t_top, len(split.captions)), (ranks.t2i_top, len(split.images)))
    return all(top == 0 or (kept is not None and kept.shape[1] >= min(top, most)) for kept, most in wanted)


def open_split(record: Record, path: Path, places: Places, name: str = "test") -> Split:
    """A split of the record's data set as it lies on this machine.

    Raises:
        RecordError: The record does not say which split it was.
        DataError: The data are missing, or are not those of the record.
    """
    if record.data is None or name not in record.data.splits:
        raise RecordError(
            f"{path}: key `data.splits.{name}` is missing, so it is unknown what was tested; run the trial again"
        )
    known = record.spec["dataset"]["name"]
    for given in places.dataset:
        if given != known:
            raise RecordError(f"--set dataset.{given}...: the data set of {path} is {known}")
    card = load_card(places.card or known)
    if card.name != known:
        raise RecordError(f"--dataset {places.card} is the card of {card.name}; the record {path} is of {known}")
    options, _ = without_hashes(record.spec["dataset"]["options"])
    given_here: dict[str, Any] = dict(places.dataset.get(known, {}))
    root = given_here.pop("root", None)
    splits = load(card, root, **{**options, **{key: str(value) for key, value in given_here.items()}})
    if name not in splits:
        raise DataError(
            f"data set {known}: found no split {name} (found {', '.join(splits)}), but {path} was measured on it"
        )
    found, expected = splits[name].sha256, record.data.splits[name].sha256
    if found != expected:
        raise DataError(
            f"data set {known}: split {name} is not the one of {path} (hash {found[:12]}, recorded {expected[:12]}: names of "
            "pictures, captions or their order differ); give the files it was made with by --set "
            f"dataset.{known}.root=DIR"
        )
    return splits[name]


def stored_ranks(record: Record, path: Path) -> Ranks:
    """The ranks beside a record, which must give its recalls.

    Raises:
        RecordError: They are missing, damaged, or of another record.
    """
    beside = ranks_path(path, record)
    try:
        ranks = Ranks.load(beside)
    except FileNotFoundError as error:
        raise RecordError(f"{path}: its ranks {beside} are not there; restore them from version control") from error
    except ValueError as error:
        raise RecordError(str(error)) from error
    _same_recalls(ranks, record, path, f"the ranks in {beside}")
    return ranks


def _again(path: Path, record: Record, places: Places, top: int) -> tuple[Ranks, tuple[str, ...]]:
    """The ranks of the model, built again, and by how much they differ where they do."""
    from petlbench.harness.evaluation import rebuild

    ranks = rebuild(path, record, places).rank("test", top).ranks
    part = record.metrics["test"]
    found = recalls(ranks, part.tie_rule)
    if abs(found["mR"] - part.recalls["mR"]) > _ANOTHER:
        raise RecordError(
            f"{path}: the model, built again here, has mR {found['mR']:.2f}, recorded {part.recalls['mR']:.2f}, so it is not the "
            "one that was recorded; `benchmark evaluate` says what differs"
        )
    apart = max(abs(found[name] - part.recalls[name]) for name in METRICS)
    if apart <= _CLOSE:
        return ranks, ()
    return ranks, (
        f"the model was built again here, where sums round differently: recalls differ by up to {apart:.2f} points",
    )


def _same_recalls(ranks: Ranks, record: Record, path: Path, whose: str) -> None:
    part = record.metrics["test"]
    if part.metric_version != METRIC_VERSION:
        raise RecordError(
            f"{path}: measured with version {part.metric_version} of the metrics, this petlbench has {METRIC_VERSION}; run "
            "the trial again"
        )
    try:
        found = recalls(ranks, part.tie_rule)
    except ValueError as error:
        raise RecordError(
            f"{path}: key `metrics.test.tie_rule`: {error}; restore the file from version control"
        ) from error
    for name in METRICS:
        if abs(found[name] - (value := part.recalls[name])) > _CLOSE:
            raise RecordError(
                f"{path}: {whose} gives {name} {found[name]:.4f}, recorded {value:.4f}; restore both from version "
                "control, or run the trial again"
            )


def _same_shape(ranks: Ranks, split: Split, path: Path) -> None:
    if ranks.images != len(split.images) or ranks.owner.tolist() != split.owner.tolist():
        raise RecordError(
            f"{path}: its ranks are of {ranks.images} pictures and {ranks.captions} captions, the split has "
            f"{len(split.images)} and {len(split.captions)}, or they are owned differently; run the trial again"
        )
