"""`data doctor --fix`: a mended copy that loads and is clean, and not a byte changed in the user's files."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cli_calls import call, small_set
from data_files import item, karpathy_set, write_json, write_picture
from PIL import Image
from support import shared_path

from petlbench.datasets.doctor import examine, lenient
from petlbench.datasets.findings import CODES
from petlbench.datasets.fix import mend, mendable
from petlbench.datasets.load import load
from petlbench.datasets.registry import load_card
from petlbench.datasets.split import DataError
from petlbench.datasets.splits import captions_of


def mended_by(out, *arguments):
    """The card that ``--fix`` wrote, its splits, and its list of changes."""
    called = call("data", "doctor", *arguments, "--fix", out)
    (card,) = out.glob("*.yaml")
    assert f"Read it by: -d {card}" in called.err, called
    return called, card, load(load_card(card)), json.loads((out / "changes.json").read_text())


def codes_of(*arguments):
    called = call("data", "doctor", *arguments, "--json")
    return {finding["code"] for finding in called.json["findings"]}


def broken_set(folder):
    """Something for every code that is always mended."""
    path = karpathy_set(folder, train=8, test=4)
    content = json.loads(path.read_text())
    said = [[sentence["raw"] for sentence in one["sentences"]] for one in content["images"]]
    said[0][:4] = ["a cafÃ© &amp; trees", "two\u200b ships", ". . .", "far  away"]
    said[1][2] = " "
    said[2] = [" "] * 5
    for one, texts in zip(content["images"], said, strict=True):
        one["sentences"] = [{"raw": text} for text in texts]
    path.write_text(json.dumps(content))
    pictures = folder / "images"
    (pictures / "port_3.jpg").unlink()
    (pictures / "park_4.jpg").write_text("no picture")
    cut = write_picture(pictures / "port_5.jpg", 5, (300, 300))
    cut.write_bytes(cut.read_bytes()[:3000])
    (pictures / "park_6.jpg").write_bytes((pictures / "park_8.jpg").read_bytes())
    return folder


def test_everything_that_is_always_mended_is_gone_afterwards(tmp_path):
    root = broken_set(tmp_path / "set")
    always = {code for code, about in CODES.items() if about.fix == "always"} - {
        "D006"
    }  # readers refuse such a picture
    assert always <= codes_of(root)
    called, card, splits, told = mended_by(tmp_path / "out", root)
    assert called.code == 0, called
    assert not codes_of(card) & set(CODES) - {"D010", "D014", "D031", "D013", "D012", "D030"}
    assert [image.name for image in splits["train"].images] == ["park_0.jpg", "port_1.jpg", "port_7.jpg"]
    assert len(splits["test"].images) == 4
    first, second, _ = captions_of(splits["train"])
    assert first[:3] == ["a café & trees", "two ships", "far away"] and len(first) == 4 and len(second) == 4
    assert all(image.path.is_relative_to(root / "images") for image in splits["train"].images)  # not copied
    changes = {(one["code"], one["picture"]) for one in told["changes"]}
    assert set(told["codes"]) == always and told["schema_version"] == 1
    assert ("D016", "park_0.jpg") in changes and ("D005", "park_2.jpg") in changes and ("D020", "park_6.jpg") in changes
    assert {("D001", "port_3.jpg"), ("D002", "park_4.jpg"), ("D008", "port_5.jpg")} <= changes
    assert sum(one["code"] == "D005" and "caption" in one for one in told["changes"]) == 6


def test_the_rest_is_mended_where_select_names_it(tmp_path):
    root = tmp_path / "set"
    path = karpathy_set(root)
    content = json.loads(path.read_text())
    content["images"][1]["sentences"][1] = content["images"][1]["sentences"][0]
    path.write_text(json.dumps(content))
    pictures = root / "images"
    write_picture(pictures / "port_3.jpg", 70, (200, 200))
    Image.open(pictures / "port_3.jpg").resize((150, 150)).save(pictures / "park_8.jpg")
    (pictures / "park_4.jpg").write_bytes((pictures / "park_2.jpg").read_bytes())
    Image.new("RGB", (40, 40), "navy").save(pictures / "port_5.jpg")
    called = call("data", "doctor", root, "--fix", tmp_path / "none")
    assert "nothing to mend (D011, D021, D022, D026 only where --select names them)" in called.err
    assert not (tmp_path / "none").exists()
    wanted = [part for code in ("D011", "D02") for part in ("--select", code)]
    _, card, splits, told = mended_by(tmp_path / "out", root, *wanted)
    assert set(told["codes"]) == {"D011", "D021", "D022", "D026"}
    assert [image.name for image in splits["train"].images] == ["park_0.jpg", "port_1.jpg", "park_2.jpg"]
    assert len(captions_of(splits["train"])[1]) == 4
    assert not codes_of(card) & {"D011", "D020", "D021", "D022", "D026"}


def test_a_mended_set_keeps_its_facts_and_leaves_others_alone(tmp_path):
    card, root = small_set(tmp_path)
    (root / "set.json").write_text((root / "set.json").read_text().replace("number 3 seen from above", "two  ships"))
    _, written, splits, _ = mended_by(tmp_path / "out", card, "--root", root)
    new = load_card(written)
    assert (new.title, new.licence) == ("Toy (mended)", "none") and "D019" in new.notes[-1]
    assert new.expected["train"].sha256 == splits["train"].sha256
    old = load(load_card(card), root, blank="keep")
    assert splits["test"].sha256 == old["test"].sha256 and splits["train"].sha256 != old["train"].sha256
    assert splits["train"].classes == old["train"].classes
    assert "are there already" in call("data", "doctor", card, "--root", root, "--fix", tmp_path / "out").error
    assert call("data", "doctor", card, "--root", root, "--fix", tmp_path / "out", "--force").code == 0


@pytest.mark.parametrize("inside", ["", "new", "pictures", "pictures/new/er"])
def test_the_data_folder_is_refused(tmp_path, inside):
    card, root = small_set(tmp_path)
    (root / "set.json").write_text((root / "set.json").read_text().replace("number 3 seen from above", "two  ships"))
    before = sorted(tmp_path.rglob("*"))
    assert "never written to" in call("data", "doctor", card, "--root", root, "--fix", root / inside).error
    (tmp_path / "link").symlink_to(root)
    assert "never written to" in call("data", "doctor", card, "--root", root, "--fix", tmp_path / "link" / "x").error
    (tmp_path / "link").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_pictures_elsewhere_are_refused_too(tmp_path):
    card, root = small_set(tmp_path)
    (root / "set.json").write_text((root / "set.json").read_text().replace("number 3 seen from above", "two  ships"))
    (root / "pictures").rename(tmp_path / "elsewhere")
    called = call(
        "data", "doctor", card, "--root", root, "--set", f"image_dir={tmp_path / 'elsewhere'}",
        "--fix", tmp_path / "elsewhere" / "x",
    )  # fmt: skip
    assert "never written to" in called.error


def test_a_split_is_never_emptied(tmp_path):
    root = tmp_path / "set"
    karpathy_set(root)
    for number in (6, 7, 8):
        (root / "images" / f"{'port' if number % 2 else 'park'}_{number}.jpg").unlink()
    called = call("data", "doctor", root, "--fix", tmp_path / "out")
    assert called.code == 2 and "error: split test: nothing is left once all pictures of D001 are gone" in called.err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    card, root = small_set(tmp_path)
    (root / "set.json").write_text((root / "set.json").read_text().replace("number 3 seen from above", "two  ships"))
    (tmp_path / "file").write_text("in the way")
    assert "is a file" in call("data", "doctor", card, "--root", root, "--fix", tmp_path / "file").error


def test_pictures_inside_other_files_are_written_out(tmp_path):
    card, root = small_set(tmp_path)
    (root / "set.json").write_text((root / "set.json").read_text().replace("number 3 seen from above", "two  ships"))
    assert call("data", "export", card, "--root", root, "--format", "vilt-arrow", "--out", tmp_path / "arrow").code == 0
    _, _, splits, _ = mended_by(tmp_path / "out", tmp_path / "arrow")
    assert (tmp_path / "out" / "images" / "park_0.jpg").is_file()
    assert all(image.open().size == (40, 32) for split in splits.values() for image in split.images)


def test_pictures_without_captions_are_left_out(tmp_path):
    write_json(tmp_path, [item("a.jpg", captions=["x", "y"]), item("b.jpg", captions=["z"])])
    card = load_card(tmp_path)
    split = load(card)["train"]
    lonely = {"train": replace(split, captions=split.captions[:2], owner=split.owner[:2])}
    report = examine(lonely, card, check_pixels=False)
    mended = mend(lonely, report.findings, mendable(report.findings))
    assert [image.name for image in mended.splits["train"].images] == ["a.jpg"]
    assert [(change.code, change.picture) for change in mended.changes] == [("D006", "b.jpg")]


def test_only_what_is_asked_for():
    assert mendable([], ["D0"]) == ()


def test_rsitmd_as_its_text_files_are():
    """The 20 blank captions of the published files, and the four pictures that go with them."""
    card = load_card("rsitmd-precomp")
    root = shared_path("data", "annotations", "precomp", "rsitmd_precomp")
    splits = load(card, root, **{**lenient(card), "val_share": 0})
    bare = card.model_copy(update={"options": {}, "expected": {}})
    report = examine(splits, bare, check_pixels=False, codes={"D005"})
    mended = mend(splits, report.findings, ("D005",))
    assert sum(change.caption is not None for change in mended.changes) == 20
    gone = {change.picture for change in mended.changes if change.caption is None}
    assert gone == {"mountain_2378.tif", "railwaystation_3254.tif", "storagetanks_4367.tif", "viaduct_4635.tif"}
    assert len(mended.splits["train"].images) == 4287
    assert examine(mended.splits, bare, check_pixels=False, codes={"D005"}).findings == []


def test_refusing_names_in_two_splits(tmp_path):
    karpathy_set(tmp_path)
    splits = load(load_card(tmp_path))
    splits["val"] = replace(splits["test"], name="val")
    report = examine(splits, load_card(tmp_path), check_pixels=False)
    assert mendable(report.findings) == () and mendable(report.findings, ["D007"]) == ("D007",)
    with pytest.raises(DataError, match="split val: nothing is left once all pictures of D007 are gone"):
        mend(splits, report.findings, ("D007",))


def test_a_disk_that_is_full_at_the_list_of_changes_leaves_nothing(tmp_path, monkeypatch):
    root = broken_set(tmp_path / "set")
    write_text = Path.write_text

    def full(path, *arguments, **options):
        if path.name == "changes.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    called = call("data", "doctor", root, "--fix", tmp_path / "out")
    assert called.code == 2 and "cannot be written (No space left on device)" in called.err
    assert list((tmp_path / "out").iterdir()) == []
