"""Plans and the records that are there already: what is skipped, run again, replaced or refused."""

import hashlib
import json
from pathlib import Path

import pytest
from plan_calls import SCENES, ids, plan, plugin, put, refused

from petlbench.harness.experiment import ExperimentError, load_experiment
from petlbench.harness.plan import make_plan
from petlbench.harness.record_files import read_record
from petlbench.harness.recorded import seconds_of


def test_recorded_trials_are_skipped_unless_forced(tmp_path):
    first = plan(tmp_path)
    put(first.planned[1])
    again = plan(tmp_path)
    assert [p.state for p in again.planned] == ["to run", "recorded", "to run"]
    assert ids(again) == ids(first) and [p.trial.spec.seed for p in again.to_run] == [0, 2]
    forced = plan(tmp_path, force=True)
    assert [p.state for p in forced.planned] == ["to run"] * 3 and forced.planned[1].note == "forced"


def test_a_record_of_another_version_of_the_method_is_skipped_but_told(tmp_path):
    mine = plugin(tmp_path, "{'matched': Preset()}")
    options = {"methods": ["mine"], "plugins": [mine], "seeds": [0]}
    (planned,) = plan(tmp_path, **options).planned
    put(planned, change=lambda p: p["method"].update(sha256=hashlib.sha256(Path(mine).read_bytes()).hexdigest()))
    assert plan(tmp_path, **options).notes == []
    put(planned, change=lambda p: p["method"].update(sha256="e" * 64))
    made = plan(tmp_path, **options)
    assert [p.state for p in made.planned] == ["recorded"]
    assert made.notes == [
        "1 recorded trial was made by another version of its method's file (mine); --force runs it again"
    ]


def test_a_failed_trial_runs_again_and_says_why_it_failed(tmp_path):
    put(plan(tmp_path).planned[0], "failed")
    again = plan(tmp_path)
    assert (again.planned[0].state, again.planned[0].note) == ("failed before", "out of memory")
    assert again.to_run == again.planned


def test_a_record_of_another_trial_in_the_same_place_is_replaced(tmp_path):
    first = plan(tmp_path)
    put(first.planned[0], change=lambda payload: payload.update(spec_id="0" * 64))
    again = plan(tmp_path)
    assert (again.planned[0].state, again.planned[0].note) == ("to run", "the file there belongs to another trial")


def test_a_corrupt_record_stops_the_plan_and_force_goes_on(tmp_path):
    path = put(plan(tmp_path).planned[0])
    payload = json.loads(path.read_text())
    payload["cost"]["train_s"] = "quick"
    path.write_text(json.dumps(payload))
    with pytest.raises(ExperimentError) as caught:
        plan(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: key `cost.train_s`") and "'quick'" in message and "--force" in message
    assert plan(tmp_path, force=True).planned[0].note == "replaces a corrupt record"
    path.write_text("{")
    refused("not a JSON record", tmp_path)


def test_estimates_are_means_of_all_measured_seconds_and_bad_files_are_told(tmp_path):
    made = plan(tmp_path, methods=["lora", "zero_shot"])
    for index, p in enumerate(made.planned[:2]):
        cost = {"train_s": 10.0 * (index + 1), "eval_s": 2.0, "cache_s": 1.0}
        put(p, change=lambda payload, cost=cost: payload["cost"].update(cost))
    put(made.planned[3], "failed")
    assert seconds_of(tmp_path / "results") == ({("lora", "scenes", "tiny-clip"): 18.0}, [])
    made.planned[2].path.write_text("{}")
    nameless = made.planned[3].path
    payload = json.loads(made.planned[0].path.read_text()) | {"spec": {}}
    nameless.write_text(json.dumps(payload))
    times, problems = seconds_of(tmp_path / "results")
    assert times == {("lora", "scenes", "tiny-clip"): 18.0}
    assert len(problems) == 2 and all(any(str(p) in m for m in problems) for p in (made.planned[2].path, nameless))
    assert seconds_of(tmp_path / "nowhere") == ({}, [])


def test_a_plan_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = make_plan(load_experiment(None, methods=["lora"], dataset=SCENES), command=["benchmark", "plan"])
    assert list(tmp_path.iterdir()) == []
    paths = made.planned[0].trial.paths
    assert Path(paths.results) == tmp_path / "results" and paths.command == ["benchmark", "plan"]
    assert read_record(put(made.planned[0])).spec_id == made.planned[0].trial.spec.spec_id
