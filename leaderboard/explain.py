"""What a table's header and footnotes say, as plain text (the writers escape it)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from petlbench.harness.record import STARVED, DataPart
from petlbench.leaderboard import statistics
from petlbench.leaderboard.group import Setting
from petlbench.leaderboard.row import MIN_SEEDS, Row, cost_conditions
from petlbench.leaderboard.scoring import SHORTLISTED, explain_query, explain_scoring, shortlist_note

FEW_SEEDS, WITHIN_NOISE, SEEDS_OVERLAP = "†", "≈", "◦"

MARKS = {
    WITHIN_NOISE: "the difference from the best row is within the noise of the test images.",
    SEEDS_OVERLAP: "differs from the best row on these images, but their ranges over seeds overlap.",
    SHORTLISTED: "only a shortlist was scored, so the first stage bounds the recalls; against an exact row this compares two "
    "systems, not two scorers (see the row's note).",
    FEW_SEEDS: f"fewer than {MIN_SEEDS} seeds: no interval, and ± says little.",
}
"""Mark behind a row's name to its meaning, in the order in which they are explained."""

TOY = (
    "This is a toy domain made to exercise the harness. Its scores compare methods with each other here and compare "
    "with no published number."
)

_ORDER = {"train": 0, "val": 1, "test": 2}
_RULES = {
    "best_val": "the epoch with the best mR on the validation split, evaluated once on test.",
    "last": "the last epoch, evaluated once on test.",
    "test_max": "the best epoch ON TEST, as many papers do; optimistic, for measuring that optimism only.",
    "none": "nothing was trained or chosen.",
}
_TIES = {
    "index": "lower index in the split first, as a stable sort gives",
    "optimistic": "the right answer before all it ties with",
    "pessimistic": "the right answer after all it ties with",
    "expected": "averaged over all orders of the tied items",
    "duplicate_aware": "index order, accepting an equal caption string as right",
}


@dataclass(frozen=True)
class Options:
    """Random draws behind intervals and tests."""

    resamples: int = statistics.RESAMPLES
    """Bootstrap samples."""
    flips: int = statistics.FLIPS
    """Random sign vectors of the test."""
    seed: int = statistics.SEED

    def __post_init__(self):
        for name in ("resamples", "flips"):
            if getattr(self, name) < 1:
                raise ValueError(f"leaderboard option {name} is {getattr(self, name)}, expected at least 1")


TO = " → "
"""Between the sets of a transfer."""


def is_toy(dataset: str, backbones: Sequence[str]) -> bool:
    """Whether scores come from a made-up domain."""
    return "scenes" in dataset.split(TO) or any(name.startswith(("tiny-clip", "tiny-vilt")) for name in backbones)


def explain(setting: Setting, rows: Sequence[Row], tested: int, options: Options) -> list[tuple[str, str]]:
    """Term and explanation: data, backbone, selection, ties, scoring, spread, interval, test, query, marks, toy warning."""
    records = [entry.record for row in rows for entry in row.group.entries]
    backbones = sorted({str(record.spec["backbone"]["name"]) for record in records})
    data = max((record.data for record in records if record.data), key=lambda d: len(d.splits))
    facts = [
        ("Data set", _data(data)),
        ("Backbone", _backbone(backbones, records[0].backbone or {})),
        ("Selection", f"{setting.rule}: {_RULES[setting.rule]}"),
        ("Ties", _ties(setting)),
        ("Scoring", explain_scoring({record.metrics["test"].scoring for record in records})),
        ("n and ±", "n is the number of seeds; ± is the sample standard deviation (divisor n - 1) over them."),
        (
            "95 %",
            f"percentile bootstrap of the mean mR over the {data.splits['test'].images:,} test images "
            f"({options.resamples:,} samples; all captions of an image move with it; contributions are averaged over "
            "the seeds first, so it holds for these seeds).",
        ),
    ]
    if tested:
        facts.append(
            (
                "Test",
                f"each row against the best: paired sign-flip test over images ({options.flips:,} flips), "
                f"Holm-corrected over the table's {tested} comparison{'s' * (tested > 1)}, level 5 %. A tested row "
                f"without {WITHIN_NOISE} differs from the best on these images.",
            )
        )
    facts.append(("ms/query", explain_query(data.splits["test"].images)))
    if marks := _marks(rows):
        facts.append(("Marks", marks))
    if is_toy(setting.dataset, backbones):
        facts.append(("Toy", TOY))
    return facts


def footnotes(rows: Sequence[Row]) -> list[str]:
    """Warnings that depend on the rows."""
    notes = []
    conditions: dict[str, dict[Any, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        for entry in row.group.entries:
            for name, value in cost_conditions(entry.record).items():
                conditions[name][value].add(row.label)
    differing = {name: values for name, values in conditions.items() if len(values) > 1}
    if differing:
        listed = "; ".join(f"{name}: {_listing(values)}" for name, values in differing.items())
        notes.append(
            f"Memory, samples/s, seconds and ms/query do not compare across all rows, which differ in {listed}."
        )
    if any(value != 1 for value in conditions["concurrent trials"]):
        notes.append(
            "Some trials ran beside others on the machine, which slows them; time them alone for a cost claim."
        )
    packed = [f"{row.label} ({row.packed} of {row.n} seeds)" for row in rows if row.packed]
    if packed:
        notes.append(
            f"Trials that shared a GPU with others (packed) give no memory, samples/s or seconds: {', '.join(packed)}. Run "
            "them alone on a GPU for their cost."
        )
    busy = [f"{row.label} ({row.starved} of {row.n} seeds)" for row in rows if row.starved]
    if busy:
        notes.append(
            f"Trials on a busy machine, which in training had less than {100 * STARVED:g} % of one core, give no seconds, "
            f"samples/s or ms/query: {', '.join(busy)}. Run them again with --force when nothing else runs: the scores stay, and "
            "their cost is measured."
        )
    budgets = {trials for row in rows if row.trained for trials in row.tuning_trials}
    if len(budgets) > 1:
        notes.append("The tuning budget differs between rows; a larger one alone can raise a score.")
    for row in rows:
        if len({entry.record.method.sha256 for entry in row.group.entries}) > 1:
            notes.append(f"{row.label}: the method's file changed between the seeds.")
        if row.two_stage is not None:
            notes.append(shortlist_note(row.label, row.two_stage, row.n))
        if row.contributions is None:
            notes.append(f"{row.label}: no usable ranks beside the record, so no interval and no test.")
    return notes


def _data(data: DataPart) -> str:
    sizes, digests = [], []
    for name, split in sorted(data.splits.items(), key=lambda item: (_ORDER.get(item[0], 9), item[0])):
        distinct = f" ({split.distinct_captions:,} distinct)" if split.distinct_captions != split.captions else ""
        sizes.append(f"{name} {split.images:,} images, {split.captions:,} captions{distinct}")
        digests.append(f"{name} {split.sha256[:12]}")
    return f"{data.title} ({data.name}, card {data.card_version}): {'; '.join(sizes)}; sha256 {', '.join(digests)}."


def _backbone(names: Sequence[str], provenance: dict[str, Any]) -> str:
    known = {key: provenance.get(key, "unknown") for key in ("source", "sha256", "activation", "resolution")}
    return (
        f"{', '.join(names)}: weights from {known['source']}, sha256 {str(known['sha256'])[:12]}, activation "
        f"{known['activation']}, resolution {known['resolution']} px."
    )


def _ties(setting: Setting) -> str:
    return (
        f"{setting.tie_rule}: {_TIES.get(setting.tie_rule, 'see the record')}; metric version {setting.metric_version}."
    )


def _marks(rows: Sequence[Row]) -> str:
    used = {
        WITHIN_NOISE: any(row.within_noise for row in rows),
        SEEDS_OVERLAP: any(row.seeds_overlap and not row.within_noise for row in rows),
        SHORTLISTED: any(row.two_stage for row in rows),
        FEW_SEEDS: any(row.few_seeds for row in rows),
    }
    return " ".join(f"{mark} {meaning}" for mark, meaning in MARKS.items() if used[mark])


def _listing(values: dict[Any, set[str]]) -> str:
    return " / ".join(f"{value} ({', '.join(sorted(labels))})" for value, labels in sorted(values.items(), key=str))
