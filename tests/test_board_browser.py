"""The HTML board in a real, headless Chromium: it opens, sorts, filters, and runs nothing that came from a record."""

import re
from pathlib import Path

import pytest
from browsers import chromium
from factories import make_ranks, put_failed, put_record, reranks, scores_pairs, three

from petlbench.leaderboard.board import write_board
from petlbench.leaderboard.html_writer import Figure

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `browser`)")

RUN = "window.ran = (window.ran || 0) + 1"
HOSTILE = f"\"><script>{RUN}</script><img src=x onerror='{RUN}'><svg onload='{RUN}'> https://evil.example/x.png"
ROWS = "section.board:not([hidden]) tbody.rows > tr:not([hidden])"


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path)
        yield running
        running.close()


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Two data sets; rows that differ in every property that can be filtered."""
    root = tmp_path_factory.mktemp("results")

    def sized(trained):
        return lambda payload: payload["params"].update(trained=trained)

    def hostile(payload):
        payload["data"]["title"] = payload["backbone"]["source"] = HOSTILE

    three(root, 3.0, method="lora", change=sized(2_000))
    three(root, 1.0, base=5, method="adapter", title="An <b>adapter</b>", change=sized(150_000))
    put_record(root, make_ranks(2.0, 9), method="full", change=sized(9_000_000))
    put_record(root, method="pairs", change=scores_pairs)
    put_record(root, method="reranked", change=reranks(first_stage=HOSTILE))
    put_record(root, dataset="west", backbone="vit-y", title=HOSTILE, options={"kind": HOSTILE}, change=hostile)
    put_record(root, make_ranks(1.0, 3), dataset="west", backbone="vit-y", method="prompt")
    put_failed(root, method="harma", message=HOSTILE)
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>{RUN}</script></svg>'
    (page,) = write_board(root, root, formats=["html"], figures=[Figure(HOSTILE, svg.encode(), 0)])
    return page


@pytest.fixture
def opened(browser, board):
    """Opens the page; afterwards nothing may have been logged, run or requested."""
    contexts, told = [], []

    def open_page(path=board, fragment="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5_000)
        page.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: told.append(f"error: {error}"))
        page.on("dialog", lambda dialog: told.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: told.append(request.url) if request.url != address else None)
        address = Path(path).as_uri()
        page.goto(address + fragment)
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.ran") is None
        context.close()
    assert [line for line in told if not line.startswith("data:")] == []


def methods(page):
    return [text.split()[0] for text in page.locator(f"{ROWS} th").all_inner_texts()]


def heading(page, words):
    return page.locator("section.board").first.get_by_role("columnheader", name=words, exact=True)


def test_it_opens_with_all_rows_and_runs_nothing_from_a_record(opened):
    page = opened()
    assert page.title() == "petlbench leaderboard"
    assert page.locator("#controls").is_visible()
    assert page.locator("#shown").inner_text() == "7 of 7 rows in 2 of 2 tables"
    assert page.get_by_text("<script>window.ran").first.is_visible()  # shown, only without effect
    assert page.locator("script").count() == 1 and page.locator("img").count() == 1
    assert "An <b>adapter</b>" in page.locator("main").inner_text()


def ran_and_sent(browser, path):
    """How often injected code ran, and how many requests left for elsewhere (and were stopped there)."""
    page, sent = browser.new_page(), []

    def stop(route):
        sent.append(route.request.url)
        route.abort()

    page.route(re.compile("evil"), stop)
    page.goto(path.as_uri())
    ran = page.evaluate("window.ran || 0")
    page.close()
    return ran, len(sent)


def test_the_policy_stops_what_escaping_would_have_let_through(browser, board, tmp_path):
    """The control: the same page with markup put into it by hand, so that only the policy is in the way."""
    injected = f"<main><script>{RUN}</script><img src=x onerror='{RUN}'><img src='https://evil.example/x.png'>"
    source = board.read_text()
    assert source.count('<main id="boards">') == 1
    paths = {name: tmp_path / f"{name}.html" for name in ("with", "without")}
    paths["with"].write_text(source.replace('<main id="boards">', injected))
    paths["without"].write_text(source.replace('<main id="boards">', injected).replace("Content-Security-Policy", "x"))
    assert ran_and_sent(browser, paths["with"]) == (0, 0)
    ran, sent = ran_and_sent(browser, paths["without"])
    assert ran >= 1 and sent == 1


def test_columns_sort_as_numbers_in_both_directions_and_missing_values_come_last(opened):
    page = opened()
    first = page.locator("section.board").filter(has_text="adapter").first
    assert heading(page, "mR").get_attribute("aria-sort") == "descending"
    trained = heading(page, "trained")

    def sizes():
        read = "rows => rows.map((row) => Number(row.dataset.trained))"
        return first.locator("tbody.rows > tr").evaluate_all(read)

    ranked = sizes()
    trained.get_by_role("button").click()
    assert trained.get_attribute("aria-sort") == "ascending" and sizes() == sorted(ranked)
    assert heading(page, "mR").get_attribute("aria-sort") == "none"
    trained.get_by_role("button").click()
    assert trained.get_attribute("aria-sort") == "descending" and sizes() == sorted(ranked, reverse=True)
    for _ in range(2):
        heading(page, "ms/query").get_by_role("button").click()
        known = [v != "–" for v in first.locator("tbody.rows td.cost:nth-child(17)").all_inner_texts()]
        assert known == sorted(known, reverse=True) and not all(known) and any(known)
    heading(page, "#").get_by_role("button").click()
    assert sizes() == ranked
    references = first.locator("tbody.references").inner_text()
    assert "ceiling of the split" in references and "chance" in references  # they stay below


def test_the_keyboard_sorts_too(opened):
    page = opened()
    button = heading(page, "method").get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    assert heading(page, "method").get_attribute("aria-sort") == "ascending"
    shown = [name for name in methods(page) if name not in ("lora(kind", "prompt")][:5]
    assert shown == sorted(shown)
    page.keyboard.press("Space")
    assert heading(page, "method").get_attribute("aria-sort") == "descending"


def test_filters_narrow_the_rows_and_the_address_keeps_them(opened):
    page = opened()
    page.get_by_label("Data set").select_option("west")
    assert page.locator("#shown").inner_text() == "2 of 7 rows in 1 of 2 tables"
    assert page.locator("section.board:visible").count() == page.locator("nav li:visible").count() == 1
    page.get_by_role("button", name="Reset").click()
    assert page.locator("#shown").inner_text() == "7 of 7 rows in 2 of 2 tables"
    page.get_by_label("Backbone").select_option("vit-x")
    page.get_by_label("Scoring").select_option("every pair")
    assert methods(page) == ["pairs"]
    page.get_by_label("Scoring").select_option("")
    page.get_by_label("Method", exact=True).fill("ADAPT")
    assert methods(page) == ["adapter"]
    assert "#backbone=vit-x&method=ADAPT" in page.url
    again = opened(fragment=page.url[page.url.index("#") :])
    assert methods(again) == ["adapter"] and again.get_by_label("Method", exact=True).input_value() == "ADAPT"
    again.get_by_label("Method", exact=True).fill("nothing like it")
    assert methods(again) == [] and again.get_by_text("No row of this table passes").first.is_visible()


def test_the_budget_counts_trained_parameters(opened):
    page = opened()
    slider = page.get_by_label("Trained parameters")
    assert page.locator("#budget").inner_text() == "any"
    slider.focus()
    page.keyboard.press("Home")
    assert methods(page) == [] and page.locator("#budget").inner_text() == "none trained"
    page.keyboard.press("ArrowRight")
    assert methods(page) == ["lora"] and page.locator("#budget").inner_text() == "≤ 2K"
    assert slider.get_attribute("aria-valuetext") == "≤ 2K"
    while page.locator("#budget").inner_text() != "≤ 200K":
        page.keyboard.press("ArrowRight")
    assert "full" not in methods(page) and len(methods(page)) == 6
    page.keyboard.press("End")
    assert len(methods(page)) == 7 and "budget" not in page.url


def test_an_address_that_someone_made_up_does_no_harm(opened):
    page = opened(
        fragment="#dataset=%3Cscript%3E&budget=x&theme=evil&hide=mean+q&method=%3Cimg+src=x%3E&rule=__proto__"
    )
    assert page.get_by_label("Data set").input_value() == "" and page.locator("#budget").inner_text() == "any"
    assert page.locator("html").get_attribute("data-theme") is None
    assert methods(page) == []  # no method is called so


def test_columns_can_be_put_away(opened):
    page = opened()
    assert page.locator("td.cost").first.is_visible()
    page.get_by_label("cost").uncheck()
    assert not page.locator("td.cost").first.is_visible() and page.locator("td.size").first.is_visible()
    assert not opened(fragment="#hide=cost").locator("td.cost").first.is_visible()


def ink(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_it_follows_the_system_into_the_dark_and_can_be_told_otherwise(opened):
    light, dark = opened(color_scheme="light"), opened(color_scheme="dark")
    assert ink(light) == "rgb(255, 255, 255)" != ink(dark)
    toggle = dark.locator("#theme")
    toggle.click()
    assert toggle.inner_text() == "Theme: light" and ink(dark) == ink(light)
    toggle.click()
    assert toggle.inner_text() == "Theme: dark" and "theme=dark" in dark.url
    assert ink(opened(color_scheme="light", fragment="#theme=dark")) == ink(dark) != ink(light)


def test_a_narrow_window_scrolls_tables_not_the_page(opened):
    page = opened(viewport={"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    assert page.evaluate("[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)")


def test_it_prints_without_controls_on_light_paper(opened, tmp_path):
    page = opened(color_scheme="dark")
    page.emulate_media(media="print")
    assert ink(page) == "rgb(255, 255, 255)" and not page.locator("#controls").is_visible()
    overflow = "[...document.querySelectorAll('.scroll')].map(e => getComputedStyle(e).overflowX)"
    assert set(page.evaluate(overflow)) == {"visible"}
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_without_scripts_the_tables_are_all_there(opened, browser, board):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(board.as_uri())
    assert page.locator("tbody.rows > tr").count() == 7
    assert not page.locator("#controls").is_visible() and not page.locator("#theme").is_visible()
    context.close()
