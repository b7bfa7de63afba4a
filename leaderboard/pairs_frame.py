"""All pairs of rows: one tidy frame of a board, and plain values of a table for the board's JSON."""

from __future__ import annotations

from typing import Any

import pandas as pd

from petlbench.leaderboard.pairwise import LEVEL
from petlbench.leaderboard.table import Board, Table

_DIGITS = 9

PAIR_COLUMNS = (
    "rank_a",
    "label_a",
    "group_a",
    "rank_b",
    "label_b",
    "group_b",
    "mR_difference_pp",
    "images_a_better_pct",
    "images_b_better_pct",
    "p_holm_all_pairs",
    "differs",
)
TABLE_COLUMNS = ("dataset", "test_sha256", "backbone", "backbone_resolution_px", "table_selection", "tie_rule")


def pairs_to_frame(board: Board) -> pd.DataFrame:
    """One row per table and pair, ``a`` ranked before ``b``.

    ``mR_difference_pp`` is a minus b in percentage points, ``_pct`` columns are shares of the test images;
    ``group_a`` and ``group_b`` are the keys of column ``group`` of the board's CSV.
    """
    rows = []
    for table in board.tables:
        setting = table.setting
        resolution = (table.rows[0].group.entries[0].record.backbone or {}).get("resolution")
        place = (setting.dataset, setting.test_sha256, table.backbone, resolution, setting.rule, setting.tie_rule)
        rows += [dict(zip(TABLE_COLUMNS, place, strict=True)) | pair for pair in pair_rows(table)]
    return pd.DataFrame(rows, columns=[*TABLE_COLUMNS, *PAIR_COLUMNS])


def pairs_json(table: Table) -> dict[str, Any] | None:
    """The comparison of a table's rows as plain values; None where fewer than two rows could be compared."""
    pairs = table.pairs
    if pairs is None:
        return None
    return {
        "images": pairs.images,
        "flips": pairs.flips,
        "tests": pairs.pairs,
        "level": LEVEL,
        "not_told_apart": [[pairs.rows[i].label for i in group] for group in pairs.groups],
        "not_compared": [row.label for row in pairs.left_out],
        "pairs": pair_rows(table),
    }


def pair_rows(table: Table) -> list[dict[str, Any]]:
    """Every pair of compared rows as a mapping from :data:`PAIR_COLUMNS`."""
    pairs = table.pairs
    if pairs is None:
        return []
    found = []
    for i, a in enumerate(pairs.rows):
        for j, b in enumerate(pairs.rows[i + 1 :], start=i + 1):
            values = (
                *(a.rank, a.label, a.group.key),
                *(b.rank, b.label, b.group.key),
                round(float(pairs.difference[i, j]), _DIGITS),
                round(float(pairs.wins[i, j]), _DIGITS),
                round(float(pairs.wins[j, i]), _DIGITS),
                float(pairs.p_holm[i, j]),
                bool(pairs.differs[i, j]),
            )
            found.append(dict(zip(PAIR_COLUMNS, values, strict=True)))
    return found
