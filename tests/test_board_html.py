"""The board as one HTML page: what stands in it, what can run in it, what its bytes depend on."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from factories import edit, make_ranks, put_failed, put_record, reranks, three, two_places

from petlbench.leaderboard.board import write_board
from petlbench.leaderboard.explain import MARKS
from petlbench.leaderboard.html_columns import COLUMNS, GROUPS
from petlbench.leaderboard.html_writer import Figure, records_from, render_html
from petlbench.leaderboard.interval_bar import WIDTH, Axis, Bar
from petlbench.leaderboard.table import Board, build_board

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)> ' {{ 7*7 }} \u202e\n javascript:alert(3)"


class Page(HTMLParser):
    """Tags with their attributes, and the text between them, as a browser would read the page."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.inside = [], [], []
        self.sources = {"style": "", "script": ""}
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside and self.inside[-1] in self.sources:
            self.sources[self.inside[-1]] += data
        else:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(root, **more):
    return Page(render_html(build_board(root), **more))


def said(page):
    return " ".join("".join(page.text).split())


# Safety ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path):
    def poison(payload):
        payload["data"]["title"] = payload["backbone"]["source"] = payload["cost"]["device"] = HOSTILE

    put_record(tmp_path, title=HOSTILE, options={"kind": HOSTILE}, change=poison)
    put_record(tmp_path, options={"kind": "plain"}, title="plain")
    put_record(tmp_path, method="reranked", change=reranks(first_stage=HOSTILE))
    put_failed(tmp_path, method="m<i>n", message=HOSTILE)
    return tmp_path


def test_nothing_from_a_record_is_markup(hostile):
    figure = Figure(HOSTILE, b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(4)</script></svg>")
    page = page_of(hostile, records="", figures=[figure])
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert len(page.all("img")) == 1 and page.all("img")[0]["src"].startswith("data:image/svg+xml;base64,")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]
    assert "alert" not in page.sources["script"]
    shown = said(page)
    assert "<script>alert(1)</script>" in shown and "{{ 7*7 }}" in shown and "\u202e" not in shown
    for link in page.all("a"):
        assert not re.match(r"[a-z]+:", link["href"], re.IGNORECASE), link


def test_the_policy_names_the_one_script_and_the_one_style_sheet(hostile):
    page = page_of(hostile)
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.sources[kind].encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in policy and rules["img-src"] == "data:"


def test_the_page_needs_nothing_but_itself(tmp_path):
    three(tmp_path, 2.0)
    source = render_html(build_board(tmp_path), records="")
    assert "://" not in source and "@import" not in source and "url(" not in source
    page = Page(source)
    assert [link["href"] for link in page.all("link")] == ["data:,"]  # no browser asks for a favicon


def test_links_to_records_lead_to_them_and_cannot_become_addresses(tmp_path):
    results = tmp_path / "results"
    path = put_record(results, method="a b?#%")
    (page,) = write_board(results, results / "boards", formats=["html"])
    hrefs = [link["href"] for link in Page(page.read_text()).all("a") if link["href"].endswith(".json")]
    assert hrefs == [f"../toyset/a%20b%3F%23%25/{path.name}"]
    (elsewhere,) = write_board(results, tmp_path / "out", formats=["html"])
    assert not [link for link in Page(elsewhere.read_text()).all("a") if ".json" in link["href"]]
    assert path.name in elsewhere.read_text()


def test_the_place_of_the_records_is_known_only_below_them(tmp_path):
    results = tmp_path / "results"
    put_record(results)
    board = build_board(results)
    assert records_from(results, board) == ""
    assert records_from(results / "a" / "b", board) == "../../"
    assert records_from(tmp_path, board) is None
    assert records_from(results, Board([], [])) is None


# Content --------------------------------------------------------------------------------------------------------------


def test_rows_recalls_references_and_words_are_on_the_page(tmp_path):
    three(tmp_path, 3.0, method="aa", title="The first")
    three(tmp_path, 0.5, base=5, method="bb")
    put_record(tmp_path, make_ranks(2.9, 9), method="cc")
    put_failed(tmp_path, method="harma", message="out of memory")
    edit(put_record(tmp_path, dataset="bad"), lambda p: p.pop("spec"))
    board = build_board(tmp_path)
    source = render_html(board, records="")
    shown = said(Page(source))
    (table,) = board.tables
    for row in table.rows:
        assert f"{row.mean['mR']:.2f}" in shown and row.label in shown and row.title in shown
    for expected in (
        "The first",
        "ceiling of the split",
        "chance",
        "RuntimeError: out of memory",
        "1 record file could not be read",
        "record left out",
        "percentile bootstrap of the mean mR over the 40 test images",
        "image to text",
        "Rows that cannot be told apart",
        "duplicate_aware",
        *(f"{mark} {MARKS[mark]}" for row in table.rows for mark in "†≈◦" if mark in dict(table.facts)["Marks"]),
    ):
        assert expected in shown, expected
    best = max(table.rows, key=lambda row: row.mean["i2t_r1"]).mean["i2t_r1"]
    assert f"<b>{best:.2f}</b>" in source
    second = sorted({row.mean["mR"] for row in table.rows})[-2]
    assert f"<u>{second:.2f}</u>" in source


def test_every_cell_sorts_by_its_exact_value_and_missing_ones_say_so(tmp_path):
    put_record(tmp_path, change=lambda p: p["cost"].update(peak_memory=None))
    page = page_of(tmp_path)
    body = [attributes for tag, attributes in page.tags if tag == "td" and "data-v" in attributes]
    (row,) = build_board(tmp_path).tables[0].rows
    assert [a["data-v"] for a in body if a.get("class") == "size"] == ["163840", "1.6384", "655360"]
    assert [a["data-v"] for a in body if a.get("class") == "cost"] == ["", "512", "12", ""]
    assert float(body[1]["data-v"]) == pytest.approx(row.mean["mR"], rel=1e-9)


def test_every_column_belongs_to_a_group_and_explains_itself():
    assert {column.group for column in COLUMNS} == set(GROUPS) - {"mean"}
    assert all(column.why and column.head for column in COLUMNS)


def test_tables_with_one_title_have_anchors_of_their_own(tmp_path):
    put_record(tmp_path)
    put_record(tmp_path, method="b", change=lambda p: p["data"]["splits"]["test"].update(sha256="c" * 64))
    page = page_of(tmp_path)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in page.all("a") if link["href"].startswith("#table")} == {
        "#table-toyset-vit-x-224-px-best-val",
        "#table-toyset-vit-x-224-px-best-val-2",
    }


def test_an_empty_board_says_what_to_do(tmp_path):
    page = page_of(tmp_path)
    assert "No finished trial yet: run `benchmark run`" in said(page)
    assert not page.all("form") and not page.all("table")


def test_a_plot_stands_with_its_table_or_below_all(tmp_path):
    three(tmp_path, 2.0)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    source = render_html(build_board(tmp_path), figures=[Figure("one", svg, 0), Figure("two", svg)])
    section, below = source.split('<section id="plots">')
    assert "<figcaption>one</figcaption>" in section and "<figcaption>two</figcaption>" in below
    assert base64.b64encode(svg).decode() in section
    assert "<figure>" not in render_html(build_board(tmp_path))


def test_writing_twice_gives_the_same_bytes_wherever_the_folder_lies(tmp_path):
    here, there = two_places(tmp_path)
    formats = ("html", "tex", "parquet")
    first = write_board(here, tmp_path / "a", formats=formats)
    again = write_board(build_board(there), tmp_path / "b", formats=formats)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    inside = write_board(here, here, formats=["html"])
    deeper = write_board(there, there, formats=["html"])
    assert inside[0].read_bytes() == deeper[0].read_bytes()


# Bars -----------------------------------------------------------------------------------------------------------------


def test_the_axis_holds_every_interval_and_bars_keep_their_order(tmp_path):
    three(tmp_path, 3.0, method="aa")
    three(tmp_path, 0.5, base=5, method="bb")
    rows = build_board(tmp_path).tables[0].rows
    axis = Axis.of(rows)
    assert 0 <= axis.low < axis.high <= 100
    for row in rows:
        bar = Bar.of(row, axis)
        assert 0 <= float(bar.low) <= float(bar.mean) <= float(bar.high) <= WIDTH
    assert float(Bar.of(rows[0], axis).mean) > float(Bar.of(rows[1], axis).mean)


@pytest.mark.parametrize("value", [0.0, 37.5, 100.0])
def test_a_lone_row_without_interval_has_an_axis_too(tmp_path, value):
    put_record(tmp_path)
    (row,) = build_board(tmp_path).tables[0].rows
    row.mean["mR"] = value
    axis = Axis.of([row])
    assert 0 <= axis.low < axis.high <= 100
    assert Bar.of(row, axis).low is None and 0 <= float(Bar.of(row, axis).mean) <= WIDTH
