"""One searched trial: it trains, validates and reports, goes on after an interruption, and cannot open the test split."""

import pytest
from cli_calls import small_set
from filelock import FileLock
from search_parts import asked_for
from small_trials import Killed, small_trial, tiny_backbone  # noqa: F401

from petlbench.harness.experiment import load_experiment
from petlbench.harness.leftovers import work_folder
from petlbench.harness.ranking import Ranking
from petlbench.harness.record_files import find_records
from petlbench.harness.search.objective import search_trial
from petlbench.harness.search.question import ask
from petlbench.harness.trial import assemble, run_trial

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_backbone")


def searched(asked, folder, config=None, run="r", report=None):
    """Run one trial here; returns what it reported."""
    lines = []

    def take(entry):
        lines.append(entry)
        if report is not None:
            report(entry)

    search_trial(asked.trial(config or {}, str(folder / ".work")), run, take)
    return lines


def die_at(epoch):
    def report(entry):
        if entry["epoch"] == epoch:
            raise Killed

    return report


def test_every_epoch_is_reported_once_and_the_last_one_as_finished(tmp_path):
    asked = asked_for(tmp_path)
    lines = searched(asked, tmp_path, {"train.lr": 5e-4})
    assert [entry["epoch"] for entry in lines] == [1, 2, 3]
    assert [entry.get("finished") for entry in lines] == [None, None, 1]
    best = 0.0
    for entry in lines:
        best = max(best, entry["val_mR"])
        assert entry["best_mR"] == best
    assert [entry["pairs"] for entry in lines] == [48, 96, 144]
    assert not list(find_records(tmp_path)), "a searched trial writes no record"


def test_the_score_is_the_validation_score_that_a_run_of_the_same_seed_selects_on(tmp_path):
    asked = asked_for(tmp_path, "search.seed=3")
    (last,) = [entry for entry in searched(asked, tmp_path) if "finished" in entry]
    whole = small_trial(tmp_path / "run", "seeds=[3]", method="clip_adapter")
    assert run_trial(whole).selection.val_mR == last["best_mR"]


def test_the_test_split_is_not_among_what_a_searched_trial_gets(tmp_path, monkeypatch):
    asked = asked_for(tmp_path)
    assert set(assemble(asked.trial({}, str(tmp_path))).splits) == {"train", "val"}

    opened = []
    real = Ranking.open

    def noted(self, split):
        opened.append(split)
        return real(self, split)

    monkeypatch.setattr(Ranking, "open", noted)
    assert searched(asked, tmp_path)[-1]["finished"]
    assert opened == ["val"]


@pytest.mark.parametrize("method", ["clip_adapter", "lora", "zero_shot"])
def test_a_search_works_where_the_test_pictures_are_missing(method, tmp_path):
    card, root = small_set(tmp_path)
    gone = [path for path in (root / "pictures").iterdir() if int(path.stem.split("_")[1]) >= 10]
    for path in gone:
        path.unlink()
    assert len(gone) == 2
    sets = [f"dataset.{card}.root={root}", "train.epochs=1", "train.batch_size=4"]
    experiment = load_experiment(None, sets, methods=[method], datasets=[str(card)], results=str(tmp_path / "r"))
    (asked,), _ = ask(experiment)
    lines = searched(asked, tmp_path)
    assert lines[-1]["finished"] and 0 <= lines[-1]["best_mR"] <= 100, lines


def test_what_trains_nothing_is_validated_once(tmp_path):
    (entry,) = searched(asked_for(tmp_path, method="zero_shot"), tmp_path)
    assert (entry["epoch"], entry["pairs"], entry["finished"]) == (0, 0, 1)


def test_a_killed_trial_goes_on_from_its_last_epoch_and_tells_the_new_run_of_the_earlier_ones(tmp_path):
    asked = asked_for(tmp_path, method="lora")
    whole = searched(asked, tmp_path / "whole")
    with pytest.raises(Killed):
        searched(asked, tmp_path, run="first", report=die_at(2))
    assert (work_folder(asked.trial({}, str(tmp_path / ".work"))) / "epoch-00002").is_dir()
    again = searched(asked, tmp_path, run="second")
    assert [entry["epoch"] for entry in again] == [1, 2, 3]
    assert [entry["val_mR"] for entry in again] == [entry["val_mR"] for entry in whole]
    assert [entry["loss"] for entry in again] == [entry["loss"] for entry in whole], "as if it had not been killed"


def test_within_one_run_an_epoch_is_not_told_twice(tmp_path):
    """A scheduler that pauses trials, or Ray after the death of a worker, starts the same trial again."""
    asked = asked_for(tmp_path)
    with pytest.raises(Killed):
        searched(asked, tmp_path, report=die_at(2))
    assert [entry["epoch"] for entry in searched(asked, tmp_path)] == [3]


def test_a_trial_killed_between_its_last_epoch_and_its_end_only_ends(tmp_path):
    asked = asked_for(tmp_path)
    with pytest.raises(Killed):
        searched(asked, tmp_path, report=die_at(3))
    (last,) = searched(asked, tmp_path)
    assert (last["epoch"], last["finished"], last["pairs"]) == (3, 1, 144)


def test_an_error_is_reported_with_its_traceback(tmp_path):
    asked = asked_for(tmp_path, "train.clip_norm=0")
    (entry,) = searched(asked, tmp_path, {"train.lr": 1e30})
    assert entry["failed"] == 1 and entry["error_type"] == "TrainingError"
    assert "not finite" in entry["error_message"] and "Traceback" in entry["error_traceback"]
    assert entry["epoch"] >= 0, "schedulers refuse negative times"


def test_a_trial_waits_for_the_last_worker_of_a_killed_search(tmp_path):
    asked = asked_for(tmp_path)
    work = work_folder(asked.trial({}, str(tmp_path / ".work")))
    work.parent.mkdir(parents=True)
    held = []

    def report(entry):
        with pytest.raises(TimeoutError):
            FileLock(str(work) + ".lock").acquire(timeout=0)
        held.append(entry)

    searched(asked, tmp_path, report=report)
    assert len(held) == 3


def test_with_selection_last_the_last_epoch_counts(tmp_path):
    lines = searched(asked_for(tmp_path, "protocol.selection=last", "train.lr=0.05"), tmp_path)
    assert [entry["best_mR"] for entry in lines] == [entry["val_mR"] for entry in lines]
