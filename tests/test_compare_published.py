"""Ours beside theirs: a difference only where two numbers may be compared, and a word on all that stands between."""

import dataclasses
import inspect

import pytest
from cli_calls import call
from factories import edit, make_ranks, put_failed, put_record, reranks

from petlbench.harness.cli.compare_published import compare_published
from petlbench.leaderboard.compare import TOLERANCE, compare
from petlbench.leaderboard.group import group_entries
from petlbench.leaderboard.load import METRICS, load_records
from petlbench.leaderboard.published import declared, load_published
from petlbench.methods.base import Published

ROWS = load_published()
OPENAI = {"architecture": "ViT-B-32-quickgelu", "source": "ViT-B-32-quickgelu:openai"}


def like_theirs(backbone=None, trained=161_088, more=None):
    """As ``change``: a record that meets PE-RSITR's row of MRS-Adapter on UCM in all that is stated."""

    def change(payload):
        payload["backbone"].update(OPENAI, **(backbone or {}))
        payload["params"]["trained"] = trained
        splits = payload["data"]["splits"]
        splits["train"] = {**splits["train"], "images": 1512, "captions": 7560}
        splits["val"] = {**splits["train"], "images": 378, "captions": 1890, "sha256": "c" * 64}
        if more:
            more(payload)

    return change


def put(
    root, skill=2.1, seeds=(0, 1, 2), *, method="mrs_adapter", dataset="ucm-precomp", change=None, images=210, **kwargs
):
    for seed in seeds:
        put_record(
            root,
            make_ranks(skill, seed, images=images),
            method=method,
            dataset=dataset,
            seed=seed,
            change=change or like_theirs(),
            **kwargs,
        )


def pairs(root, **kwargs):
    return compare(ROWS, group_entries(load_records(root).entries), **kwargs)


def the_pair(root, method="mrs_adapter", dataset="ucm", **kwargs):
    (pair,) = pairs(root, methods=[method], datasets=[dataset], **kwargs)
    return pair


def whats(pair, blocks):
    return [gap.what for gap in pair.gaps if gap.blocks == blocks]


def test_two_numbers_of_one_setting_have_a_difference(tmp_path):
    put(tmp_path)
    pair = the_pair(tmp_path)
    entries = load_records(tmp_path).entries
    mean = sum(entry.record.metrics["test"].recalls["mR"] for entry in entries) / 3
    theirs = (22.71 + 55.81 + 80.33 + 18.82 + 62.84 + 93.72) / 6
    assert pair.comparable and set(pair.difference) == set(METRICS)
    assert pair.difference["mR"] == pytest.approx(mean - theirs)
    assert pair.difference["t2i_r10"] == pytest.approx(pair.ours.mean["t2i_r10"] - 93.72)
    assert whats(pair, True) == []
    # What theirs does not state or does in another way is said even so.
    assert whats(pair, False) == ["selection", "seeds", "ties"]


def test_the_tolerance_is_on_mr_and_both_sides_of_it_are_said(tmp_path):
    put(tmp_path)
    by = abs(the_pair(tmp_path).difference["mR"])
    inside, outside = (the_pair(tmp_path, tolerance=by + step) for step in (0.001, -0.001))
    assert (inside.within, outside.within) == (True, False)
    assert f"within the tolerance of {inside.tolerance:g} points" in inside.verdict
    assert "outside the tolerance" in outside.verdict


@pytest.mark.parametrize(
    ("backbone", "what"),
    [
        ({"architecture": "ViT-B-16"}, "backbone"),
        ({"source": "ViT-B-32:laion2b_s34b_b79k"}, "weights"),
        ({"activation": "gelu"}, "activation"),
        ({"resolution": 112}, "resolution"),
    ],
)
def test_another_backbone_never_gives_a_bare_difference(tmp_path, backbone, what):
    put(tmp_path, change=like_theirs(backbone))
    pair = the_pair(tmp_path)
    assert whats(pair, True) == [what]
    assert (pair.comparable, pair.difference, pair.within) == (False, None, None)
    assert pair.verdict == f"not comparable: {what}"


def test_another_test_split_is_not_comparable(tmp_path):
    put(tmp_path, images=110)
    pair = the_pair(tmp_path)
    assert whats(pair, True) == ["test split"] and pair.difference is None
    (gap,) = [gap for gap in pair.gaps if gap.what == "test split"]
    assert gap.line == "test split: theirs 210 images, 1,050 captions; ours 110 images, 550 captions"


def test_other_files_and_other_cuts_of_train_are_said(tmp_path):
    def cut(payload):
        payload["data"]["splits"]["train"]["images"] = 1680
        payload["data"]["splits"]["val"]["images"] = 210

    put(tmp_path, dataset="ucm", change=like_theirs(more=cut))
    pair = the_pair(tmp_path)
    assert pair.comparable
    lines = [gap.line for gap in pair.gaps]
    assert "files of the data set: theirs those of the card ucm-precomp; ours ucm" in lines
    assert "train split: theirs 1,512 images; ours 1,680 images" in lines
    assert "val split: theirs 378 images; ours 210 images" in lines


def test_another_form_of_the_method_shows_in_its_size(tmp_path):
    put(tmp_path, change=like_theirs(trained=1_933_056))
    lines = [gap.line for gap in the_pair(tmp_path).gaps]
    assert "trained parameters: theirs 0.16M; ours 1.93 M" in lines


def test_new_heads_are_told_apart_from_what_the_printed_size_counts(tmp_path):
    def heads(payload):
        payload["params"].update(trained=1_014_592, trained_new_heads=853_504)

    put(tmp_path, change=like_theirs(more=heads))
    lines = [gap.line for gap in the_pair(tmp_path).gaps]
    assert "trained parameters: theirs 0.16M; ours 161.1 K, and 853.5 K in new heads" in lines


def test_an_unknown_number_of_captions_is_not_comparable(tmp_path):
    put(tmp_path, method="cup")
    lines = [gap.line for gap in the_pair(tmp_path, "cup").gaps if gap.blocks]
    assert "test split: theirs 210 images, captions not stated; ours 210 images, 1,050 captions" in lines


def test_a_label_does_not_repeat_what_the_backbone_says(tmp_path):
    def joint(payload):
        payload["spec"]["backbone"] = {"name": "vits14-minilm-joint", "options": {"weights": "sha256:" + "a" * 64}}
        payload["backbone"]["resolution"] = 112

    put(tmp_path)
    put(tmp_path, change=like_theirs(more=joint), backbone="vits14-minilm-joint")
    labels = {(p.ours.label, p.ours.backbone) for p in pairs(tmp_path, methods=["mrs_adapter"], datasets=["ucm"])}
    assert {label for label, _ in labels} == {"mrs_adapter"} and len(labels) == 2


def test_the_best_epoch_on_test_is_told_from_one_chosen_on_validation(tmp_path):
    put(tmp_path / "val", method="harma", dataset="rsicd", images=1093, seeds=(0,))
    put(tmp_path / "max", method="harma", dataset="rsicd", images=1093, seeds=(0,), rule="test_max")
    for folder, said in (("val", True), ("max", False)):
        released = [
            p for p in pairs(tmp_path / folder, methods=["harma"]) if p.published.row.method == "HarMA, CLIP ViT-B/32"
        ]
        lines = [gap.line for pair in released if pair.ours for gap in pair.gaps]
        assert lines
        assert ("selection: theirs best epoch on test; ours best epoch on validation" in lines) == said


def test_the_tie_rule_comes_with_what_it_can_move(tmp_path):
    put(tmp_path)
    (gap,) = [gap for gap in the_pair(tmp_path).gaps if gap.what == "ties"]
    assert gap.theirs == "higher index first, by an unstable sort"
    assert gap.ours.startswith("index (our mR is ") and gap.ours.endswith(" over all rules)")


def test_a_shortlist_is_said(tmp_path):
    shorten = reranks()
    put(tmp_path, change=like_theirs(more=shorten))
    assert "scoring" in whats(the_pair(tmp_path), False)


def test_a_row_trained_on_more_is_not_comparable_with_one_set(tmp_path):
    put(tmp_path, method="full_finetune", dataset="rsicd", images=1093, seeds=(0,))
    (pair,) = [
        p for p in pairs(tmp_path, methods=["full_finetune"]) if p.published.row.backbone == "CLIP B/32" and p.ours
    ]
    assert "training data" in whats(pair, True) and pair.published.row.tuned_on == "RET-3"


def test_a_backbone_that_is_not_stated_is_not_comparable(tmp_path):
    put(tmp_path, method="pir", dataset="rsicd", images=1093, seeds=(0,))
    (pair,) = [p for p in pairs(tmp_path, methods=["pir"], datasets=["rsicd"]) if p.published.file == "rrsitr"]
    assert whats(pair, True) == ["backbone"] and "not stated" in pair.gaps[0].theirs


def test_where_nothing_is_trained_training_does_not_differ(tmp_path):
    def untrained(payload):
        payload["params"]["trained"] = 0
        payload["selection"] = {"rule": "none", "epoch": 0, "val_mR": None}

    put(tmp_path, seeds=(0,), method="zero_shot", change=like_theirs(more=untrained))
    pair = the_pair(tmp_path, "zero_shot")
    assert pair.comparable and whats(pair, False) == ["ties"]


def test_what_has_no_record_comes_once_without_ours(tmp_path):
    put(tmp_path)
    found = pairs(tmp_path, methods=["convpass"])
    assert [p.ours for p in found] == [None] * 3
    assert {p.verdict for p in found} == {"no finished record of ours"}


def test_a_failed_trial_is_no_number(tmp_path):
    put_failed(tmp_path, method="mrs_adapter", dataset="ucm-precomp")
    assert the_pair(tmp_path).ours is None


def test_a_row_of_a_plugin_is_comparable_once_it_states_backbone_and_split(tmp_path):
    put(tmp_path, method="mine")
    row = Published("ucm", "Me, Tab. 1", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), trainable="0.16M")
    backbone = {
        "architecture": "ViT-B-32",
        "sources": ["ViT-B-32*:openai"],
        "activation": "quick_gelu",
        "resolution": 224,
    }
    split = {"test_images": 210, "test_captions": 1050}
    groups = group_entries(load_records(tmp_path).entries)
    for stated, missing in (
        ({"backbone": backbone, "split": split}, []),
        ({"backbone": backbone}, ["test split"]),
        ({"split": split}, ["backbone"]),
        ({"backbone": {**backbone, "activation": None}, "split": split}, ["activation"]),
    ):
        (pair,) = compare(declared("mine", "Mine", [dataclasses.replace(row, **stated)]), groups)
        assert whats(pair, True) == missing and pair.comparable == (not missing)


# The verb


def test_its_default_tolerance_is_the_stated_one():
    assert inspect.signature(compare_published).parameters["tolerance"].default == TOLERANCE


def test_it_prints_both_sides_the_difference_and_the_protocol(tmp_path):
    put(tmp_path)
    done = call("compare-published", "mrs_adapter", "-d", "ucm", "--results", tmp_path, "--tolerance", "60")
    assert done.code == 0, done
    flat = " ".join(done.out.split())
    assert (
        "mrs_adapter on ucm" in flat and "PE-RSITR, Tab. III 22.71 55.81 80.33 18.82 62.84 93.72 55.71 ? 0.16M" in flat
    )
    assert "difference, points" in flat and "within the tolerance of 60 points" in flat
    assert "- selection: theirs not stated; ours best epoch on validation" in flat
    assert "- seeds: theirs not stated; ours 3" in flat


def test_it_says_why_there_is_no_difference(tmp_path):
    put(tmp_path, change=like_theirs({"resolution": 112, "source": "mine.pt"}))
    done = call("compare-published", "mrs_adapter", "-d", "ucm", "--results", tmp_path)
    assert "1 - A: not comparable: weights and resolution" in done.out and "difference, points" not in done.out
    assert (
        "! weights: theirs OpenAI; ours mine.pt" in done.out and "! resolution: theirs 224 px; ours 112 px" in done.out
    )


def test_it_says_how_epochs_were_chosen_and_what_is_known_of_the_sources(tmp_path):
    out = " ".join(call("compare-published", "pir", "harma", "-d", "rsicd", "--results", tmp_path).out.split())
    assert "A, B, C: choice of the epoch: best epoch on test. The released code measures every epoch on test" in out
    assert (
        "23.66 ± 0.47" in out and "best epoch on validation. Chosen on validation, mean and standard deviation" in out
    )
    assert "D: choice of the epoch: not stated. The user had changed what issue 4 of the repository is about" in out
    assert "HarMA: Huang, Efficient" in out and "- The author's code speaks of 1 to 1.5 points between runs" in out
    assert out.count("- read in: issues of the repository") == 1


def test_a_narrow_terminal_says_what_it_leaves_out(tmp_path):
    narrow = call("compare-published", "harma", "--results", tmp_path, columns="100").out
    assert "t2i R@5" not in narrow and "R@5 and R@10 have no room here" in narrow
    wide = call("compare-published", "harma", "--results", tmp_path, columns="160").out
    assert "t2i R@5" in wide and "no room" not in wide


def test_json_has_the_same(tmp_path):
    put(tmp_path)
    payload = call("compare-published", "mrs_adapter", "--json", "--results", tmp_path, "--tolerance", "3").json
    found = {(one["dataset"], one["theirs"]["source"]): one for one in payload}
    one = found["ucm", "PE-RSITR"]
    assert one["comparable"] and one["tolerance"] == 3 and one["ours"]["seeds"] == [0, 1, 2]
    assert one["difference"]["mR"] == pytest.approx(one["ours"]["mean"]["mR"] - one["theirs"]["mR"])
    assert one["within_tolerance"] == (abs(one["difference"]["mR"]) <= 3)
    assert {"what": "seeds", "theirs": "not stated", "ours": "3", "incomparable": False} in one["protocol"]
    assert found["rsicd", "PE-RSITR"]["ours"] is None
    assert found["rsicd", "GeoRSCLIP"]["theirs"]["quoted"]
    theirs = one["theirs"]
    assert theirs["split"]["train_images"] == 1512 and "withdrawn" in theirs["selection_note"]
    assert theirs["url"].endswith("PE-RSITR") and any("half precision" in note for note in theirs["source_notes"])


def test_without_a_name_methods_without_records_are_only_listed(tmp_path):
    put(tmp_path)
    out = call("compare-published", "--results", tmp_path).out
    assert "mrs_adapter on ucm" in out and "convpass on ucm" not in out
    assert "without a finished record in this folder" in out and "convpass (rsicd, rsitmd, ucm)" in " ".join(
        out.split()
    )


def test_a_misprinted_mean_and_a_recalled_number_are_said(tmp_path):
    tmp_path.joinpath("empty").mkdir()
    out = " ".join(
        call("compare-published", "adaptformer", "-d", "rsitmd", "--results", tmp_path / "empty").out.split()
    )
    assert "the table prints mR 34.81, but its six recalls give 34.51, which is used here" in out
    out = " ".join(call("compare-published", "harma", "--results", tmp_path / "empty").out.split())
    assert "(recalled, not read)" in out and "52.27" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mrs_adaptr"], "unknown method 'mrs_adaptr'; did you mean mrs_adapter"),
        (["bitfit"], "no published row of bitfit is known; there are rows of adapter"),
        (["-d", "nwpu"], "--dataset nwpu: no published rows on it; there are rows on rsicd, rsitmd, ucm"),
        (["--results", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("results").mkdir()
    assert said in call("compare-published", *arguments).error


def test_an_unreadable_record_is_reported_and_fails_the_command(tmp_path):
    put(tmp_path)
    path = next(tmp_path.rglob("*.json"))
    edit(path, lambda payload: payload.update(status="fine"))
    done = call("compare-published", "mrs_adapter", "--results", tmp_path)
    assert done.code == 2 and path.name in done.err and "mrs_adapter on ucm" in done.out


def test_rows_of_a_plugin_join(tmp_path):
    assert call("new-method", "my_adapter", "--out", tmp_path).code == 0
    path = tmp_path / "my_adapter.py"
    text = path.read_text().replace("Preset, parameters_under", "Preset, Published, parameters_under")
    row = 'published = (Published("ucm", "Me, Tab. 1", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),)'
    path.write_text(text.replace("    def build(", f"    {row}\n\n    def build(", 1))
    tmp_path.joinpath("results").mkdir()
    done = call("compare-published", "my_adapter", "--plugin", path, "--results", tmp_path / "results")
    assert done.code == 0 and "Me, Tab. 1" in done.out and "3.50" in done.out, done
