"""The board as Parquet: the columns of the CSV, with types."""

import io
import json

import pandas as pd
import pyarrow.parquet as pq
import pytest
from factories import put_record, reranks, three

from petlbench.harness.metrics import DEFINITION
from petlbench.leaderboard.csv_writer import render_csv
from petlbench.leaderboard.frame import COLUMNS, to_frame
from petlbench.leaderboard.parquet_writer import column_type, render_parquet
from petlbench.leaderboard.table import Board, build_board


@pytest.fixture
def board(tmp_path):
    three(tmp_path, 2.0)
    put_record(tmp_path, method="prompt", change=lambda p: p["cost"].update(peak_memory=None))
    put_record(tmp_path, method="reranked", change=reranks())
    return build_board(tmp_path)


def test_it_holds_what_the_csv_holds(board):
    stored = pq.read_table(io.BytesIO(render_parquet(board)))
    assert stored.column_names == list(COLUMNS)
    back = stored.to_pandas()
    frame = pd.read_csv(io.StringIO(render_csv(board)))
    assert list(back["mR_mean_pct"]) == list(frame["mR_mean_pct"])  # every digit
    assert list(back["seeds"]) == ["0;1;2" if method == "lora" else "0" for method in back["method"]]
    for name in COLUMNS:
        assert list(back[name].isna()) == list(to_frame(board)[name].isna()), name


def test_types_do_not_depend_on_what_the_board_holds(board):
    full = pq.read_table(io.BytesIO(render_parquet(board)))
    empty = pq.read_table(io.BytesIO(render_parquet(Board([], []))))
    assert full.schema.equals(empty.schema, check_metadata=True) and empty.num_rows == 0
    assert full.schema.metadata[b"metric_definition"].decode() == DEFINITION


def test_every_number_has_a_number_type(board):
    frame = to_frame(board)
    for name in COLUMNS:
        known = [value for value in frame[name] if not pd.isna(value)]
        texts = str(column_type(name)) == "string"
        assert all(isinstance(value, str) == texts for value in known), name


def test_text_is_stored_as_it_is(tmp_path):
    title = '=HYPERLINK("x") <b> \u4e2d'
    put_record(tmp_path, title=title)
    back = pq.read_table(io.BytesIO(render_parquet(build_board(tmp_path)))).to_pandas()
    assert back["title"][0] == title and json.loads(back["spec_json"][0])["method"]["name"] == "lora"


def test_a_record_with_words_for_a_number_is_named_by_its_column(tmp_path):
    put_record(tmp_path, change=lambda p: p["backbone"].update(resolution="large"))
    with pytest.raises(
        ValueError, match=r"column backbone_resolution_px holds 'large', expected int64; correct the rec"
    ):
        render_parquet(build_board(tmp_path))
