"""Records as a shared good: folders are merged whole or not at all, and compared trial by trial."""

import json
import os
import shutil

import numpy as np
import pytest
from cli_calls import call
from factories import edit, make_ranks, put_failed, put_record, spec_hash, three
from old_records import older, version_zero  # noqa: F401 (a fixture)

from petlbench.harness.record_files import read_record
from petlbench.leaderboard import results_merge
from petlbench.leaderboard.results_validate import validate


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


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


@pytest.mark.usefixtures("version_zero")
def test_an_older_record_goes_in_as_of_the_current_version(tmp_path):
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


def test_only_recalls_have_a_tolerance(tmp_path):
    put_record(tmp_path / "a")
    put_record(tmp_path / "b", change=lambda p: p["metrics"]["test"].update(metric_version=2))
    done = call("results", "diff", tmp_path / "a", tmp_path / "b", "--tolerance", "100")
    assert done.code == 1 and "metrics.test.metric_version" in done.out


@pytest.mark.parametrize(
    "verb", [("results", "diff"), ("leaderboard", "--results"), ("leaderboard", "--json", "--results")]
)
def test_a_folder_without_records_is_no_answer(tmp_path, verb):
    three(tmp_path / "a", 3.0)
    inside = [tmp_path / "a" / "toyset"] * (2 if verb[-1] == "diff" else 1)
    told = call(*verb, *inside)
    assert "holds no record" in told.error and "folder above" in told.error
    assert not list(tmp_path.rglob("board.*"))


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
