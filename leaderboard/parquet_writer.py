"""A board as one Parquet file."""

from __future__ import annotations

import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from petlbench.harness.json_files import RecordError
from petlbench.harness.metrics import DEFINITION, METRIC_VERSION
from petlbench.leaderboard.frame import to_frame
from petlbench.leaderboard.table import Board

_TRUTH = ("within_noise_of_best", "seed_ranges_overlap_best")
_WHOLE_NAMES = (
    *("rank", "n_seeds", "metric_version", "cost_packed_seeds", "cost_busy_seeds"),
    *("two_stage_k", "two_stage_pairs", "sample_images", "sample_captions"),
)
_WHOLE_UNITS = ("_params", "_bytes", "_px")
_REAL = ("_pct", "_s", "_pairs", "p_holm_vs_best")


def render_parquet(board: Board) -> bytes:
    """The frame of :func:`to_frame` with the same column names and one type per column, whatever the board holds.

    Whole numbers are int64, percent, seconds, rates and means of counts float64, marks boolean, everything else text;
    what was not measured is null. The schema's metadata carry the definition of the metric and its version.

    Raises:
        RecordError: A record holds something else than a number where the column needs one; the message names the column.
    """
    frame = to_frame(board)
    arrays = [_array(frame[name]) for name in frame.columns]
    metadata = {"metric_definition": DEFINITION, "metric_version": str(METRIC_VERSION)}
    fields = [pa.field(name, array.type) for name, array in zip(frame.columns, arrays, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata)), sink, compression="zstd")
    return sink.getvalue()


def column_type(name: str) -> pa.DataType:
    """The type of a column, told by its name or unit."""
    if name in _TRUTH:
        return pa.bool_()
    if name in _WHOLE_NAMES or name.endswith(_WHOLE_UNITS):
        return pa.int64()
    return pa.float64() if name.endswith(_REAL) else pa.string()


def _array(column: pd.Series) -> pa.Array:
    name = str(column.name)
    wanted = column_type(name)
    values = [None if pd.isna(value) else value for value in column]
    if pa.types.is_string(wanted):
        values = [value if value is None else str(value) for value in values]
    try:
        return pa.array(values, type=wanted)
    except pa.ArrowException as error:
        found = sorted({repr(value)[:80] for value in values if not isinstance(value, int | float | None)})
        raise RecordError(
            f"board.parquet: column {name} holds {', '.join(found) or error}, expected {wanted}; correct the records of "
            "these rows (column `records` of board.csv names them), or write the other formats only"
        ) from error
