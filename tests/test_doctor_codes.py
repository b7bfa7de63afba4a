"""The doctor as a linter: codes, selection, places, other sets, exit codes, and the table in the documentation."""

import json
import random

import pytest
from cli_calls import call, small_set
from data_files import CAPTIONS, item, karpathy_set, precomp_set, write_json, write_picture
from doctor_sets import CARD, read
from PIL import Image
from support import ROOT, shared_path

from petlbench.datasets.doctor import examine
from petlbench.datasets.doctor_captions import decoded_rightly, evenly_spaced, visible
from petlbench.datasets.findings import CODES, chosen_codes, codes_table
from petlbench.datasets.load import load
from petlbench.datasets.near_captions import near_captions, normal
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import DataError


def found(report, code):
    return [finding for finding in report.findings if finding.code == code]


# Codes


def test_every_code_is_in_the_documentation_as_it_is_in_the_code():
    assert codes_table() in (ROOT / "docs" / "data_doctor.md").read_text(encoding="utf-8")
    assert call("data", "doctor", "--codes").out.strip() == codes_table()


def test_codes_are_selected_by_name_or_beginning():
    assert chosen_codes() == CODES.keys()
    assert chosen_codes(["D02"], ["D021", "d023"]) == {"D020", "D022", "D024", "D025", "D026", "D027"}
    with pytest.raises(DataError, match=r"code 'D20' fits none; did you mean `D0"):
        chosen_codes(["D20"])
    with pytest.raises(DataError, match="fits none"):
        chosen_codes(ignore=[""])


def test_unselected_codes_are_not_told_and_pictures_not_opened(tmp_path):
    path = karpathy_set(tmp_path)
    (tmp_path / "images" / "park_0.jpg").unlink()
    report = examine(read(path), CARD, codes=chosen_codes(["D005", "D031"]))
    assert report.ok and report.bad_pictures == [] and not report.pixels_checked
    assert {one.code for one in report.findings} == {"D031"}
    assert {one.code for one in examine(read(path), CARD, codes=chosen_codes(["D001"])).findings} == {"D001"}


# Captions


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("a cafÃ© at the waterâ€™s edge", "a café at the water’s edge"),
        ("trees &amp; houses &#39;here&#39;", "trees & houses 'here'"),
        ("trees &amp;amp; houses", "trees & houses"),
        ("a café at the water’s edge", "a café at the water’s edge"),
        ("black & white; R&D", "black & white; R&D"),
    ],
)
def test_wrongly_decoded_captions(text, mended):
    assert decoded_rightly(text) == mended == decoded_rightly(mended)


@pytest.mark.parametrize(
    ("text", "mended"),
    [("a\u200bb \x07c", "ab c"), ("cafe\u0301", "café"), ("soft\u00adhyphen", "softhyphen"), ("a  b", "a  b")],
)
def test_invisible_characters(text, mended):
    assert visible(text) == mended == visible(mended)


def test_white_space():
    assert evenly_spaced("a  b\t c\u00a0d\n") == "a b c d"


def test_planted_captions_are_found_each_by_its_code(tmp_path):
    odd = {
        "D009": "a br\ufffdcke",
        "D016": "a cafÃ©",
        "D017": "two\u200b ships",
        "D018": ". !",
        "D019": "two  ships",
    }
    names = [f"{code}.jpg" for code in odd]
    path = write_json(tmp_path, [item(n, captions=["x", text]) for n, text in zip(names, odd.values(), strict=True)])
    report = examine(read(path), CARD, check_pixels=False)
    for code, text in odd.items():
        (finding,) = found(report, code)
        assert finding.severity == CODES[code].severity
        assert [(one.picture, one.caption, one.text) for one in finding.items] == [(f"{code}.jpg", 1, text)], code
    (finding,) = found(report, "D010")
    assert "every picture has 2 captions; in the sets of the field it has five" in finding.message


def test_captions_that_are_nearly_those_of_others(tmp_path):
    shared = "many green trees are near a long straight road and several small white houses"
    items = [
        item("a.jpg", captions=["Two ships, in a port.", shared, "one", "1", "2"]),
        item("b.jpg", captions=["two ships in a port", "three", "four", "5", "6"]),
        item("c.jpg", captions=["six", "seven", "Seven!", "8", "9"]),
        item("d.jpg", "test", captions=[shared.replace("several", "many"), "ten", "11", "12", "13"]),
    ]
    report = examine(read(write_json(tmp_path, items)), CARD, check_pixels=False)
    (form,) = found(report, "D040")
    assert form.place == "train" and {one.text for one in form.items} == {
        "Two ships, in a port.",
        "two ships in a port",
    }
    assert form.message.startswith("13.3% of the captions")  # not c's own "seven"
    (words,) = found(report, "D041")
    assert words.place == "test, train" and words.items[0].twin == "train/a.jpg" and words.items[0].twin_text == shared


def test_near_captions_are_those_that_comparing_all_finds():
    rng = random.Random(0)
    words = [f"w{n}" for n in range(30)]
    texts = list(
        dict.fromkeys(" ".join(rng.choices(words[: rng.randint(3, 30)], k=rng.randint(1, 14))) for _ in range(700))
    )
    sets = [frozenset(text.split()) for text in texts]
    every = {
        (i, j)
        for i in range(len(sets))
        for j in range(i + 1, len(sets))
        if 5 * len(sets[i] & sets[j]) >= 4 * len(sets[i] | sets[j])
    }
    assert {(one.first, one.second) for one in near_captions(texts)} == every and len(every) > 50


def test_normal_form():
    assert normal(" The  Café, it's\u00a0No. 5! ") == "the café it s no 5"
    assert near_captions(["...", "!", ""]) == []
    assert [one.how for one in near_captions(["A b.", "a b"])] == ["form"]


# Pictures


def test_near_twins_and_plain_pictures(tmp_path):
    path = karpathy_set(tmp_path)
    folder = tmp_path / "images"
    for name, seed in (("park_0.jpg", 50), ("park_2.jpg", 51)):
        write_picture(folder / name, seed, (200, 200))
    Image.open(folder / "park_0.jpg").resize((150, 150)).save(folder / "port_7.jpg", quality=60)
    Image.open(folder / "park_2.jpg").rotate(90).save(folder / "port_3.jpg", quality=60)
    Image.new("RGB", (40, 40), "navy").save(folder / "park_4.jpg")
    report = examine(read(path), CARD)
    (across,), (within,), (plain,) = (found(report, code) for code in ("D022", "D023", "D026"))
    assert across.place == "train, test" and within.place == "train" and plain.items[0].picture == "park_4.jpg"
    assert (across.items[0].split, across.items[0].picture, across.items[0].twin) == (
        "train",
        "park_0.jpg",
        "test/port_7.jpg",
    )
    assert (within.items[0].picture, within.items[0].twin) == ("port_3.jpg", "train/park_2.jpg")
    assert "turned or mirrored" in within.items[0].told and "bits differ" in across.items[0].told
    assert not found(report, "D020") and not found(report, "D021")


# Places


def places(report, code):
    (finding,) = found(report, code)
    return {(one.file.rsplit("/", 1)[-1], one.entry) for one in finding.items}


def doctor(*arguments):
    from petlbench.datasets.report import DoctorReport

    return DoctorReport.model_validate(call("data", "doctor", *arguments, "--json", "--no-pixels").json)


def test_places_in_karpathy_json(tmp_path):
    (tmp_path / "images").mkdir()
    write_json(tmp_path, [item("a.jpg"), item("b.jpg", captions=["x", "two  words"], filepath="sub")])
    assert places(doctor(tmp_path), "D019") == {("set.json", "images[1].sentences[1]")}


def test_places_in_text_files(tmp_path):
    precomp_set(tmp_path, train=4, test=2)
    lines = (tmp_path / "train_caps.txt").read_text().splitlines()
    lines[7] = "two  words"
    (tmp_path / "train_caps.txt").write_text("\n".join(lines) + "\n")
    assert places(doctor(tmp_path, "--set", "val_share=0"), "D019") == {("train_caps.txt", "line 8")}


def test_places_in_tables_and_lists(tmp_path):
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "captions.csv").write_text("image,caption\na.jpg,x\na.jpg,two  words\nb.jpg,y\n")
    assert places(doctor(tmp_path / "csv"), "D019") == {("captions.csv", "line 3")}
    (tmp_path / "pir").mkdir()
    train = [{"image": "train/a.jpg", "caption": text, "image_id": 0} for text in ("x", "two  words")]
    (tmp_path / "pir" / "toy_train.json").write_text(json.dumps(train))
    test = [{"image": "test/b.jpg", "caption": ["y", "three  words"]}]
    (tmp_path / "pir" / "toy_test.json").write_text(json.dumps(test))
    report = doctor(tmp_path / "pir")
    assert {place for one in found(report, "D019") for place in [(one.place, one.items[0].entry)]} == {
        ("train", "[1]"),
        ("test", "[0].caption[1]"),
    }
    (tmp_path / "nwpu").mkdir()
    nwpu = {"sea": [{"filename": "a.jpg", "split": "train", "raw": "x", "raw_1": "two  words"}]}
    (tmp_path / "nwpu" / "dataset_nwpu.json").write_text(json.dumps(nwpu))
    assert places(doctor(tmp_path / "nwpu"), "D019") == {("dataset_nwpu.json", "sea[0].raw_1")}


def test_places_where_rows_hold_lists(tmp_path):
    rows = [{"image": "a.jpg", "caption": listed} for listed in (["x", "two  words"], ["y"])]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    assert places(doctor(tmp_path), "D019") == {("captions.json", "[0]")}


def test_places_inside_other_files(tmp_path):
    card, root = small_set(tmp_path)
    text = (root / "set.json").read_text().replace("number 3 seen from above", "two  ships")
    (root / "set.json").write_text(text)
    assert call("data", "export", card, "--root", root, "--format", "vilt-arrow", "--out", tmp_path / "arrow").code == 0
    assert places(doctor(tmp_path / "arrow"), "D019") == {("toyset_caption_karpathy_train.arrow", "row 3")}


# The verb


def test_exit_codes_follow_severities(tmp_path):
    card, root = small_set(tmp_path)
    (root / "set.json").write_text((root / "set.json").read_text().replace("number 3 seen from above", "."))
    where = ("data", "doctor", card, "--root", root)
    called = call(*where, "--select", "D018", "--json")
    assert called.code == 0 and [one["code"] for one in called.json["findings"]] == ["D018"]
    assert call(*where, "--select", "D018", "--strict").code == 1
    assert call(*where, "--strict", "--ignore", "D018").code == 0
    (root / "pictures" / "park_0.jpg").unlink()
    assert call(*where).code == 1 and call(*where, "--ignore", "D001").code == 0
    assert "fits none" in call(*where, "--select", "E1").error


def test_the_json_report_keeps_its_form(tmp_path):
    card, root = small_set(tmp_path)
    report = call("data", "doctor", card, "--root", root, "--json").json
    assert report["schema_version"] == 1
    assert set(report) == {
        "schema_version", "card", "title", "pixels_checked", "splits", "bad_pictures", "same_pictures", "against", "findings",
    }  # fmt: skip
    (first, *_) = report["findings"]
    assert set(first) == {"code", "severity", "place", "message", "advice", "fix", "items"}


def test_markup_in_captions_is_text(tmp_path):
    card, root = small_set(tmp_path)
    (root / "set.json").write_text(
        (root / "set.json").read_text().replace("number 3 seen from above", "[red]  x[/nope]")
    )
    called = call("data", "doctor", card, "--root", root, "--no-pixels")
    assert called.code == 0 and "[red]  x[/nope]" in called.out.replace("\n", "")


def test_markup_in_the_name_of_a_folder_is_text(tmp_path):
    karpathy_set(tmp_path / "a [red] set")
    called = call("data", "doctor", tmp_path / "a [red] set")
    assert called.code == 0 and "a [red] set (a-red-set)" in called.out


# Another set


def test_pictures_and_captions_of_another_set(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    karpathy_set(ours)
    path = karpathy_set(theirs)
    content = json.loads(path.read_text())
    for number, one in enumerate(content["images"]):
        (theirs / "images" / one["filename"]).rename(theirs / "images" / f"new_{number}.jpg")
        one["filename"] = f"new_{number}.jpg"
        if number != 7:
            write_picture(theirs / "images" / f"new_{number}.jpg", seed=number + 100)
            one["sentences"] = [{"raw": f"{number} {text}"} for text in CAPTIONS]
    content["images"][7]["split"] = "train"
    content["images"][7]["sentences"][0]["raw"] = content["images"][7]["sentences"][0]["raw"].upper()
    path.write_text(json.dumps(content))
    called = call("data", "doctor", ours, "--against", theirs, "--select", "D024", "--select", "D025", "--json")
    told = {one["code"]: one for one in called.json["findings"]}
    assert called.json["against"] == "theirs" and told.keys() == {"D024", "D025"}
    for one in told.values():
        assert one["severity"] == "warning" and one["place"] == "test"
        assert [(i["picture"], i["twin"]) for i in one["items"]] == [("port_7.jpg", "theirs:train/new_7.jpg")]
    assert told["D024"]["items"][0]["told"] == "the same pixels"
    (theirs / "images" / "new_0.jpg").unlink()
    again = call("data", "doctor", ours, "--against", f"custom={theirs}", "--select", "D024", "--json")
    assert "custom: 1 of 9 pictures cannot be used" in again.err and len(again.json["findings"]) == 1


def test_what_rsicd_and_rsitmd_share():
    folder = shared_path("data", "annotations", "json")
    called = call(
        "data", "doctor", "rsicd", "--root", folder, "--set", "format=pir-json", "--no-pixels",
        "--against", f"rsitmd={folder}", "--select", "D025", "--json",
    )  # fmt: skip
    test = [one for one in called.json["findings"] if one["place"] == "test" and one["severity"] == "warning"]
    assert len(test) == 1 and len(test[0]["items"]) == 14  # the figure of the dossiers
    assert all(item["twin"].startswith("rsitmd:train/") for item in test[0]["items"])


def test_lone_full_stops_of_rsicd():
    card = load_card("rsicd")
    splits = load(card, shared_path("data", "rsicd"), blank="keep")
    report = examine(splits, card, check_pixels=False, codes=chosen_codes(["D018"]))
    assert {(one.split, one.picture, one.text) for finding in report.findings for one in finding.items} == {
        ("train", "bridge_218.jpg", "."),
        ("train", "parking_211.jpg", "."),
        ("val", "bridge_59.jpg", "."),
    }
