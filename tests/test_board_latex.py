"""The board as LaTeX: structure, escaping, and a real compiler where there is one."""

import re
import shutil
import subprocess

import pytest
from factories import make_ranks, put_record, reranks, three
from hypothesis import given
from hypothesis import strategies as st

from petlbench.leaderboard.latex import render_latex
from petlbench.leaderboard.latex_text import latex
from petlbench.leaderboard.table import Board, build_board

HOSTILE = r"\input{/etc/passwd} \write18{id} %{}$&#_^~ <a|b> ``x'' --- ?` é ü ≈ × \end{table*}"
COMMANDS = r"\\(?:textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|textquotedbl|textasciigrave"
COMMANDS += (
    r"|textquotesingle|textdagger|textdaggerdbl|textperiodcentered|textendash|textemdash|textellipsis|textmu)\{\}"
)
COMMANDS += r"|\\ensuremath\{(?:\\[a-z]+|\^[23])\}|\\[{}$&#%_]|\{-\}"


def rows_of(source):
    """Lists of the cells of every line of the first table's body."""
    body = source.split(r"\midrule")[1]
    return [[cell.strip() for cell in line.removesuffix(r"\\").split("&")] for line in body.strip().splitlines()]


def test_best_is_bold_second_is_underlined_and_marks_are_raised(tmp_path):
    three(tmp_path, 3.0, method="aa")
    three(tmp_path, 0.5, base=5, method="bb_c")
    put_record(tmp_path, make_ranks(0.4, 9), method="dd")
    source = render_latex(build_board(tmp_path))
    first, *others = rows_of(source)
    assert first[:3] == ["1", "aa", "163.8 K"] and first[-1] == "3"
    assert all(cell.startswith(r"\textbf{") for cell in first[3:10])
    assert re.fullmatch(r"\\textbf\{\d\d\.\d\d\}\\,\$_\{\\pm \d\.\d\d\}\$", first[9])
    assert re.fullmatch(r"\d\d\.\d\d\\,\\textendash\\,\d\d\.\d\d", first[10])
    (second,) = (row for row in others if row[1].startswith(r"bb\_c"))
    (last,) = (row for row in others if row[1].startswith("dd"))
    assert last[1] == r"dd\textsuperscript{\textdagger{}}" and last[10] == r"\textendash{}"
    assert r"\underline{" in second[9] or r"\underline{" in last[9]
    assert source.count(r"\underline{") >= 7


def test_reference_rows_and_notes_stand_below(tmp_path):
    put_record(tmp_path, method="reranked", change=reranks())
    three(tmp_path, 2.0)
    source = render_latex(build_board(tmp_path))
    assert r"\emph{ceiling of the split}" in source and r"\emph{chance}" in source
    notes = source.split(r"\begin{tablenotes}")[1]
    assert "percentile bootstrap" in notes and r"\textdaggerdbl{} only a shortlist was scored" in notes
    assert "bbbbbbbbbbbb" in notes
    for package in ("booktabs", "threeparttable", "textcomp"):
        assert package in source.split(r"\begin{table*}")[0]


def test_labels_are_distinct(tmp_path):
    put_record(tmp_path)
    put_record(tmp_path, method="b", change=lambda p: p["data"]["splits"]["test"].update(sha256="c" * 64))
    labels = re.findall(r"\\label\{(.*?)\}", render_latex(build_board(tmp_path)))
    assert labels == ["tab:toyset-vit-x-224-px-best-val", "tab:toyset-vit-x-224-px-best-val-2"]


def test_an_empty_board_is_a_comment():
    assert all(line.startswith("%") or not line for line in render_latex(Board([], [])).splitlines())


@given(st.text())
def test_no_text_is_a_command(value):
    left = re.sub(COMMANDS, "", latex(value))
    assert not re.search(r"[\\{}$&#%_^\"`'<>|~-]", left), left
    assert "\n" not in left


def test_escaping_by_hand():
    assert latex("a_b & 50 % --x") == r"a\_b \& 50 \% {-}{-}x"
    assert latex("\\input{x}") == r"\textbackslash{}input\{x\}"
    assert latex("≈† 3 × 2") == r"\ensuremath{\approx}\textdagger{} 3 \ensuremath{\times} 2"


def test_letters_beyond_latin_are_announced(tmp_path):
    put_record(tmp_path, options={"kind": "\u4e2d"})
    put_record(tmp_path, options={"kind": "é"})
    header = render_latex(build_board(tmp_path)).split("\n\n")[0]
    assert "U+4E2D" in header and "lualatex" in header and "U+00E9" not in header


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_a_hostile_board_compiles(tmp_path):
    results, work = tmp_path / "results", tmp_path / "work"
    work.mkdir()
    asked = ["kpsewhich", "threeparttable.sty", "booktabs.sty"]
    if subprocess.run(asked, capture_output=True).stdout.count(b".sty") < 2:
        pytest.skip("LaTeX's packages booktabs and threeparttable are not installed")
    three(results, 2.0, options={"kind": HOSTILE})
    put_record(results, options={"kind": "y"}, change=lambda p: p["data"].update(title=HOSTILE))
    put_record(results, method="reranked", change=reranks(first_stage=HOSTILE))
    (work / "board.tex").write_text(render_latex(build_board(results)), encoding="utf-8")
    (work / "main.tex").write_text(
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{textcomp,booktabs,threeparttable}"
        r"\begin{document}\input{board}\end{document}"
    )
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "main"]
    done = subprocess.run(command, cwd=work, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
