"""Trackers: TensorBoard's files are really written; the others get what they need, and are missed with a clear message."""

import sys
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter  # noqa: F401  # the format read below

from petlbench.harness.experiment import ExperimentError, load_experiment
from petlbench.harness.trackers import TrackerError, check_trackers, tracker_callbacks

TRIAL = SimpleNamespace(trial_id="t0", config={}, experiment_tag="")


def scalars(folder):
    """(step, tag, value) of every scalar below a folder; TFRecord: length, its checksum, bytes, their checksum."""
    found = []
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(event.step, value.tag, round(value.simple_value, 3)) for value in event.summary.value]
            at += size + 16
    return found


def test_tensorboard_gets_the_curve_of_each_trial_in_a_readable_place(tmp_path):
    (callback,) = tracker_callbacks(["tensorboard"], tmp_path, lambda trial: f"scenes/lora/{trial.trial_id}")
    callback.log_trial_start(TRIAL)
    callback.log_trial_result(1, TRIAL, {"epoch": 1, "loss": 2.5, "val_mR": 40.0, "best_mR": 40.0, "pid": 7})
    callback.log_trial_result(2, TRIAL, {"epoch": 2, "loss": 1.5, "val_mR": None, "best_mR": 40.0})
    callback.log_trial_result(3, TRIAL, {"finished": 1})
    callback.log_trial_end(TRIAL)
    assert scalars(tmp_path / "tensorboard" / "scenes" / "lora" / "t0") == [
        (1, "loss", 2.5),
        (1, "val_mR", 40.0),
        (1, "best_mR", 40.0),
        (2, "loss", 1.5),
        (2, "best_mR", 40.0),
    ]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_missing_package_is_named_with_the_way_to_get_it(name, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(TrackerError, match=rf"tracker {name} needs the package .*pip install 'petlbench\[trackers\]'"):
        check_trackers([name])
    with pytest.raises(TrackerError):
        tracker_callbacks([name], tmp_path, str)


@pytest.fixture
def recorded(monkeypatch):
    """Stand-ins for Ray's callbacks that keep their arguments."""
    made = {}
    for module, cls in (("wandb", "WandbLoggerCallback"), ("mlflow", "MLflowLoggerCallback")):

        def make(_module=module, **options):
            made[_module] = options
            return _module

        monkeypatch.setitem(sys.modules, f"ray.air.integrations.{module}", SimpleNamespace(**{cls: make}))
    monkeypatch.setattr("petlbench.harness.trackers.check_trackers", lambda names: None)
    for variable in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return made


def test_the_others_are_rays_own_callbacks_with_a_project_and_a_place(recorded, tmp_path, monkeypatch):
    assert tracker_callbacks(["wandb", "mlflow"], tmp_path, str, group="search") == ["wandb", "mlflow"]
    assert recorded["wandb"] == {"project": "petlbench", "group": "search"}
    assert recorded["mlflow"] == {
        "tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "experiment_name": "petlbench",
        "tags": {"group": "search"},
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    tracker_callbacks(["wandb", "mlflow"], tmp_path, str)
    assert recorded["mlflow"]["tracking_uri"] == "http://localhost:5000" and recorded["wandb"]["project"] == "mine"


def test_none_is_the_default_and_an_unknown_one_is_refused(tmp_path):
    assert load_experiment().trackers == [] and tracker_callbacks([], tmp_path, str) == []
    with pytest.raises(ExperimentError, match="trackers"):
        load_experiment(None, (), trackers=["tensorbord"])
