"""Cards: those that come with petlbench, a user's own, and the way from a card to splits."""

import pytest
from data_files import karpathy_set, precomp_set
from support import refused, shared_path

from petlbench.datasets.load import load
from petlbench.datasets.registry import CARDS, list_cards, load_card

OWN = """\
name: mine
title: My set
version: 1
licence: CC0
citation: me
format: karpathy
files:
  annotations: set.json
  images: images
expected:
  train: {images: 6, captions: 30}
"""


def own_card(folder, text=OWN):
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_cards_that_come_along():
    sets = {"ucm", "rsicd", "rsitmd", "sydney", "nwpu", "ucm-precomp", "rsicd-precomp", "rsitmd-precomp"}
    assert {"scenes", "custom", *sets} <= set(list_cards())
    for name in list_cards():
        card = load_card(name)
        assert card.name == name, "a card is found by its file name"
        assert card.title and card.licence and card.citation
        assert card.format in ("scenes", "auto") or (card.sources and card.notes and card.files)
        assert card.expected or name in ("custom", "nwpu"), "counts that were never checked are not told as expected"


def test_a_users_own_card_is_given_by_its_path(tmp_path, monkeypatch):
    karpathy_set(tmp_path)
    splits = load(own_card(tmp_path), root=tmp_path)
    assert {name: len(split.images) for name, split in splits.items()} == {"train": 6, "test": 3}
    assert splits["train"].images[0].path == tmp_path / "images" / "park_0.jpg"
    assert splits["train"].classes == ("park", "port")
    assert load_card(tmp_path / "mine.yaml").version == "1"


def test_options_of_the_call_go_before_those_of_the_card(tmp_path):
    karpathy_set(tmp_path)
    path = own_card(tmp_path, OWN + "options: {labels: none, image_dir: elsewhere}\n")
    assert load(path, tmp_path)["train"].labels is None
    split = load(path, tmp_path, labels="prefix", image_dir="/pictures")["train"]
    assert split.classes == ("park", "port")
    assert str(split.images[0].path) == "/pictures/park_0.jpg"
    (tmp_path / "set.json").rename(tmp_path / "other.json")
    assert len(load(path, tmp_path, annotations="other.json")) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            ("licence:", "license:"),
            ["mine.yaml:4: key `license` is unknown; did you mean `licence`?", "`licence` is miss"],
        ),
        (
            ("  images: images", "  image: images"),
            ["mine.yaml:9: key `files.image` is unknown; did you mean `images`?"],
        ),
        (("captions: 30", "caption: 30"), ["mine.yaml:11: key `expected.train.caption`", "did you mean `captions`?"]),
        (("images: 6", "images: -6"), ["mine.yaml:11: key `expected.train.images` has the value -6"]),
        (("train: {", "trian: {"), ["mine.yaml:11", "trian"]),
        (("format: karpathy", "format: coco"), ["mine.yaml:6: key `format` has the value 'coco'", "'karpathy'"]),
        (("title: My set", "name: other"), ["mine.yaml:2: key `name` is given twice (first on line 1)"]),
        (("version: 1", "version: ["), ["mine.yaml:", "not valid YAML"]),
        (
            ("expected:", "options: {extention: jpg}\nexpected:"),
            ["mine.yaml:10: key `options.extention`", "`extension`?"],
        ),
        (("format: karpathy", "format: scenes"), ["mine.yaml", "format scenes needs no `files`"]),
    ],
)
def test_errors_of_a_card_name_line_and_key(tmp_path, change, told):
    assert change[0] in OWN
    path = own_card(tmp_path, OWN.replace(change[0], change[1], 1))
    refused(lambda: load_card(path), *told)


def test_all_complaints_come_at_once(tmp_path):
    path = own_card(tmp_path, OWN.replace("licence", "license").replace("images: 6", "images: x"))
    refused(lambda: load_card(path), "license", "licence` is missing", "expected.train.images")


def test_unknown_cards(tmp_path):
    refused(lambda: load_card("rsicdd"), "`rsicdd`", "did you mean `rsicd`?", "by its path")
    refused(lambda: load_card("../cards/ucm"), "there is no such card")
    refused(lambda: load_card(tmp_path / "no.yaml"), "no.yaml", "cannot be read")
    (tmp_path / "list.yaml").write_text("- a\n")
    refused(lambda: load_card(tmp_path / "list.yaml"), "`key: value` lines")


def test_a_missing_root_says_what_is_expected_where(tmp_path, monkeypatch):
    monkeypatch.delenv("PETLBENCH_DATA", raising=False)
    ways = ["--set dataset.rsicd.root=FOLDER", "PETLBENCH_DATA=PARENT", "dataset_rsicd.json", "images/", "https://"]
    refused(lambda: load("rsicd"), "no folder was given", *ways)
    refused(lambda: load("rsicd", tmp_path / "no"), str(tmp_path / "no"), "does not exist", *ways)
    refused(lambda: load("rsicd", tmp_path), str(tmp_path / "dataset_rsicd.json"), "does not exist", *ways)
    refused(lambda: load("rsicd-precomp"), "train_caps.txt", "test_filename.txt", "rsicd_images/")
    monkeypatch.setenv("PETLBENCH_DATA", str(tmp_path))
    refused(lambda: load("rsicd"), f"{tmp_path}/rsicd (from PETLBENCH_DATA={tmp_path}) does not exist")


def test_the_root_can_come_from_the_environment(tmp_path, monkeypatch):
    precomp_set(tmp_path / "rsicd-precomp")
    monkeypatch.setenv("PETLBENCH_DATA", str(tmp_path))
    splits = load("rsicd-precomp")
    assert splits["test"].images[0].path == tmp_path / "rsicd-precomp" / "rsicd_images" / "testx_0.jpg"


def test_a_relative_root_does_not_depend_on_later_changes_of_folder(tmp_path, monkeypatch):
    karpathy_set(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load(own_card(tmp_path), root=".")["train"].images[0].path.is_absolute()


def test_unknown_options_are_refused(tmp_path):
    karpathy_set(tmp_path)
    refused(lambda: load(own_card(tmp_path), tmp_path, extention="jpg"), "data set mine", "did you mean `extension`?")
    refused(lambda: load(own_card(tmp_path), tmp_path, blank="skip"), "`blank`", "'skip'", "'drop'")


def test_a_card_may_name_its_root_relative_to_itself(tmp_path, monkeypatch):
    karpathy_set(tmp_path / "deep" / "set")
    monkeypatch.setenv("PETLBENCH_DATA", str(tmp_path / "elsewhere"))
    card = load_card(own_card(tmp_path / "deep", OWN + "root: set\n"))
    assert card.root == str(tmp_path / "deep" / "set")
    assert len(load(card)["train"].images) == 6
    refused(lambda: load(card, tmp_path), "set.json does not exist")


def test_the_layouts_of_a_card(tmp_path):
    precomp_set(tmp_path)
    more = "layouts:\n  precomp:\n    files: {annotations: ., images: pics}\n    options: {labels: none}\n"
    card = own_card(tmp_path, OWN + more)
    split = load(card, tmp_path, format="precomp")["test"]
    assert split.images[0].path == tmp_path / "pics" / "testx_0.jpg" and split.labels is None
    refused(
        lambda: load_card(own_card(tmp_path, OWN + more.replace("labels", "label"))),
        "mine.yaml:15",
        "did you mean `labels`?",
    )
    refused(
        lambda: load_card(own_card(tmp_path, OWN + more.replace("precomp", "karpathy"))), "other than the card's own"
    )
    refused(
        lambda: load_card(own_card(tmp_path, OWN + more.replace("images: pics", "image: x"))), "did you mean `images`?"
    )


def test_val_images_is_relative_to_the_root(tmp_path):
    precomp_set(tmp_path)
    (tmp_path / "val.txt").write_text("trainx_1.jpg\n")
    assert len(load("rsicd-precomp", tmp_path, val_images="val.txt")["val"].images) == 1


@pytest.mark.parametrize("name", ["ucm-precomp", "rsicd-precomp", "rsitmd-precomp", "ucm", "rsicd"])
def test_real_sets_are_what_their_cards_say(name):
    stem = name.removesuffix("-precomp")
    folder = {"ucm": "ucm_captions", "rsicd": "rsicd"}
    text = stem != name
    root = (
        shared_path("data", "annotations", "precomp", f"{stem}_precomp") if text else shared_path("data", folder[stem])
    )
    card = load_card(name)
    splits = load(card, root)
    for part, split in splits.items():
        expected = card.expected[part]
        assert (len(split.images), len(split.captions)) == (expected.images, expected.captions)
        assert expected.sha256 in (None, split.sha256)
        assert split.classes
        assert all(caption.strip() for caption in split.captions)


def test_cards_are_plain_files_beside_the_code():
    assert sorted(path.stem for path in CARDS.iterdir() if path.suffix == ".yaml") == list(list_cards())


def test_the_generated_set_needs_no_root():
    card = load_card("scenes")
    splits = load(card, train=60, val=0, test=30)
    assert (len(splits["train"].images), len(splits["test"].images)) == (60, 30)
    whole = load(card)
    assert {name: (len(split.images), len(split.captions)) for name, split in whole.items()} == {
        name: (expected.images, expected.captions) for name, expected in card.expected.items()
    }
    refused(lambda: load(card, sead=1), "data set scenes", "did you mean `seed`?")


def test_options_of_a_card_of_scenes_are_checked_with_their_line(tmp_path):
    text = OWN.split("files:")[0].replace("karpathy", "scenes") + "options:\n  sead: 3\n"
    refused(lambda: load_card(own_card(tmp_path, text)), "mine.yaml:8: key `options.sead` is unknown", "`seed`?")
