"""Cutting a set anew: by a list, by seeded shares, by folds; and the identity of trials on such cuts."""

import json

import numpy as np
import pytest
from cli_calls import small_set
from data_files import item, write_json, write_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT, refused, shared_path

from petlbench.datasets.load import load
from petlbench.datasets.options import KarpathyOptions, PrecompOptions, SplitOptions
from petlbench.datasets.readers.karpathy import read_karpathy
from petlbench.datasets.registry import load_card, options_model
from petlbench.datasets.splits import merged, recut
from petlbench.harness.experiment import load_experiment
from petlbench.harness.parts import assemble
from petlbench.harness.plan import make_plan
from petlbench.harness.spec import with_hashes, without_hashes
from petlbench.harness.trial import run_trial
from petlbench.leaderboard.board import build_board


def names(split):
    return [image.name for image in split.images]


def made(folder, train=10, val=2, test=3, captions=("x {}", "y {}")):
    parts = [*["train"] * train, *["val"] * val, *["test"] * test]
    items = [item(f"p_{n:02d}.jpg", part, [c.format(n) for c in captions]) for n, part in enumerate(parts)]
    return read_karpathy(write_json(folder, items), folder, KarpathyOptions(labels="prefix"))


def sizes(splits):
    return {name: len(split.images) for name, split in splits.items()}


def test_nothing_asked_for_changes_nothing(tmp_path):
    splits = made(tmp_path)
    assert recut(splits, KarpathyOptions(), "set") == splits


def test_a_list_of_validation_pictures(tmp_path):
    splits = made(tmp_path)
    listed = tmp_path / "val.txt"
    listed.write_text("p_07.jpg\np_11.jpg\np_00.jpg\n")
    cut = recut(splits, SplitOptions(val_list=str(listed)), "set")
    assert names(cut["val"]) == ["p_07.jpg", "p_11.jpg", "p_00.jpg"], "in the order of the list"
    assert names(cut["train"]) == [f"p_{n:02d}.jpg" for n in (1, 2, 3, 4, 5, 6, 8, 9, 10)]
    assert cut["val"].captions[:2] == ("x 7", "y 7") and cut["test"] is splits["test"]
    assert cut["val"].classes == ("p",)
    for line, told in (
        ("p_99.jpg", "no picture of train or val"),
        ("p_13.jpg", "a picture of the test split"),
        ("p_07.jpg", "already listed on line 1"),
    ):
        listed.write_text(f"p_07.jpg\n{line}\n")
        refused(lambda: recut(splits, SplitOptions(val_list=str(listed)), "set"), f"{listed}:2", told)
    listed.write_text("")
    refused(lambda: recut(splits, SplitOptions(val_list=str(listed)), "set"), "lists none of the 12")
    refused(lambda: recut(splits, SplitOptions(val_list="no.txt"), "set"), "no.txt", "not found")


def test_shares_of_a_set_without_splits(tmp_path):
    splits = made(tmp_path, train=20, val=0, test=0)
    cut = recut(splits, SplitOptions(val_share=0.1, test_share=0.2, val_seed=5), "set")
    assert sizes(cut) == {"train": 14, "val": 2, "test": 4}
    assert (
        cut["test"].sha256
        == recut(splits, SplitOptions(val_share=0.1, test_share=0.2, val_seed=5), "set")["test"].sha256
    )
    other = recut(splits, SplitOptions(val_share=0.1, test_share=0.2, val_seed=6), "set")
    assert set(names(other["test"])) != set(names(cut["test"]))
    refused(lambda: recut(made(tmp_path), SplitOptions(test_share=0.2), "set"), "has a test split", "fold=K/N")
    kept = recut(made(tmp_path, test=0), SplitOptions(test_share=0.3), "set")
    assert sizes(kept) == {"train": 7, "val": 2, "test": 3}, "val stays where only test is cut off"


@given(st.integers(6, 40), st.integers(3, 6), st.integers(0, 99), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_every_picture_is_tested_in_one_fold(tmp_path_factory, count, of, seed, shared):
    folder = tmp_path_factory.mktemp("set")
    items = [item(f"p_{n}.jpg", "train", [f"sentence {n // shared}"]) for n in range(count)]
    splits = read_karpathy(write_json(folder, items), folder)
    tested, shape = [], SplitOptions(fold=f"1/{of}", fold_seed=seed)
    for part in range(1, of + 1):
        cut = recut(splits, shape.model_copy(update={"fold": f"{part}/{of}"}), "set")
        assert sum(sizes(cut).values()) == count
        assert not set(names(cut["test"])) & {*names(cut["train"]), *names(cut["val"])}
        assert abs(len(cut["test"].images) - count / of) < 1
        tested += names(cut["test"])
    assert sorted(tested) == sorted(f"p_{n}.jpg" for n in range(count))


def test_folds_do_not_follow_the_order_of_the_file(tmp_path):
    items = [item(f"p_{n}.jpg", captions=[f"s {n}"]) for n in range(12)]
    rule = KarpathyOptions(fold="2/4", fold_seed=3)
    there = recut(read_karpathy(write_json(tmp_path, items), tmp_path), rule, "set")
    back = recut(read_karpathy(write_json(tmp_path, items[::-1]), tmp_path), rule, "set")
    assert {part: set(names(split)) for part, split in there.items()} == {
        part: set(names(split)) for part, split in back.items()
    }


def test_the_validation_fold_of_one_is_the_test_fold_of_the_next(tmp_path):
    splits = made(tmp_path)
    cuts = [recut(splits, SplitOptions(fold=f"{part}/5"), "set") for part in range(1, 6)]
    for part in range(5):
        assert names(cuts[part]["val"]) == names(cuts[(part + 1) % 5]["test"])


def test_groups_are_not_torn_apart(tmp_path):
    items = [item(f"p_{n}.jpg", captions=[f"shared {n // 3}", f"own {n}"]) for n in range(18)]
    for n in range(18):
        write_picture(tmp_path / f"p_{n}.jpg", seed=n % 9)  # n and n + 9 are one picture
    splits = read_karpathy(write_json(tmp_path, items), tmp_path)
    for rule, group in (("caption", lambda n: n // 3), ("picture", lambda n: n % 9), ("both", lambda n: n // 3 % 3)):
        for options in ({"fold": "1/3"}, {"val_share": 0.34}):
            cut = recut(splits, SplitOptions(groups=rule, **options), "set")
            homes = {}
            for part, split in cut.items():
                for name in names(split):
                    homes.setdefault(group(int(name[2:-4])), set()).add(part)
            assert all(len(parts) == 1 for parts in homes.values()), (rule, options, homes)
    same = [item(f"p_{n}.jpg", captions=["the same"]) for n in range(9)]
    splits = read_karpathy(write_json(tmp_path, same), tmp_path)
    refused(
        lambda: recut(splits, SplitOptions(fold="1/3", groups="caption"), "set"),
        "1 groups",
        "largest of 9",
        "fewer parts",
    )


def test_names_must_be_distinct(tmp_path):
    splits = made(tmp_path)
    refused(lambda: merged([splits["train"], splits["train"]], "set"), "set: two pictures are named 'p_00.jpg'")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fold": "3/2"}, "expected K/N"),
        ({"fold": "1/2"}, "N at least 3"),
        ({"fold": "0/5"}, "expected K/N"),
        ({"fold": "1/5", "val_share": 0.2}, "val_share and fold cut the set in different ways"),
        ({"fold": "1/5", "val_list": "a"}, "val_list and fold"),
        ({"groups": "caption"}, "groups is heeded by"),
        ({"val_share": 0.5, "test_share": 0.5}, "nothing to train on"),
    ],
)
def test_rules_that_contradict_each_other(tmp_path, options, told):
    small_set(tmp_path)
    refused(lambda: load(tmp_path / "files", **options), told)


def test_the_text_layout_gives_its_own_cut_up_for_another(tmp_path):
    assert not PrecompOptions().recut and PrecompOptions(fold="1/5").recut
    root = shared_path("data", "annotations", "precomp", "ucm_precomp")
    listed = tmp_path / "val.txt"
    listed.write_text("".join(f"{n}.tif\n" for n in (5, 3)))
    cut = load("ucm-precomp", root, val_list=str(listed))
    assert names(cut["val"]) == ["5.tif", "3.tif"] and len(cut["train"].images) == 1888
    assert cut["val"].sha256 == load("ucm-precomp", root, val_images=str(listed))["val"].sha256
    assert sizes(load("ucm-precomp", root, fold="1/5", groups="caption")) == {"train": 1260, "val": 420, "test": 420}


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("rsicd", ["farmland_213.jpg", "commercial_74.jpg", "square_306.jpg"]),
        ("rsitmd", ["port_3104.tif", "pond_3002.tif", "forest_1831.tif"]),
        ("ucm", ["270.tif", "890.tif", "777.tif"]),
    ],
)
def test_the_seeded_fifth_of_any_layout_is_the_legacy_one(name, first):
    root = shared_path("data", "annotations", "precomp", f"{name}_precomp")
    whole = load(f"{name}-precomp", root, val_share=0, blank="keep")
    cut = recut(whole, SplitOptions(val_share=0.2), "set")
    assert names(cut["val"])[:3] == first
    legacy = load(f"{name}-precomp", root, blank="keep")
    assert [cut[part].sha256 for part in cut] == [legacy[part].sha256 for part in cut]


@pytest.mark.parametrize(("name", "counts"), [("rsicd", (7862, 1966)), ("rsitmd", (3435, 856))])
def test_the_fixed_lists_cut_any_layout_alike(name, counts):
    listed = shared_path("data", "annotations", f"{name}_fixed_val_images.txt")
    text = load(
        f"{name}-precomp",
        shared_path("data", "annotations", "precomp", f"{name}_precomp"),
        val_list=str(listed),
        blank="keep",
    )
    assert (len(text["train"].images), len(text["val"].images)) == counts
    pir = load(name, shared_path("data", "annotations", "json"), format="pir-json")
    assert set(names(pir["val"])) == set(names(text["val"]))
    if name == "rsicd":
        other = load("rsicd", shared_path("data", "rsicd"), val_list=str(listed))
        assert other["val"].sha256 == text["val"].sha256 and set(names(other["train"])) == set(names(text["train"]))


# The identity of trials


def planned(tmp_path, *sets, dataset=None, methods=("zero_shot",)):
    card, root = (tmp_path / "toyset.yaml", tmp_path / "files")
    if not root.exists():
        small_set(tmp_path)
    given = [f"dataset.toyset.{one}" for one in sets]
    experiment = load_experiment(
        None,
        [f"dataset.toyset.root={root}", *given] if dataset is None else list(sets),
        methods=list(methods),
        datasets=[str(dataset or card)],
        seeds=[0],
        results=str(tmp_path / "results"),
    )
    plan = make_plan(experiment)
    return plan.planned[0].trial, plan


def test_specs_of_published_splits_keep_their_identity():
    """Every record in version control names its data set exactly as a plan would today."""
    seen = 0
    for path in sorted((ROOT / "results").glob("*/*/*.json")):
        told = json.loads(path.read_text(encoding="utf-8")).get("spec", {}).get("dataset")
        if told is None or told["name"] not in ("ucm", "rsicd", "scenes"):
            continue
        options, hashes = without_hashes(told["options"])
        card = load_card(told["name"])
        resolved = options_model(card.format).model_validate({**card.options, **options}).model_dump(mode="json")
        assert with_hashes(resolved, hashes) == told["options"], path.name
        seen += 1
    assert seen > 50


def test_a_cut_is_in_the_spec_and_the_trial_makes_it_again(tmp_path):
    published, _ = planned(tmp_path)
    assert not set(published.spec.dataset.options) & set(SplitOptions.model_fields)
    trial, _ = planned(tmp_path, "fold=2/3", "groups=caption")
    assert trial.spec.dataset.options["fold"] == "2/3" and trial.spec.spec_id != published.spec.spec_id
    parts = assemble(trial)
    assert {name: split.sha256 for name, split in parts.splits.items()} == trial.spec.dataset.options["splits"]
    listed = tmp_path / "some" / "val.txt"
    listed.parent.mkdir()
    listed.write_text("park_0.jpg\n")
    trial, _ = planned(tmp_path, f"val_list={listed}")
    assert trial.spec.dataset.options["val_list"] == "val.txt" and trial.paths.dataset_paths["val_list"] == str(listed)
    assert [i.name for i in assemble(trial).splits["val"].images] == ["park_0.jpg"]


def test_names_of_further_splits_reach_the_trial(tmp_path):
    small_set(tmp_path)
    path = tmp_path / "files" / "set.json"
    data = json.loads(path.read_text())
    data["images"][0]["split"] = "extra"
    path.write_text(json.dumps(data))
    trial, _ = planned(tmp_path, "splits={extra: drop}")
    assert trial.spec.dataset.options["split_names"] == {"extra": "drop"}
    assert len(assemble(trial).splits["train"].images) == 7


def test_a_folder_without_a_card_is_planned_and_told(tmp_path):
    small_set(tmp_path)
    trial, plan = planned(tmp_path, dataset=tmp_path / "files")
    assert trial.spec.dataset.name == "files" and trial.spec.dataset.options["format"] == "karpathy"
    assert plan.notes == [
        "files: read as karpathy: set.json has the list `images` with `filename` and `sentences`; pictures in pictures/"
    ]
    assert assemble(trial).splits["train"].sha256 == trial.spec.dataset.options["splits"]["train"]
    again, _ = planned(tmp_path, "dataset.files.fold=1/3", dataset=tmp_path / "files")
    assert again.spec.dataset.options["fold"] == "1/3"


def test_a_set_without_a_split_says_how_to_cut_it(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "captions.csv").write_text("image,caption\n" + "".join(f"{n}.jpg,c {n}\n" for n in range(9)))
    with pytest.raises(Exception, match=r"has no val split.*val_share=0\.1.*fold=1/5"):
        planned(tmp_path, dataset=tmp_path / "files")


def test_records_of_different_folds_never_share_a_table(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))
    for part in ("1/3", "2/3"):
        trial, _ = planned(tmp_path, f"fold={part}")
        assert run_trial(trial).status == "ok"
    tables = build_board(tmp_path / "results").tables
    assert len(tables) == 2 and all(len(table.rows) == 1 for table in tables)
    assert np.unique([row.group.setting.test_sha256 for t in tables for row in t.rows]).size == 2
