"""What `benchmark search` refuses, before anything is trained; what it says of studies that are done."""

import re

import pytest
from cli_calls import SMALL_SCENES, call
from search_parts import Silent, asked_for, open_study, put_trial

from petlbench.harness.experiment import ExperimentError
from petlbench.harness.plan import make_plan
from petlbench.harness.resources import Resources
from petlbench.harness.search import run as runs
from petlbench.harness.search.run import Searched, search
from petlbench.harness.search.study import Study
from petlbench.harness.search.tuned import write_best

BASE = ("search", "clip_adapter", "-d", "scenes", "-b", "tiny-clip", *SMALL_SCENES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scheduler", "best"], "key `search.scheduler` .*'asha', 'fifo', 'pbt' or 'hyperband'"),
        (["--scheduler", "pbt", "--trials", "3"], "expected trials of at least 4 .*found 3"),
        (["--searcher", "bohb"], "key `search.searcher` .*'optuna', 'random' or 'grid'"),
        (["--time", "soon"], "key `search.time` .*90s, 30m, 2h or 1h30m"),
        (["--then-run", "--seed", "2"], r"searched seed 2 is among the board's seeds \[0, 1, 2\]"),
        (["--set", "protocol.selection=test_max"], "never opens the test split"),
        (["--set", "resources.workers_per_trial=2"], "a search trains each trial in one process"),
        (["--set", "resources.gpus_per_trial=auto"], "measures one configuration, but a search tries many"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_key(words, message, tmp_path):
    done = call(*BASE, *words, "--results", tmp_path)
    assert re.search(message, done.error, re.DOTALL), done.error
    assert not list(tmp_path.rglob("trials")), "nothing was begun"


def test_of_all_methods_the_board_follows_so_its_seeds_must_be_others(tmp_path):
    words = ("search", "all-methods", *BASE[2:], "--seed", "1", "--results", tmp_path)
    assert re.search(r"searched seed 1 is among the board's seeds.*or leave the board .*--no-run", call(*words).error)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_ray(monkeypatch):
    """Nothing may be trained."""

    def refuse(resources):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(runs, "ray_session", refuse)


def test_a_finished_study_is_read_and_not_repeated_and_a_larger_budget_extends_it(tmp_path, no_ray):
    asked = asked_for(tmp_path, "search.trials=2")
    study = open_study(tmp_path, asked)
    for lr in (1e-3, 2e-3):
        put_trial(study, {"method.reduction": 2, "method.ratio": 0.2, "train.lr": lr}, [50.0, 51.0, 52.0])
    study.close()
    display = Silent()
    (searched,) = search([asked], tmp_path / "search", Resources(), display, command=[])
    assert searched.complete and display.told == ["begin", "end", "stop"]
    larger = asked_for(tmp_path, "search.trials=3")
    with pytest.raises(AssertionError, match="Ray was started"):
        search([larger], tmp_path / "search", Resources(), Silent(), command=[])
    timed = asked_for(tmp_path, "search.time=10s")
    study = open_study(tmp_path, timed)
    study.note(spent_s=10.0)
    study.close()
    assert search([timed], tmp_path / "search", Resources(), Silent(), command=[])[0].complete


def test_what_failed_counts_as_tried_unless_it_is_to_be_tried_again(tmp_path, no_ray):
    asked = asked_for(tmp_path, "search.trials=1")
    study = open_study(tmp_path, asked)
    put_trial(study, {}, [], "failed")
    study.close()
    assert search([asked], tmp_path / "search", Resources(), Silent(), command=[])[0].complete
    with pytest.raises(AssertionError, match="Ray was started"):
        search([asked], tmp_path / "search", Resources(), Silent(), command=[], retry_failed=True)


def test_what_failed_stands_where_no_time_is_left_to_try_it_again(tmp_path, no_ray):
    asked = asked_for(tmp_path, "search.time=10s")
    study = open_study(tmp_path, asked)
    put_trial(study, {}, [], "failed")
    study.note(spent_s=11.0)
    study.close()
    display = Silent()
    (searched,) = search([asked], tmp_path / "search", Resources(), display, command=[], retry_failed=True)
    assert searched.complete and [trial.status for trial in searched.study.trials] == ["failed"]
    assert "note" in display.told


def test_the_board_that_follows_takes_the_studies_of_this_command(tmp_path, monkeypatch):
    """Another search of the same method under the same settings, by another scheduler, lies beside."""
    rates, planned = {"asha": 1e-3, "fifo": 2e-3}, []

    def searched(questions, root, *rest, **options):
        (asked,) = questions
        study = Study.open(root, asked, ["benchmark", "search"])
        config = {"method.reduction": 2, "method.ratio": 0.2, "train.lr": rates[asked.question.scheduler]}
        put_trial(study, config, [50.0, 51.0, 52.0])
        write_best(study)
        study.close()
        return [Searched(study, True)]

    monkeypatch.setattr(runs, "search", searched)
    monkeypatch.setattr("petlbench.harness.cli.run.execute", lambda asked, console: planned.append(make_plan(asked)))
    for scheduler, rate in rates.items():
        done = call(*BASE, "--scheduler", scheduler, "--then-run", "--results", tmp_path)
        assert done.code == 0, done
        assert {p.trial.spec.train["lr"] for p in planned[-1].planned} == {rate}


def test_resources_of_one_method_are_checked_before_any_is_searched(tmp_path, no_ray):
    resources = Resources.model_validate({"per_method": {"clip_adapter": {"workers": 2}}})
    with pytest.raises(ExperimentError, match="method clip_adapter was given 2 workers per trial"):
        search([asked_for(tmp_path)], tmp_path / "search", resources, Silent(), command=[])
