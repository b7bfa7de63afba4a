"""The gallery: which queries, what is marked, and that nothing in a caption ever runs."""

import base64
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from browsers import chromium
from cli_calls import call
from factories import make_payload
from PIL import Image
from small_trials import forget_answers, small_trial

from petlbench.datasets.split import Split
from petlbench.harness.gallery import Gallery, make_gallery, thumbnail
from petlbench.harness.gallery_choose import Choice, GalleryError, choose
from petlbench.harness.gallery_data import Told, tell
from petlbench.harness.json_files import RecordError
from petlbench.harness.metrics import Ranks, recalls
from petlbench.harness.ranks import rank_scores
from petlbench.harness.record import Record
from petlbench.harness.record_files import find_records
from petlbench.harness.retrial import Places
from petlbench.harness.trial import run_trial
from petlbench.leaderboard.gallery_html import render_gallery
from petlbench.leaderboard.gallery_png import draw_gallery

RUN = "window.ran = (window.ran || 0) + 1"
HOSTILE = f"\"><script>{RUN}</script><img src=x onerror='{RUN}'><svg onload='{RUN}'> {{{{ 7*7 }}}} \u202e https://evil.example/x"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture without a file."""

    name: str
    colour: tuple[int, int, int]

    def open(self):
        return Image.new("RGB", (40, 30), self.colour)


def split_of(captions, images=12, hostile=False):
    owner = np.arange(len(captions)) % images
    pictures = tuple(Drawn(HOSTILE if hostile else f"p{i}.jpg", (20 * i, 90, 40)) for i in range(images))
    classes = (HOSTILE,) if hostile else ("port",)
    return Split("test", pictures, tuple(captions), owner, np.zeros(images, dtype=np.int64), classes)


def told_of(record, split, scores, top=10):
    ranks = rank_scores(scores, split.owner, split.text_ids, columns="strings", top=top)
    return Told(Path(f"{record.method.name}.json"), record, split, split, ranks, ranks)


@pytest.fixture(scope="module")
def record():
    return Record.model_validate(make_payload())


# Choosing


def test_most_different_takes_queries_from_both_sides():
    first = np.array([0, 0, 9, 50, 3, 0], dtype=np.int32)
    second = np.array([99, 9, 0, 0, 3, 1], dtype=np.int32)
    assert choose(Choice("most_different", count=4), "t2i", first, second, range(6)) == [0, 1, 3, 2]
    assert choose(Choice("most_different", count=3), "t2i", first, second, range(6)) == [0, 1, 3]
    assert choose(Choice("most_different", count=9), "t2i", first, second, range(6)) == [0, 1, 5, 3, 2], (
        "equal ranks never"
    )


def test_where_one_method_is_never_better_the_other_fills_up():
    better, worse = np.zeros(5, dtype=np.int32), np.arange(1, 6, dtype=np.int32)
    assert choose(Choice("most_different", count=4), "i2t", better, worse, range(5)) == [4, 3, 2, 1]
    assert choose(Choice("most_different", count=4), "i2t", worse, better, range(5)) == [4, 3, 2, 1]


def test_failures_are_what_no_method_answers():
    first = np.array([0, 40, 7, 30, 9], dtype=np.int32)
    second = np.array([90, 3, 8, 50, 9], dtype=np.int32)
    assert choose(Choice("failures", count=3), "t2i", first, second, range(5)) == [3, 4, 2]
    assert choose(Choice("failures", count=3), "t2i", first, None, range(5)) == [1, 3, 4]


def test_equal_captions_are_asked_once():
    ranks = np.array([9, 9, 8, 8], dtype=np.int32)
    assert choose(Choice("failures", count=4), "t2i", ranks, None, [0, 0, 0, 1]) == [0, 3]


def test_random_queries_depend_on_the_seed_alone():
    ranks = np.zeros(50, dtype=np.int32)
    drawn = [choose(Choice("random", count=5, seed=seed), "i2t", ranks, None, range(50)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] == sorted(set(drawn[0])) and len(drawn[0]) == 5


def test_a_number_outside_the_split_is_refused():
    with pytest.raises(GalleryError, match="50 captions, numbered from 0 to 49"):
        choose(Choice("query", (50,)), "t2i", np.zeros(50, dtype=np.int32), None, range(50))


# Marks


def test_hits_and_duplicates_are_told_apart(record):
    split = split_of([f"c{i}" if i != 3 else "c0" for i in range(12)])
    scores = torch.full((12, len(split.distinct)), -1.0)
    scores[3, 0], scores[0, 0], scores[5, 0] = 2.0, 1.0, 0.5
    scores[0, 4] = 1.5
    told = told_of(record, split, scores)
    text, image = (make_gallery([told], Choice("query", (0,)), [way], top=4).questions[0] for way in ("t2i", "i2t"))
    assert [(a.place, a.mark) for a in text.sides[0].answers[:3]] == [(3, "duplicate"), (0, "hit"), (5, None)]
    assert (text.sides[0].rank, text.sides[0].duplicate_rank, text.duplicates) == (2, 1, 1)
    assert [(a.place, a.mark) for a in image.sides[0].answers[:3]] == [(5, None), (0, "hit"), (3, "duplicate")]
    assert (image.sides[0].rank, image.duplicates) == (2, 1)
    page = render_gallery(make_gallery([told], Choice("query", (0,)), ["t2i"], top=4))
    assert page.count('<li class="answer hit">') == 1 and page.count('<li class="answer duplicate">') == 1
    assert "right answer at rank <b>2</b>, a duplicate at 1" in page


def test_records_of_different_splits_are_refused(record):
    scores = torch.zeros(12, 12)
    one, two = (told_of(record, split_of([f"{word}{i}" for i in range(12)]), scores) for word in "ab")
    with pytest.raises(GalleryError, match="different splits"):
        make_gallery([one, two], Choice("random", count=2))


# The page and the pictures


@pytest.fixture(scope="module")
def hostile(record):
    split = split_of([f"{HOSTILE} {i % 7}" for i in range(24)], hostile=True)
    drawn = torch.Generator().manual_seed(0)
    named = record.model_copy(update={"method": record.method.model_copy(update={"title": HOSTILE})})
    told = [told_of(named, split, torch.randn(12, len(split.distinct), generator=drawn)) for _ in range(2)]
    return make_gallery(told, Choice("random", count=6), top=5)


def test_nothing_from_data_is_markup(hostile):
    page = render_gallery(hostile)
    assert "<script" not in page and "<svg" not in page and not re.search(r"<[^>]* on\w+=", page)
    assert "&lt;script&gt;" in page and "{{ 7*7 }}" in page and "\u202e" not in page
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'<img src="([^"]*)"', page))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert "default-src &#39;none&#39;" in policy and "script-src" not in policy and "unsafe" not in policy
    assert render_gallery(hostile) == page


def test_thumbnails_are_made_from_pixels_alone():
    picture = Image.new("RGB", (400, 200), (9, 9, 9))
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = "secret"
    picture.save(buffer, "JPEG", exif=exif, comment=b"secret")
    with Image.open(io.BytesIO(buffer.getvalue())) as opened:
        small = thumbnail(opened)
    with Image.open(io.BytesIO(small)) as again:
        assert again.format == "JPEG" and again.size == (160, 80) and not again.getexif() and b"secret" not in small


def test_pictures_show_every_query_on_pages(hostile, monkeypatch):
    monkeypatch.setattr("petlbench.leaderboard.gallery_png.PER_PAGE", 2)
    short = dataclasses.replace(hostile, questions=hostile.questions[5:8])
    pages = draw_gallery(short)
    assert len(pages) == 2
    for page in pages:
        with Image.open(io.BytesIO(page)) as opened:
            assert opened.format == "PNG" and opened.width > 1500
            assert len(opened.convert("RGB").getcolors(1 << 24)) > 50


def test_no_script_runs_in_a_real_browser(hostile, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `browser`)")
    path = chromium()
    (tmp_path / "gallery.html").write_text(render_gallery(hostile), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        page = browser.new_page()
        told, asked = [], []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "gallery.html").as_uri())
        assert page.evaluate("window.ran") is None and told == []
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert page.locator("script, svg, article img[onerror]").count() == 0
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert page.locator("article").count() == len(hostile.questions)
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        browser.close()


# The verb


@pytest.fixture(scope="module")
def trained(small_world, tmp_path_factory):
    """Two finished trials on a random CLIP of two narrow blocks."""
    folder = tmp_path_factory.mktemp("trained")
    for method in ("linear_probe", "lora"):
        run_trial(small_trial(folder, "train.epochs=1", "train.lr=0.01", method=method))
    return folder


@pytest.fixture
def records(trained, tmp_path):
    return list(find_records(shutil.copytree(trained, tmp_path / "results")))


def test_two_methods_are_shown_side_by_side(records, tmp_path):
    called = call("gallery", *records, "--out", tmp_path / "g", "--most-different", 3, "--top", 4)
    assert called.code == 0, called
    page = (tmp_path / "g" / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<article") == 6 and page.count('<div class="side">') == 12
    for record in records:
        assert json.loads(record.read_text())["method"]["title"] in page
    assert (tmp_path / "g" / "gallery.png").read_bytes().startswith(b"\x89PNG")
    first = base64.b64decode(re.search(r'src="data:image/jpeg;base64,([^"]*)"', page)[1])
    assert first.startswith(b"\xff\xd8")


def test_pages_of_a_longer_gallery_before_are_removed(records, tmp_path, monkeypatch):
    monkeypatch.setattr("petlbench.leaderboard.gallery_png.PER_PAGE", 2)
    out = tmp_path / "g"
    call("gallery", records[0], "--out", out, "--random", 3)
    assert {"gallery.png", "gallery-2.png", "gallery-3.png"} == {path.name for path in out.glob("*.png")}
    (out / "gallery-mine.png").write_bytes(b"")
    called = call("gallery", records[0], "--out", out, "--random", 1, "--direction", "t2i")
    assert {"gallery.png", "gallery-mine.png"} == {path.name for path in out.glob("*.png")}
    assert called.out.count("of an earlier gallery") == 2


def test_answers_of_older_records_come_from_the_model(records, tmp_path):
    options = ("--random", 3, "--seed", 5, "--direction", "t2i")
    call("gallery", *records, "--out", tmp_path / "stored", *options)
    for record in records:
        forget_answers(record)
    called = call("gallery", *records, "--out", tmp_path / "again", *options)
    assert called.out.count("the model was built again") == 2, called
    stored, again = ((tmp_path / name / "gallery.html").read_text(encoding="utf-8") for name in ("stored", "again"))
    assert re.findall("<article.*</article>", stored, re.S) == re.findall("<article.*</article>", again, re.S)
    assert [tell(path, Places(), 5).rebuilt for path in records] == [True, True]


def test_a_model_that_rounds_differently_is_noted_and_another_one_refused(records):
    record = records[0]
    forget_answers(record)
    ranks = Ranks.load(record.with_name(record.stem + ".ranks.npz"))
    payload = json.loads(record.read_text())
    for moved, fails in ((1, False), (25, True)):
        index = ranks.i2t_index.copy()
        nearest_miss = np.argsort(np.where(index < 10, -index, 99))  # found last among the first ten, then the others
        index[nearest_miss[:moved]] = 60
        other = dataclasses.replace(ranks, i2t_greater=index, i2t_tied=0 * index, i2t_index=index, i2t_duplicate=index)
        other.save(record.with_name(record.stem + ".ranks.npz"))
        payload["metrics"]["test"]["recalls"] = recalls(other)
        record.write_text(json.dumps(payload))
        if fails:
            with pytest.raises(RecordError, match="is not the one that was recorded"):
                tell(record, Places(), 5)
        else:
            told = tell(record, Places(), 5)
            assert told.rebuilt and "recalls differ by up to" in told.notes[0] and told.ranks.i2t_top is None
            assert told.notes[0] in make_gallery([told], Choice("random", count=1)).about[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--query", 999, "--direction", "i2t"), "numbered from 0"),
        (("--query", 1), "--direction"),
        (("--failures", 2, "--random", 2), "different choices"),
        (("--failures", 2, "--seed", 2), "goes with --random"),
        (("--failures", 0), "from 1 up"),
        (("--random", 2, "--seed", -1), "greater than or equal to 0"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(records, tmp_path, options, message):
    called = call("gallery", *records, "--out", tmp_path / "g", *options)
    assert called.code == 2 and message in " ".join(called.err.replace("│", " ").split())
    assert not (tmp_path / "g").exists()


def test_one_record_has_failures_but_no_differences(records, tmp_path):
    assert call("gallery", records[0], "--out", tmp_path / "g", "--most-different", 2).code == 2
    assert call("gallery", records[0], "--out", tmp_path / "g", "--failures", 2).code == 0
    assert isinstance(make_gallery([tell(records[0], Places(), 5)], Choice("failures", count=2)), Gallery)
