"""Records as a shared good: a folder is checked whole, merged whole or not at all, and compared trial by trial."""

import json
import os
import shutil

import numpy as np
import pytest
from cli_calls import call
from factories import edit, make_ranks, put_failed, put_record, spec_hash, three
from support import ROOT

from petlbench.harness import record as record_module
from petlbench.harness.record import read_record
from petlbench.leaderboard import results_merge
from petlbench.leaderboard.board import write_board
from petlbench.leaderboard.results_validate import validate


def said(root, **kwargs):
    return [problem.message for problem in validate(root, **kwargs).problems]


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def older(path):
    """Turn a record into one of an invented version 0, in which training seconds lay at the top."""
    edit(path, lambda p: p.update(schema_version=0, seconds=p["cost"].pop("train_s")))


def from_zero(payload):
    cost = {**payload["cost"], "train_s": payload["seconds"]}
    return {**{k: v for k, v in payload.items() if k != "seconds"}, "cost": cost, "schema_version": 1}


@pytest.fixture
def version_zero(monkeypatch):
    monkeypatch.setitem(record_module.MIGRATIONS, 0, from_zero)


# validate


def test_what_trials_write_is_valid(tmp_path):
    three(tmp_path, 3.0)
    put_failed(tmp_path, method="vpt")
    put_record(tmp_path, backbone="ViT-B-32:openai", method="adapter")
    for name in ("a.adapter.safetensors", "README.md", ".gitignore", "step_cost.json", "board.md"):
        tmp_path.joinpath(name).write_text("{}")
    stem = next(tmp_path.glob("toyset/lora/*.json")).with_suffix("")
    stem.with_name(stem.name + ".adapter.safetensors").write_text("x")
    folder = stem.with_name(stem.name + ".adapter")
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (tmp_path / "toyset" / ".work").mkdir()
    (tmp_path / "toyset" / ".work" / "x.json").write_text("{}")
    (tmp_path / "search" / "toyset" / "lora" / "vit-x").mkdir(parents=True)
    (tmp_path / "search" / "toyset" / "lora" / "vit-x" / "0001.json").write_text('{"spec_id": "x"}')
    report = validate(tmp_path)
    assert report.problems == [] and len(report.entries) == 5


def test_committed_records_are_fit_to_be_shared():
    assert said(ROOT / "results") == []


def test_make_and_the_readme_name_the_check_of_records_and_boards():
    makefile, readme = (ROOT / "Makefile").read_text(), (ROOT / "results" / "README.md").read_text()
    assert "check-results: setup\n\t$(BIN)/benchmark results validate results --board\n" in makefile
    assert "`make check-results`" in readme
    for verb in ("benchmark results validate", "benchmark results merge", "benchmark results diff"):
        assert verb in readme


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: p["spec"].update(seed=9), "`spec_id` is"),
        (lambda p: p["metrics"]["test"]["recalls"].update(mR=1.0), "mean of the six recalls"),
        (lambda p: p.update(schema_version=7), "key `schema_version` is 7, this petlbench reads 1; upgrade petlbench"),
        (lambda p: p["method"].update(name="vpt"), "key `method.name` is 'vpt', but key `spec.method.name` is 'lora'"),
        (lambda p: p["data"].update(name="ucm"), "key `data.name` is 'ucm', but key `spec.dataset.name` is 'toyset'"),
        (lambda p: p["data"]["splits"]["test"].update(images=7), "ranks of 40 images and 200 captions, but key"),
        (lambda p: p["artifacts"].update(ranks="other.ranks.npz"), "key `artifacts.ranks` names other.ranks.npz"),
        (
            lambda p: p["metrics"]["test"]["other_rules"]["pessimistic"].update(t2i_r5=99.0),
            "`metrics.test.other_rules.pessimistic.t2i_r5` of the record says 99.0",
        ),
    ],
)
def test_a_changed_record_is_told(tmp_path, change, expected):
    path = put_record(tmp_path)
    edit(path, change)
    found = said(tmp_path)
    assert any(expected in message and str(tmp_path) in message for message in found), found


def test_every_complaint_of_the_schema_is_listed(tmp_path):
    path = put_record(tmp_path)
    edit(path, lambda p: (p["cost"].pop("train_s"), p.update(extra=1), p["params"].update(trained="many")))
    found = said(tmp_path)
    assert len(found) == 3
    for key in ("cost.train_s", "extra", "params.trained"):
        assert any(f"key `{key}`" in message for message in found), found


def test_a_spec_that_no_trial_can_have_is_told(tmp_path):
    path = put_record(tmp_path, change=lambda p: p["spec"].update(colour="red"))
    (message,) = said(tmp_path)
    assert str(path) in message and "key `spec.colour`" in message


def test_a_record_under_another_name_or_in_another_place_is_told(tmp_path):
    path = put_record(tmp_path)
    path.rename(path.with_name("mine.json"))
    assert any("its spec belongs at" in message and path.name in message for message in said(tmp_path))
    shutil.rmtree(tmp_path / "toyset")
    path = put_record(tmp_path)
    (tmp_path / "toyset" / "vpt").mkdir()
    path.rename(tmp_path / "toyset" / "vpt" / path.name)
    assert any("vpt" in message and "its spec belongs at" in message for message in said(tmp_path))


def test_ranks_are_needed_whole_and_of_the_same_trial(tmp_path):
    path = put_record(tmp_path)
    ranks = path.with_name(path.stem + ".ranks.npz")
    make_ranks(1.0, 5).save(ranks)
    assert any("the ranks give i2t_r1" in message for message in said(tmp_path))
    ranks.write_bytes(b"no archive")
    assert ["not a usable ranks file" in message for message in said(tmp_path)] == [True]
    ranks.unlink()
    assert ["are missing" in message for message in said(tmp_path)] == [True]


def test_seeds_whose_captions_belong_to_other_pictures_are_told(tmp_path):
    put_record(tmp_path, make_ranks(3.0, 0), seed=0)
    ranks = make_ranks(3.0, 1)
    order = ranks.owner[::-1].copy()
    swapped = type(ranks)(**{**vars(ranks), "owner": order})
    put_record(tmp_path, swapped, seed=1)
    (message,) = said(tmp_path)
    assert "array `owner` differs" in message and "-s0-" in message


@pytest.mark.parametrize(
    "name",
    [
        "toyset/lora/notes.txt",
        "toyset/lora/gone.ranks.npz",
        "toyset/lora/gone.adapter.safetensors",
        "toyset/read.me",
        "toyset/lora/deep/er.json",
        "misplaced.json",
        "deep/er/than/usual.json",
        "lost.ranks.npz",
    ],
)
def test_stray_files_are_told(tmp_path, name):
    put_record(tmp_path)
    stray = tmp_path / name
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_text('{"spec_id": "x"}')
    (message,) = said(tmp_path)
    assert str(stray) in message and "belongs to no record" in message


def test_links_and_leftovers_of_a_killed_write_are_told(tmp_path):
    path = put_record(tmp_path)
    leftover = path.with_name(f".{path.name}.k3x9")
    leftover.write_text("{")
    link = path.with_name("link.json")
    link.symlink_to(path)
    found = said(tmp_path)
    assert any(str(leftover) in message and "interrupted" in message for message in found)
    assert any(str(link) in message and "is a link" in message for message in found)


def test_a_name_that_leaves_the_folder_is_told(tmp_path):
    path = put_record(tmp_path, method="..", with_ranks=False)
    assert path.resolve().parent == tmp_path.resolve()  # what a record of that name would do
    inside = tmp_path / "r" / "toyset" / "lora" / path.name
    inside.parent.mkdir(parents=True)
    shutil.move(path.resolve(), inside)
    assert any("is no name of a folder" in message for message in said(tmp_path / "r"))


def test_the_board_is_checked_on_demand(tmp_path):
    three(tmp_path, 3.0)
    assert any("there is no board" in message for message in said(tmp_path, board=True))
    write_board(tmp_path, tmp_path)
    assert said(tmp_path, board=True) == []
    put_record(tmp_path, seed=7)
    assert {message.split(":")[0] for message in said(tmp_path, board=True)} == {
        str(tmp_path / name) for name in ("board.md", "board.csv", "board.html")
    }


@pytest.mark.parametrize("name", ["html", "pairs", "parquet"])
def test_every_format_of_the_board_is_checked(tmp_path, name):
    three(tmp_path, 3.0)
    three(tmp_path, 2.0, 5, method="prompt")
    (path,) = write_board(tmp_path, tmp_path, formats=[name])
    assert said(tmp_path, board=True) == []
    path.write_bytes(path.read_bytes().replace(b"lora", b"loro"))
    (message,) = said(tmp_path, board=True)
    assert message.startswith(f"{path}: is not what the records produce")


def test_a_page_with_plots_is_checked_beside_them(tmp_path):
    three(tmp_path, 3.0)
    assert call("leaderboard", "--results", tmp_path, "--plots").code == 0
    page = tmp_path / "board.html"
    assert "<figure>" in page.read_text() and said(tmp_path, board=True) == []
    page.write_text(page.read_text().replace('width="120"', "").replace("Mean recall against", "Against"))
    assert [message.split(":")[0] for message in said(tmp_path, board=True)] == [str(page)]


def test_older_records_count_and_are_counted(tmp_path, version_zero):
    path = put_record(tmp_path)
    older(path)
    report = validate(tmp_path)
    assert report.ok and report.migrated == {path.relative_to(tmp_path).as_posix(): 0}
    done = call("results", "validate", tmp_path)
    assert done.code == 0 and "1 readable records (1 finished, 1 of an older schema version); no problem" in done.out


def test_the_verb_lists_every_problem_and_exits_with_1(tmp_path):
    one, two = put_record(tmp_path, seed=0), put_record(tmp_path, seed=1)
    edit(one, lambda p: p.update(extra=1))
    two.with_name(two.stem + ".ranks.npz").unlink()
    done = call("results", "validate", tmp_path)
    assert done.code == 1 and one.name in done.err and two.name in done.err and "Traceback" not in done.err
    assert "1 readable records (1 finished); 2 problems" in done.out
    payload = call("results", "validate", tmp_path, "--json").json
    assert (payload["ok"], payload["records"], len(payload["problems"])) == (False, 1, 2)
    assert "no such folder" in call("results", "validate", tmp_path / "nowhere").error


# merge


def test_records_of_others_come_in_with_their_ranks_byte_by_byte(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    three(mine, 3.0)
    three(theirs, 4.0, method="vpt")
    shutil.copytree(mine / "toyset" / "lora", theirs / "toyset" / "lora")
    before = files(mine)
    done = call("results", "merge", theirs, "--into", mine, "--dry-run")
    assert done.code == 0 and "3 would be added, 0 would be replaced, 3 there already" in done.out
    assert files(mine) == before
    done = call("results", "merge", theirs, "--into", mine)
    assert done.code == 0 and "3 added, 0 replaced, 3 there already, 0 left out" in done.out, done
    assert files(mine) == files(theirs) and validate(mine).ok
    assert "0 added, 0 replaced, 6 there already" in call("results", "merge", theirs, "--into", mine).out


def test_several_folders_go_into_a_new_one(tmp_path):
    three(tmp_path / "a", 3.0)
    three(tmp_path / "b", 3.0)
    put_record(tmp_path / "b", seed=8)
    done = call("results", "merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "new" / "folder")
    assert done.code == 0 and "4 added, 0 replaced, 3 there already" in done.out
    assert len(validate(tmp_path / "new" / "folder").entries) == 4


def test_another_result_of_the_same_trial_is_refused_and_nothing_is_merged(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    path = put_record(mine, make_ranks(3.0, 0))
    put_record(theirs, make_ranks(3.0, 1))  # the same spec, other ranks
    put_record(theirs, seed=5)
    before = files(mine)
    for options in ((), ("--dry-run",)):
        done = call("results", "merge", theirs, "--into", mine, *options)
        assert done.code == 1 and "Traceback" not in done.err
        assert str(path) in done.err and "metrics.test.recalls." in done.err and "more keys" in done.err
        assert "Nothing was merged" in done.err and "added" not in done.out
        assert files(mine) == before


def test_equal_recalls_of_other_ranks_are_a_conflict_too(tmp_path):
    ranks = make_ranks(3.0, 0)
    put_record(tmp_path / "a", ranks)
    worst = np.where(ranks.t2i_index < ranks.images - 1, ranks.t2i_index, 0).argmax()
    moved = {name: values.copy() for name, values in vars(ranks).items() if values is not None}
    for name in ("t2i_greater", "t2i_index", "t2i_duplicate"):
        moved[name][worst] += 1  # beyond rank 10 already, so no recall changes
    assert 10 <= ranks.t2i_index[worst] < ranks.images - 1
    put_record(tmp_path / "b", type(ranks)(**moved))
    done = call("results", "merge", tmp_path / "b", "--into", tmp_path / "a")
    assert done.code == 1 and "its ranks differ" in done.err, done


def test_the_same_result_on_another_machine_is_there_already(tmp_path):
    put_record(tmp_path / "a")
    put_record(
        tmp_path / "b", change=lambda p: (p["cost"].update(train_s=99.0, device="gpu"), p["provenance"].update(host=1))
    )
    done = call("results", "merge", tmp_path / "b", "--into", tmp_path / "a")
    assert done.code == 0 and "0 added, 0 replaced, 1 there already" in done.out


def test_a_finished_record_replaces_a_failed_one_and_not_the_reverse(tmp_path):
    put_failed(tmp_path / "failed")
    path = put_record(tmp_path / "ok")
    shutil.copytree(tmp_path / "failed", tmp_path / "into")
    done = call("results", "merge", tmp_path / "ok", "--into", tmp_path / "into")
    assert done.code == 0 and "(was failed)" in done.out and files(tmp_path / "into") == files(tmp_path / "ok")
    done = call("results", "merge", tmp_path / "failed", "--into", tmp_path / "ok")
    assert done.code == 0 and "left out" in done.out and "1 left out" in done.out
    assert read_record(path).status == "ok"


@pytest.mark.parametrize("broken", ["theirs", "mine"])
def test_a_folder_that_does_not_validate_is_not_merged(tmp_path, broken):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    put_record(mine)
    put_record(theirs, seed=3)
    path = next((tmp_path / broken).rglob("*.json"))
    edit(path, lambda p: p.update(extra=1))
    before = files(mine)
    done = call("results", "merge", theirs, "--into", mine)
    assert done.code == 1 and "does not validate" in done.err and str(path) in done.err and files(mine) == before


def test_a_merge_that_fails_half_way_leaves_everything_as_it_was(tmp_path, monkeypatch):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    put_failed(mine, seed=1)
    three(theirs, 3.0)
    before, real, calls = files(mine), results_merge.write_atomically, []

    def full(path, payload):
        calls.append(path)
        if len(calls) == 5:
            raise OSError(28, "No space left on device", str(path))
        real(path, payload)

    monkeypatch.setattr(results_merge, "write_atomically", full)
    done = call("results", "merge", theirs, "--into", mine)
    assert "No space left on device" in done.error and files(mine) == before
    monkeypatch.undo()
    assert call("results", "merge", theirs, "--into", mine).code == 0


def test_an_older_record_goes_in_as_of_the_current_version(tmp_path, version_zero):
    path = put_record(tmp_path / "old")
    expected = read_record(path)
    older(path)
    assert call("results", "merge", tmp_path / "old", "--into", tmp_path / "new").code == 0
    written = tmp_path / "new" / path.relative_to(tmp_path / "old")
    assert json.loads(written.read_text())["schema_version"] == 1 and read_record(written) == expected
    edit(path, lambda p: p.update(schema_version=4))
    done = call("results", "merge", tmp_path / "old", "--into", tmp_path / "new")
    assert done.code == 1 and "key `schema_version` is 4, this petlbench reads 0, 1; upgrade petlbench" in done.err


def test_two_trials_of_one_name_are_a_conflict(tmp_path, monkeypatch):
    mine, theirs = put_record(tmp_path / "a"), put_record(tmp_path / "b", options={"rank": 4})
    # Eight hexadecimal digits agree by chance once in four thousand million; make all names agree instead.
    same = lambda root, spec, spec_id: root / "toyset" / "lora" / "same.json"  # noqa: E731
    monkeypatch.setattr(results_merge, "record_path", same)
    assert mine.name != theirs.name
    done = call("results", "merge", tmp_path / "b", "--into", tmp_path / "a")
    assert (
        done.code == 1 and "has the name same.json" in done.err and spec_hash(read_record(mine).spec)[:16] in done.err
    )


# diff


def test_equal_folders_are_equal(tmp_path):
    three(tmp_path / "a", 3.0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    done = call("results", "diff", tmp_path / "a", tmp_path / "b")
    assert done.code == 0 and "0 differ, 3 equal" in done.out
    assert call("results", "diff", tmp_path / "a", tmp_path / "b", "--json").json["equal"] is True


def test_it_says_what_only_one_has_and_by_how_much_shared_trials_differ(tmp_path):
    one, two = make_ranks(3.0, 0), make_ranks(3.0, 11)
    put_record(tmp_path / "a", one)
    put_record(tmp_path / "b", two)
    only = [put_record(tmp_path / side, seed=seed) for side, seed in (("a", 4), ("b", 5))]
    done = call("results", "diff", tmp_path / "a", tmp_path / "b")
    assert done.code == 1 and all(path.name in done.out for path in only) and "1 only in" in done.out
    payload = call("results", "diff", tmp_path / "a", tmp_path / "b", "--json").json
    ((trial,), shared) = payload["differing"], payload["shared"]
    a, b = (read_record(next((tmp_path / s).glob("toyset/lora/*-s0-*.json"))).metrics["test"].recalls for s in "ab")
    assert shared == 1 and trial["difference"] == pytest.approx({metric: b[metric] - a[metric] for metric in a})
    assert [name.split("/")[-1] for name in (*payload["only_a"], *payload["only_b"])] == [path.name for path in only]
    largest = max(abs(change["a"] - change["b"]) for change in trial["changes"])
    for tolerance, equal in ((largest + 1e-9, 1), (largest - 1e-6, 0)):
        arguments = ("results", "diff", tmp_path / "a", tmp_path / "b", "--tolerance", str(tolerance), "--json")
        assert len(call(*arguments).json["differing"]) == 1 - equal


def test_other_data_or_another_status_is_a_difference_at_any_tolerance(tmp_path):
    put_record(tmp_path / "a")
    put_record(tmp_path / "b", change=lambda p: p["data"]["splits"]["train"].update(sha256="d" * 64))
    done = call("results", "diff", tmp_path / "a", tmp_path / "b", "--tolerance", "100")
    assert done.code == 1 and "data.splits.train.sha256" in done.out
    put_failed(tmp_path / "c")
    done = call("results", "diff", tmp_path / "a", tmp_path / "c", "--tolerance", "100")
    assert done.code == 1 and "status: 'ok' against 'failed'" in done.out


def test_cost_and_provenance_are_not_compared(tmp_path):
    put_record(tmp_path / "a")
    put_record(tmp_path / "b", change=lambda p: (p["cost"].update(train_s=99.0), p["provenance"].update(git="1" * 40)))
    assert call("results", "diff", tmp_path / "a", tmp_path / "b").code == 0


def test_an_unreadable_record_fails_the_comparison(tmp_path):
    put_record(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    edit(next((tmp_path / "b").rglob("*.json")), lambda p: p.update(status="fine"))
    done = call("results", "diff", tmp_path / "a", tmp_path / "b")
    assert done.code == 2 and "key `status`" in done.err
    assert os.sep in done.err
