"""What Ray Tune is told to try next: the preset first, nothing twice, an interrupted study as if it had gone on."""

import json

import pytest
from ray.tune.search import Searcher
from search_parts import asked_for, line, open_study, proposals_of, put_trial

from petlbench.harness.search import space as spaces
from petlbench.harness.search.scheduler import make_scheduler
from petlbench.harness.search.study import Study, StudyError
from petlbench.methods.base import Domain


def drive(study, asked, count, score=lambda config: 100 * config["train.lr"], start=0):
    """Let proposals make trials of three epochs, one after the other; returns the configurations."""
    proposals, _ = proposals_of(study, asked)
    tried = []
    for index in range(start, start + count):
        if (told := proposals.suggest(f"t{index}")) == Searcher.FINISHED:
            break
        config = study.trials[told["number"]].config
        tried.append(config)
        for epoch in (1, 2):
            proposals.on_trial_result(f"t{index}", line(epoch, score(config) * epoch / 3))
        proposals.on_trial_complete(f"t{index}", line(3, score(config), finished=1))
    return tried


@pytest.mark.parametrize("searcher", ["optuna", "random", "grid"])
def test_the_preset_comes_first_and_no_configuration_twice(searcher, tmp_path):
    asked = asked_for(tmp_path, "search.trials=8", f"search.searcher={searcher}")
    study = open_study(tmp_path, asked)
    tried = drive(study, asked, 20)
    assert tried[0] == spaces.current(asked.question.base, asked.space)
    assert len(tried) == 8, "the budget is kept"
    assert len({json.dumps(config, sort_keys=True) for config in tried}) == 8
    assert all(spaces.contains(asked.space, config) for config in tried)
    assert [trial.origin for trial in study.trials] == ["preset", *[searcher] * 7]
    assert all(trial.status == "ok" and trial.last_epoch == 3 for trial in study.trials)


@pytest.mark.parametrize("searcher", ["random", "grid"])
def test_a_study_in_two_parts_tries_what_one_in_a_single_part_tries(searcher, tmp_path):
    asked = asked_for(tmp_path, "search.trials=9", f"search.searcher={searcher}")
    whole = drive(open_study(tmp_path / "whole", asked), asked, 9)
    study = open_study(tmp_path / "parts", asked)
    first = drive(study, asked, 4)
    study.close()
    again = open_study(tmp_path / "parts", asked)
    assert first + drive(again, asked, 9, start=50) == whole
    assert [trial.number for trial in again.trials] == list(range(9))


def test_optuna_learns_from_the_past_of_an_interrupted_study(tmp_path):
    """After twelve trials whose score is the learning rate, draws come from its upper end, also in a new process."""
    asked = asked_for(tmp_path, "search.trials=30", "search.scheduler=fifo")
    study = open_study(tmp_path, asked)
    early = drive(study, asked, 14)
    study.close()
    late = drive(open_study(tmp_path, asked), asked, 16, start=100)
    middle = sorted(config["train.lr"] for config in early)[len(early) // 2]
    assert sum(config["train.lr"] > middle for config in late) >= 12
    assert max(config["train.lr"] for config in late) > 2e-3


def test_unfinished_trials_go_on_first_under_their_number_and_their_spec(tmp_path):
    asked = asked_for(tmp_path, "search.trials=4")
    study = open_study(tmp_path, asked)
    proposals, _ = proposals_of(study, asked)
    begun = [proposals.suggest(f"a{index}") for index in range(2)]
    proposals.on_trial_result("a0", line(1, 40.0))
    proposals.on_trial_complete("a1", line(3, 50.0, finished=1))
    study.close()

    again = open_study(tmp_path, asked)
    assert [trial.status for trial in again.trials] == ["running", "ok"]
    proposals, _ = proposals_of(again, asked)
    resumed = proposals.suggest("b0")
    assert resumed["number"] == 0 and resumed["trial"]["spec"] == begun[0]["trial"]["spec"]
    proposals.on_trial_result("b0", line(1, 40.0))  # told again, for the scheduler
    proposals.on_trial_result("b0", line(2, 45.0))
    proposals.on_trial_complete("b0", line(3, 44.0, best_mR=45.0, finished=1))
    assert [entry.epoch for entry in again.trials[0].curve] == [1, 2, 3]
    assert (again.trials[0].best_mR, again.trials[0].best_epoch) == (45.0, 2)
    assert proposals.suggest("b1")["number"] == 2


def test_the_ends_of_a_trial_are_told_apart(tmp_path):
    asked = asked_for(tmp_path, "search.trials=9")
    study = open_study(tmp_path, asked)
    proposals, heard = proposals_of(study, asked)
    for index in range(5):
        proposals.suggest(f"t{index}")
    proposals.on_trial_complete("t0", line(3, 50.0, finished=1))
    proposals.on_trial_complete("t1", line(1, 20.0))  # stopped by the scheduler
    error = {"error_type": "TrainingError", "error_message": "not finite", "error_traceback": "..."}
    proposals.on_trial_complete("t2", line(1, 0.0, failed=1, **error))
    proposals.on_trial_complete("t3", None, error=True)  # its process died for good
    proposals.on_trial_complete("t4", None)  # interrupted before its first epoch
    assert [trial.status for trial in study.trials] == ["ok", "pruned", "failed", "failed", "running"]
    assert study.trials[2].error.message == "not finite" and study.trials[2].curve == []
    assert "process died" in study.trials[3].error.message
    assert study.trials[0].samples_seen == 144 and study.trials[1].samples_seen == 48
    assert len(heard) >= 9, "every change is announced"
    assert [trial.status for trial in Study.read(study.folder).trials] == [t.status for t in study.trials]


def test_a_small_space_is_exhausted_rather_than_repeated(tmp_path):
    asked = asked_for(tmp_path, "search.trials=50", "search.searcher=random")
    asked.space.clear()
    asked.space.update({"method.reduction": Domain("choice", (1, 2, 4))})
    study = open_study(tmp_path, asked)
    tried = drive(study, asked, 50, score=lambda config: config["method.reduction"])
    assert sorted(config["method.reduction"] for config in tried) == [1, 2, 4]


def test_a_refused_combination_counts_and_the_search_goes_on(tmp_path):
    asked = asked_for(tmp_path, "search.trials=6", "search.searcher=grid", method="lora")
    asked.space.clear()
    asked.space.update(
        {"method.projections": Domain("choice", ("qkvo", "qv")), "method.joint": Domain("choice", (True, False))}
    )
    study = open_study(tmp_path, asked)
    drive(study, asked, 6, score=lambda config: 50.0)
    statuses = {(t.config["method.projections"], t.config["method.joint"]): t.status for t in study.trials}
    assert statuses == {("qkvo", True): "ok", ("qkvo", False): "ok", ("qv", False): "ok", ("qv", True): "failed"}
    (refused,) = [trial for trial in study.trials if trial.status == "failed"]
    assert "joint updates q, k, v and o at once" in refused.error.message and refused.spec_id is None


def test_settings_outside_the_space_are_tried_first_all_the_same(tmp_path):
    asked = asked_for(tmp_path, "search.trials=3", "method.clip_adapter.train.lr=0.5")
    study = open_study(tmp_path, asked)
    tried = drive(study, asked, 3)
    assert tried[0]["train.lr"] == 0.5 and len(tried) == 3


def test_when_the_time_is_up_nothing_new_begins(tmp_path):
    asked = asked_for(tmp_path, "search.time=1h")
    study = open_study(tmp_path, asked)
    late = []
    proposals, _ = proposals_of(study, asked, over=lambda: bool(late))
    assert [proposals.suggest(f"t{index}")["number"] for index in range(30)] == list(range(30)), "any number until then"
    late.append(True)
    assert proposals.suggest("t30") == Searcher.FINISHED


def test_a_trial_that_a_scheduler_paused_and_then_dropped_is_pruned_and_one_paused_at_its_end_is_finished(tmp_path):
    asked = asked_for(tmp_path, "search.trials=2")
    study = open_study(tmp_path, asked)
    proposals, _ = proposals_of(study, asked)
    for name in ("t0", "t1"):
        proposals.suggest(name)
        proposals.on_trial_result(name, line(1, 30.0))
    proposals.on_trial_result("t1", line(3, 40.0, finished=1))
    for name in ("t0", "t1"):
        proposals.on_trial_complete(name)
    assert [(trial.status, trial.last_epoch) for trial in study.trials] == [("pruned", 1), ("ok", 3)]


def test_two_searches_of_one_study_do_not_write_at_once(tmp_path):
    asked = asked_for(tmp_path)
    study = open_study(tmp_path, asked)
    with pytest.raises(StudyError, match="another process is searching this study"):
        open_study(tmp_path, asked)
    study.close()
    open_study(tmp_path, asked).close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_text("{"), r"0001\.json: cannot be read"),
        (lambda path: path.write_text('{"number": 1}'), r"0001\.json: key `origin`: Field required"),
        (lambda path: path.rename(path.with_name("0007.json")), "without gaps"),
    ],
)
def test_a_damaged_study_is_refused_by_file_and_key(change, message, tmp_path):
    asked = asked_for(tmp_path, "search.trials=3")
    study = open_study(tmp_path, asked)
    drive(study, asked, 3)
    study.close()
    change(study.folder / "trials" / "0001.json")
    with pytest.raises(StudyError, match=message):
        open_study(tmp_path, asked)


def test_rungs_of_an_interrupted_study_are_known_to_the_next_scheduler(tmp_path):
    """Three earlier trials reached 60 in their first epoch, so 10 is stopped at once; a new scheduler would let it pass."""
    asked = asked_for(tmp_path)
    study = open_study(tmp_path, asked)
    for _ in range(3):
        put_trial(study, {}, [60.0, 61.0, 62.0])

    class New:
        trial_id = "new"

    decisions = []
    for past in (study.trials, []):
        scheduler = make_scheduler(asked, past)
        scheduler.on_trial_add(None, New())
        decisions.append(scheduler.on_trial_result(None, New(), line(1, 10.0)))
    assert decisions == ["STOP", "CONTINUE"]


def test_the_preset_is_never_stopped_but_others_learn_from_it(tmp_path):
    asked = asked_for(tmp_path, "search.reduction=2")

    class Started:
        def __init__(self, number):
            self.trial_id, self.config = f"t{number}", {"number": number}

    scheduler = make_scheduler(asked, [])
    preset, *others = map(Started, range(3))
    for trial in (preset, *others):
        scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, others[0], line(1, 50.0)) == "CONTINUE"
    assert scheduler.on_trial_result(None, preset, line(1, 40.0)) == "CONTINUE", "any other would be stopped here"
    assert scheduler.on_trial_result(None, others[1], line(1, 39.0)) == "STOP"


@pytest.mark.parametrize(("searcher", "size"), [("random", 230), ("grid", 230)])
def test_a_long_study_goes_on_where_it_was_cut(searcher, size, tmp_path):
    """More trials are known than proposals in a row that may be known for a space to count as exhausted."""
    sets = (f"search.searcher={searcher}", "search.scheduler=fifo", "search.grid_points=60")
    study = open_study(tmp_path, asked := asked_for(tmp_path, *sets, f"search.trials={size - 20}"))
    assert len(drive(study, asked, size)) == size - 20
    study.close()
    asked = asked_for(tmp_path, *sets, f"search.trials={size}")
    again = open_study(tmp_path, asked)
    assert len(drive(again, asked, 40, start=1000)) == 20 and len(again.trials) == size


def test_the_best_trial_was_trained_to_the_end_where_one_was(tmp_path):
    asked = asked_for(tmp_path)
    study = open_study(tmp_path, asked)
    assert study.best() is None
    put_trial(study, {}, [70.0], "pruned")
    assert study.best().number == 0
    for scores in ([50.0, 60.0, 55.0], [60.0, 58.0, 57.0]):
        put_trial(study, {}, scores)
    assert study.best().number == 1, "the earlier of equals; a pruned trial does not compete"
