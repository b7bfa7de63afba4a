"""A board as one tidy data frame: one row per group and table, full precision, units in the column names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from petlbench.harness.record_scoring import SamplePart, TwoStagePart
from petlbench.harness.spec import canonical_json
from petlbench.leaderboard.load import METRICS
from petlbench.leaderboard.pairs_frame import pairs_json
from petlbench.leaderboard.row import Row, cost_conditions
from petlbench.leaderboard.table import Board, Table

Cell = Callable[[Table, Row], Any]


def to_frame(board: Board) -> pd.DataFrame:
    """Tables in the order of the board, rows in the order of their rank; an empty board has the columns too.

    Columns ending in ``_pct`` are percent, ``_bytes`` bytes, ``_s`` seconds, ``_per_s`` per second, ``_px`` pixels,
    ``_params`` numbers of scalars, ``_pairs`` pairs scored. What was not measured is missing. Several values of one row
    are joined by ``;``.
    """
    frame = pd.DataFrame(_rows(board), columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(_WHOLE, "Int64"))  # whole numbers stay whole beside a missing one


def to_json(board: Board) -> str:
    """The board as JSON: ``tables`` (``rows`` as in :func:`to_frame`, ``references``, words), failures, problems."""
    tables = [
        {
            "title": table.title,
            "facts": [{"term": term, "text": said} for term, said in table.facts],
            "notes": table.notes,
            "rows": [_cells(table, row) for row in table.rows],
            "references": [
                {"name": name, **{f"{metric}_pct": value for metric, value in recalls.items()}}
                for name, recalls in table.references
            ],
            "comparison_of_all_pairs": pairs_json(table),
            "other_tie_rules_pct": {row.label: row.other_rules for row in table.rows if row.other_rules},
        }
        for table in board.tables
    ]
    failures = [
        {"record": entry.name, "status": entry.record.status, "reason": reason} for entry, reason in board.failures
    ]
    problems = [{"file": problem.name, "record_left_out": problem.unreadable} for problem in board.problems]
    payload = {"tables": tables, "failures": failures, "files_with_problems": problems}
    return json.dumps(payload, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _rows(board: Board) -> list[dict[str, Any]]:
    return [_cells(table, row) for table in board.tables for row in table.rows]


def _cells(table: Table, row: Row) -> dict[str, Any]:
    return {name: cell(table, row) for name, cell in COLUMNS.items()}


def _joined(values: Iterable[Any]) -> str:
    return ";".join(map(str, values))


def _backbone(key: str) -> Cell:
    return lambda table, row: (row.group.entries[0].record.backbone or {}).get(key)


def _cost(key: str) -> Cell:
    return lambda table, row: _joined(sorted({str(cost_conditions(e.record)[key]) for e in row.group.entries}))


def _mean(metric: str) -> Cell:
    return lambda table, row: row.mean[metric]


def _sd(metric: str) -> Cell:
    return lambda table, row: row.sd[metric]


def _two_stage(of: Callable[[TwoStagePart], Any]) -> Cell:
    return lambda table, row: of(row.two_stage) if row.two_stage else None


def _sample(of: Callable[[SamplePart], Any]) -> Cell:
    return _two_stage(lambda stage: of(stage.sample) if stage.sample else None)


def _query(name: str) -> Cell:
    return lambda table, row: getattr(row.query, name) if row.query else None


COLUMNS: dict[str, Cell] = {
    "dataset": lambda table, row: table.setting.dataset,
    "test_sha256": lambda table, row: table.setting.test_sha256,
    "backbone": lambda table, row: table.backbone,
    "backbone_source": _backbone("source"),
    "backbone_sha256": _backbone("sha256"),
    "backbone_activation": _backbone("activation"),
    "backbone_resolution_px": _backbone("resolution"),
    "table_selection": lambda table, row: table.setting.rule,
    "tie_rule": lambda table, row: table.setting.tie_rule,
    "metric_version": lambda table, row: table.setting.metric_version,
    "rank": lambda table, row: row.rank,
    "method": lambda table, row: row.group.method,
    "label": lambda table, row: row.label,
    "title": lambda table, row: row.title,
    "origin": lambda table, row: row.group.identity["origin"],
    "scoring": lambda table, row: row.group.entries[0].record.metrics["test"].scoring,
    "two_stage_k": _two_stage(lambda stage: stage.k),
    "first_stage": _two_stage(lambda stage: stage.first_stage),
    "first_stage_spec_id": _two_stage(lambda stage: stage.first_stage_spec_id),
    "first_stage_i2t_recall_at_k_pct": _two_stage(lambda stage: stage.bound.i2t_rk),
    "first_stage_t2i_recall_at_k_pct": _two_stage(lambda stage: stage.bound.t2i_rk),
    "two_stage_pairs": _two_stage(lambda stage: stage.pairs),
    "sample_images": _sample(lambda sample: sample.images),
    "sample_captions": _sample(lambda sample: sample.captions),
    "sample_exact_mR_pct": _sample(lambda sample: sample.exact.get("mR")),
    "sample_two_stage_mR_pct": _sample(lambda sample: sample.two_stage.get("mR")),
    "selection": lambda table, row: _joined(row.rules),
    "tuning_trials": lambda table, row: _joined(row.tuning_trials),
    "n_seeds": lambda table, row: row.n,
    "seeds": lambda table, row: _joined(row.group.seeds),
    **{
        name: cell
        for metric in METRICS
        for name, cell in ((f"{metric}_mean_pct", _mean(metric)), (f"{metric}_sd_pct", _sd(metric)))
    },
    "mR_ci95_low_pct": lambda table, row: row.interval[0] if row.interval else None,
    "mR_ci95_high_pct": lambda table, row: row.interval[1] if row.interval else None,
    "p_holm_vs_best": lambda table, row: row.p_holm,
    "within_noise_of_best": lambda table, row: None if row.p_holm is None else row.within_noise,
    "seed_ranges_overlap_best": lambda table, row: row.seeds_overlap,
    "trained_params": lambda table, row: row.trained,
    "trained_new_head_params": lambda table, row: row.new_heads,
    "total_params": lambda table, row: row.total,
    "trained_of_total_pct": lambda table, row: 100 * row.trained / row.total if row.total else None,
    "added_at_inference_params": lambda table, row: row.added_at_inference,
    "stored_bytes": lambda table, row: row.stored_bytes,
    "peak_memory_bytes": lambda table, row: row.peak_memory,
    "train_samples_per_s": lambda table, row: row.samples_per_s,
    "train_s": lambda table, row: row.train_s,
    "eval_s": lambda table, row: row.eval_s,
    "cache_s": lambda table, row: row.cache_s,
    "query_t2i_s": _query("t2i_s"),
    "query_i2t_s": _query("i2t_s"),
    "query_t2i_pairs": _query("pairs_per_query_t2i"),
    "query_i2t_pairs": _query("pairs_per_query_i2t"),
    "image_encode_s": _query("image_encode_s"),
    "text_encode_s": _query("text_encode_s"),
    "pair_s": _query("pair_s"),
    "cost_device": _cost("device"),
    "cost_threads": _cost("threads"),
    "cost_processes": _cost("processes"),
    "cost_concurrent_trials": _cost("concurrent trials"),
    "cost_memory_kind": _cost("kind of memory"),
    "cost_packed_seeds": lambda table, row: row.packed,
    "cost_busy_seeds": lambda table, row: row.starved,
    "cost_cached_features": _cost("cached features"),
    "records": lambda table, row: _joined(entry.name for entry in row.group.entries),
    "group": lambda table, row: row.group.key,
    "spec_json": lambda table, row: canonical_json(row.group.identity["spec"]),
}
"""Column name to the value of a row, in the order of the file."""

_WHOLE = ("peak_memory_bytes", "two_stage_k", "two_stage_pairs", "sample_images", "sample_captions")
