"""Boards as Markdown, CSV, JSON and console text: words, escaping, determinism."""

import io
import json
import re
import subprocess
import sys

import pandas as pd
import pytest
from factories import make_ranks, md_rows, put_failed, put_record, spec_hash, three, two_places
from rich.console import Console

from petlbench.harness.metrics import DEFINITION
from petlbench.leaderboard import text
from petlbench.leaderboard.board import write_board
from petlbench.leaderboard.console import render_console
from petlbench.leaderboard.csv_writer import render_csv
from petlbench.leaderboard.explain import TOY
from petlbench.leaderboard.frame import COLUMNS, to_json
from petlbench.leaderboard.markdown import render_markdown
from petlbench.leaderboard.table import build_board


def only_table(root):
    (table,) = build_board(root).tables
    return table


# Words, notes, costs --------------------------------------------------------------------------------------------------


def test_the_header_says_in_words_what_the_numbers_are(tmp_path):
    three(tmp_path, 2.0)
    markdown = render_markdown(build_board(tmp_path))
    for said in (
        "TOYSET (toyset, card 1): train 40 images, 200 captions (199 distinct); test 40 images",
        "test bbbbbbbbbbbb",
        "weights from hub:example, sha256 da022bb61f48, activation quick\\_gelu, resolution 224 px",
        "best mR on the validation split, evaluated once on test",
        "lower index in the split first",
        "sample standard deviation",
        "n is the number of seeds",
        "percentile bootstrap of the mean mR over the 40 test images (2,000 samples",
        DEFINITION,
    ):
        assert said in markdown
    assert TOY not in markdown


@pytest.mark.parametrize("names", [{"dataset": "scenes"}, {"backbone": "tiny-clip"}])
def test_a_toy_domain_says_so(tmp_path, names):
    put_record(tmp_path, **names)
    assert TOY in render_markdown(build_board(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("device", "NVIDIA H200", "device: NVIDIA H200 (prompt) / cpu (lora)"),
        ("threads", 8, "threads: 1 (lora)"),
        ("workers", 4, "processes: 1 (lora)"),
    ],
)
def test_costs_of_other_conditions_get_a_footnote(tmp_path, key, value, said):
    put_record(tmp_path)
    put_record(tmp_path, method="prompt", change=lambda p: p["cost"].update({key: value}))
    (note,) = only_table(tmp_path).notes
    assert "do not compare across all rows" in note and said in note


def test_equal_costs_equal_budgets_and_one_code_version_need_no_footnote(tmp_path):
    three(tmp_path, 2.0)
    three(tmp_path, 2.5, method="prompt")
    assert only_table(tmp_path).notes == []


def test_packed_trials_unequal_budgets_and_changed_code_get_footnotes(tmp_path):
    put_record(tmp_path, make_ranks(2.0, 0), seed=0, change=lambda p: p["cost"].update(concurrent_trials=2))
    put_record(tmp_path, make_ranks(2.0, 1), seed=1, change=lambda p: p["method"].update(sha256="d" * 64))
    put_record(tmp_path, method="prompt", change=lambda p: p["selection"].update(budget_trials=20))
    notes = " ".join(only_table(tmp_path).notes)
    assert "beside others" in notes
    assert "tuning budget differs" in notes
    assert "lora: the method's file changed between the seeds" in notes


def test_other_tie_rules_stand_in_a_collapsed_table(tmp_path):
    three(tmp_path, 2.0)
    details = re.search(r"<details>.*?</details>", render_markdown(build_board(tmp_path)), re.DOTALL)[0]
    assert re.findall(r"^\| lora +\| (\S+)", details, re.MULTILINE) == [
        "optimistic",
        "pessimistic",
        "expected",
        "duplicate\\_aware",
    ]


# Writers --------------------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script> a|b `c` [x](http://evil.example) *d* _e_ \\ \u202e\n# h ![i](j)"


def test_nothing_from_a_record_is_markup(tmp_path):
    def poison(payload):
        payload["data"]["title"] = payload["backbone"]["source"] = payload["cost"]["device"] = HOSTILE

    put_record(tmp_path, title=HOSTILE, options={"kind": HOSTILE}, change=poison)
    put_record(tmp_path, options={"kind": "plain"}, title="plain")
    put_failed(tmp_path, method="m|n", message=HOSTILE)
    markdown = render_markdown(build_board(tmp_path))
    assert "<script" not in markdown and "\u202e" not in markdown
    assert not re.search(r"(?<!\\)\]\(", markdown) and "http:" not in markdown
    assert "\n# h" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    for block in markdown.split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("|"):  # every line of a table has as many unescaped pipes as its header
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert any("alert(1)" in row for row in rows)  # shown, only without effect


def test_escaping_by_hand():
    assert text.markdown("a|b_c <i> &amp;") == "a\\|b\\_c &lt;i&gt; &amp;amp;"
    assert text.markdown("x\\") == "x\\\\"
    assert text.markdown("one\n\ttwo\x00") == "one two"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.count(512), "512"),
        (text.count(163_840), "163.8 K"),
        (text.count(999_999), "1.00 M"),
        (text.size(1023), "1,023 B"),
        (text.size(655_360), "640.0 KiB"),
        (text.size(3 * 2**30), "3.00 GiB"),
        (text.size(None), "–"),
        (text.quantity(0.0123), "0.0123"),
        (text.quantity(12_345.6), "12,346"),
        (text.share(1, 3), "33.3"),
        (text.share(0, 0), "–"),
        (text.spread(41.234, 0.406), "41.23 ± 0.41"),
    ],
)
def test_numbers_for_people(shown, expected):
    assert shown == expected


def test_the_best_of_each_column_is_bold(tmp_path):
    three(tmp_path, 3.0, method="aa")
    three(tmp_path, 0.5, method="bb")
    markdown = render_markdown(build_board(tmp_path))
    assert md_rows(markdown, "aa")[0][9].startswith("**")
    assert "**" not in "".join(md_rows(markdown, "bb")[0])


def test_csv_is_tidy_and_exact(tmp_path):
    three(tmp_path, 2.0)
    put_record(tmp_path, method="prompt", change=lambda p: p["cost"].update(peak_memory=None))
    frame = pd.read_csv(io.StringIO(render_csv(build_board(tmp_path))))
    assert list(frame.columns) == list(COLUMNS)
    lora = frame[frame["method"] == "lora"].iloc[0]
    row = next(row for row in only_table(tmp_path).rows if row.label == "lora")
    assert lora["mR_mean_pct"] == row.mean["mR"]  # every digit
    assert lora["seeds"] == "0;1;2" and lora["n_seeds"] == 3
    assert lora["trained_of_total_pct"] == pytest.approx(1.6384)
    assert json.loads(lora["spec_json"])["method"]["options"] == {"rank": 8}
    assert "3221225472" in render_csv(build_board(tmp_path)) and "3221225472.0" not in render_csv(build_board(tmp_path))
    prompt = frame[frame["method"] == "prompt"].iloc[0]
    assert pd.isna(prompt["peak_memory_bytes"]) and pd.isna(prompt["mR_ci95_low_pct"]) and pd.isna(prompt["mR_sd_pct"])


def test_csv_fields_are_not_run_by_spreadsheets(tmp_path):
    put_record(tmp_path, title='=HYPERLINK("http://evil.example")')
    frame = pd.read_csv(io.StringIO(render_csv(build_board(tmp_path))))
    assert frame["title"][0] == '\'=HYPERLINK("http://evil.example")'


def test_json_holds_rows_words_and_references(tmp_path):
    three(tmp_path, 2.0)
    put_failed(tmp_path, method="harma")
    payload = json.loads(to_json(build_board(tmp_path)), parse_constant=pytest.fail)
    (table,) = payload["tables"]
    assert set(table["rows"][0]) == set(COLUMNS)
    assert [ref["name"] for ref in table["references"]] == ["ceiling of the split", "chance"]
    assert set(table["other_tie_rules_pct"]["lora"]) == {"optimistic", "pessimistic", "expected", "duplicate_aware"}
    assert payload["failures"][0]["reason"].startswith("RuntimeError")


def test_console_shows_rows_and_never_takes_markup_from_records(tmp_path):
    three(tmp_path, 2.0, options={"kind": "[red]x[/red]"})
    put_record(tmp_path, make_ranks(1.9, 5), options={"kind": "y"}, change=lambda p: p["cost"].update(threads=2))
    console = Console(file=io.StringIO(), width=160)
    render_console(build_board(tmp_path).tables, console)
    shown = console.file.getvalue()
    assert "lora (kind=[red]x[/red])" in shown and "chance" in shown and "Note:" in shown
    assert "†" in shown


def test_writing_twice_gives_the_same_bytes_wherever_the_folder_lies(tmp_path):
    here, there = two_places(tmp_path)
    formats = ("md", "csv", "json")
    first = write_board(here, tmp_path / "a", formats=formats)
    assert [p.name for p in first] == ["board.md", "board.csv", "board.json"]
    again = write_board(build_board(there), tmp_path / "b", formats=formats)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    before = [p.read_bytes() for p in first]
    write_board(here, tmp_path / "a", formats=formats)
    assert [p.read_bytes() for p in first] == before
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["board.csv", "board.json", "board.md"]


def test_a_board_kept_inside_the_results_is_not_read_as_a_record(tmp_path):
    put_record(tmp_path)
    first = [p.read_bytes() for p in write_board(tmp_path, tmp_path / "boards", formats=("md", "json"))]
    assert [p.read_bytes() for p in write_board(tmp_path, tmp_path / "boards", formats=("md", "json"))] == first


def test_an_empty_folder_gives_a_board_that_says_what_to_do(tmp_path):
    board, table, _ = write_board(tmp_path, tmp_path / "boards")
    assert "No finished trial yet: run `benchmark run`" in board.read_text()
    assert table.read_text() == ",".join(COLUMNS) + "\n"


def test_an_unknown_format_and_a_failing_writer_leave_old_files_alone(tmp_path, monkeypatch):
    put_record(tmp_path)
    board, *_ = write_board(tmp_path, tmp_path / "boards")
    before = board.read_bytes()
    with pytest.raises(
        ValueError, match="unknown board format 'pdf'; choose from md, csv, html, tex, parquet, pairs, json"
    ):
        write_board(tmp_path, tmp_path / "boards", formats=("md", "pdf"))
    put_record(tmp_path, method="prompt")
    from petlbench.leaderboard import board as module

    monkeypatch.setitem(module.WRITERS, "csv", lambda board: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_board(tmp_path, tmp_path / "boards")
    assert board.read_bytes() == before


def test_a_board_needs_neither_torch_nor_ray(tmp_path):
    put_record(tmp_path)
    program = (
        "import sys; from pathlib import Path; import petlbench.leaderboard.console\n"
        "from petlbench.leaderboard.board import write_board\n"
        "formats = ('md', 'csv', 'html', 'tex', 'parquet', 'json')\n"
        f"write_board(Path({str(tmp_path)!r}), Path({str(tmp_path / 'boards')!r}), formats=formats)\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'transformers', 'open_clip', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_factory_hashes_specs_as_the_harness_does(tmp_path):
    from petlbench.harness.spec import TrialSpec

    spec = TrialSpec.model_validate(
        {k: {"name": k} for k in ("method", "dataset", "backbone")} | {"train": {"lr": 1e-3}, "seed": 1}
    )
    assert spec_hash(spec.model_dump(mode="json")) == spec.spec_id
