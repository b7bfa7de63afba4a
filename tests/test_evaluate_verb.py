"""`benchmark evaluate`: recorded metrics come out again, and weights from elsewhere load whole or not at all."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_calls import call
from safetensors.torch import load_file, save_file
from small_trials import SETS, small_trial

from petlbench.harness.record_files import find_records, read_record
from petlbench.harness.spec import Named
from petlbench.harness.trial import run_trial
from petlbench.methods.backbones.random_models import random_clip

pytestmark = pytest.mark.usefixtures("small_world")
METHODS = ("linear_probe", "lora", "zero_shot")


@pytest.fixture(scope="module")
def trained(small_world, tmp_path_factory):
    """A results folder with one finished trial of each method."""
    folder = tmp_path_factory.mktemp("trained")
    for method in METHODS:
        run_trial(small_trial(folder, "train.epochs=1", "train.lr=0.01", method=method))
    return folder


@pytest.fixture
def results(trained, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(trained, tmp_path / "results")


def record_of(results, method="lora"):
    (path,) = (p for p in find_records(results) if p.parent.name == method)
    return path


def change(path, edit, rehash=True):
    """Edit a record as JSON; a changed spec gets its new hash, as if a trial had been run on it."""
    payload = json.loads(path.read_text())
    edit(payload)
    if rehash:
        text = json.dumps(payload["spec"], sort_keys=True, separators=(",", ":"))
        payload["spec_id"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(payload))
    return path


# Records


@pytest.mark.parametrize("method", METHODS)
def test_a_record_gives_its_metrics_again_exactly(results, method):
    path = record_of(results, method)
    before = {p: p.read_bytes() for p in results.rglob("*") if p.is_file()}
    called = call("evaluate", path, "--json")
    assert called.code == 0, called
    (row,) = called.json
    recorded = read_record(path).metrics["test"]
    assert row["same"] is True and row["differing"] == [] and row["notes"] == []
    assert row["found"] == row["recorded"] and len(row["recorded"]) == 35
    assert {key: row["found"][key] for key in recorded.recalls} == recorded.recalls
    assert {p: p.read_bytes() for p in results.rglob("*") if p.is_file()} == before, "nothing is written"


def test_what_was_trained_matters(results):
    rows = {method: call("evaluate", record_of(results, method), "--json").json[0]["found"] for method in METHODS}
    assert rows["lora"] != rows["zero_shot"] != rows["linear_probe"]


def test_a_folder_is_evaluated_whole_or_by_method(results):
    called = call("evaluate", results)
    assert called.code == 0, called
    assert called.out.count("all 35 recorded metrics come out again, exactly") == 3
    assert "3 of 3 records give their metrics again, 0 could not be evaluated" in called.out
    rows = call("evaluate", results, "--method", "lora", "--method", "zero_shot", "--json").json
    assert [row["method"] for row in rows] == ["lora", "zero_shot"]
    assert "no finished record of vera below this folder" in call("evaluate", results, "--method", "vera").error


def test_validation_is_compared_with_the_selected_epoch(results):
    path = record_of(results)
    called = call("evaluate", path, "--split", "val", "--json")
    (row,) = called.json
    assert called.code == 0 and row["same"] is True
    assert row["recorded"] == {"mR": read_record(path).selection.val_mR}
    called = call("evaluate", record_of(results, "zero_shot"), "--split", "val")
    assert called.code == 0 and "nothing was recorded for this split" in called.out


def test_a_difference_is_shown_and_ends_with_one(results):
    def edit(payload):
        payload["metrics"]["test"]["recalls"]["i2t_r5"] += 0.25

    path = change(record_of(results), edit)
    called = call("evaluate", path)
    assert called.code == 1 and "1 of 35 recorded metrics differ (tolerance 0)" in called.out and "-0.25" in called.out
    assert call("evaluate", path, "--json").json[0]["differing"] == ["i2t_r5"]


def test_another_adapter_gives_other_metrics(results):
    (weights,) = results.rglob("adapter_model.safetensors")
    save_file({name: torch.randn_like(tensor) for name, tensor in load_file(weights).items()}, weights)
    assert call("evaluate", record_of(results)).code == 1


def test_a_missing_adapter_is_told_and_hides_no_other_record(results):
    (weights,) = results.rglob("*.adapter")
    shutil.rmtree(weights)
    error = call("evaluate", record_of(results)).error
    assert str(weights) in error and "train again with `benchmark run" in error
    called = call("evaluate", results)
    assert str(weights) in called.error
    assert "2 of 3 records give their metrics again, 1 could not be evaluated" in called.out


def test_records_of_earlier_versions_are_still_evaluated(results):
    """Weights below the hidden folder, without a header, and a training setting that is no more."""
    path = record_of(results, "linear_probe")
    (weights,) = path.parent.glob("*.adapter.safetensors")
    old = results / ".work" / "weights" / "old.weights.safetensors"
    old.parent.mkdir(parents=True, exist_ok=True)
    save_file(load_file(weights), old)
    weights.unlink()

    def edit(payload):
        payload["spec"]["train"]["step_epochs"] = 20
        payload["artifacts"]["weights"] = ".work/weights/old.weights.safetensors"

    called = call("evaluate", change(path, edit), "--json")
    assert called.code == 0 and called.json[0]["same"] is True


def put(*keys, value):
    def edit(payload):
        for key in keys[:-1]:
            payload = payload[key]
        payload[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "rehash", "message"),
    [
        (put("spec", "seed", value=4), False, "`spec_id` is not the hash of `spec`, so the record was edited"),
        (put("spec", "dataset", "options", "splits", "test", value="0" * 64), True, "split test has changed since"),
        (put("spec", "dataset", "options", "train", value=47), True, "split train has changed since"),
        (put("spec", "backbone", "options", "weights", value="sha256:" + "0" * 64), True, "was made with 000000000000"),
        (put("backbone", "sha256", value="0" * 64), True, "backbone random-clip has sha256"),
        (put("backbone", "activation", value="quick_gelu"), True, "has activation gelu, the record quick_gelu"),
        (put("spec", "method", "options", "rank_of_old", value=3), True, "no such setting: rank_of_old"),
        (put("spec", "method", "options", "rank", value=4), True, "does not fit method lora as it was built"),
        (put("metrics", "test", "metric_version", value=99), True, "version 99 of the metrics"),
        (put("method", "name", value="lorra"), True, "did you mean lora"),
    ],
)
def test_what_is_not_the_recorded_world_is_refused(results, edit, rehash, message):
    path = change(record_of(results), edit, rehash)
    error = call("evaluate", path).error
    assert message in error


def test_a_failed_trial_has_nothing_to_evaluate(results):
    path = change(record_of(results), put("status", value="failed"))
    assert "has status `failed`, so there is nothing to evaluate" in call("evaluate", path).error


def test_other_machines_and_versions_are_noted(results):
    def edit(payload):
        payload["cost"]["device"] = "Abacus 9000"
        payload["provenance"]["packages"]["torch"] = "1.0"
        payload["method"]["sha256"] = "0" * 64

    called = call("evaluate", change(record_of(results), edit), "--json")
    notes = called.json[0]["notes"]
    assert called.code == 0 and len(notes) == 3
    assert notes[0].startswith("recorded on Abacus 9000, evaluated on ") and "torch 1.0" in notes[1]
    assert notes[2] == "the file of method lora has changed since"


@pytest.mark.parametrize(
    "assignment", ["train.lr=1", "method.lora.rank=4", "dataset.scenes.train=3", "backbone.tiny-clip.resolution=32"]
)
def test_only_places_can_be_set(results, assignment):
    error = call("evaluate", record_of(results), "--set", assignment).error
    assert error.startswith(f"--set {assignment}: the record fixes everything but the places of files")


def test_places_of_other_sets_and_backbones_are_mistakes(results):
    path = record_of(results)
    assert "the record's dataset is scenes" in call("evaluate", path, "--set", "dataset.ucm.root=/x").error
    assert "the record's backbone is tiny-clip" in call("evaluate", path, "--set", "backbone.other.weights=/x").error
    assert "--dataset ucm is the card of ucm" in call("evaluate", path, "--dataset", "ucm").error


def test_given_weights_must_be_the_recorded_file(results, tmp_path):
    from petlbench.methods.backbones.tiny_clip import WEIGHTS
    from petlbench.methods.backbones.weights_io import find_weights

    copy = tmp_path / "elsewhere.safetensors"
    shutil.copy(find_weights(WEIGHTS), copy)
    given = ("--set", f"backbone.tiny-clip.weights={copy}")
    assert call("evaluate", record_of(results), *given).code == 0
    copy.write_bytes(copy.read_bytes() + b" ")
    assert "elsewhere.safetensors has sha256" in call("evaluate", record_of(results), *given).error


@pytest.mark.parametrize(
    "options", [("-b", "tiny-clip"), ("--preset", "paper"), ("--seed", "1"), ("--out", "x"), ("--adapter", "x")]
)
def test_options_of_methods_do_not_go_with_records(results, options):
    called = call("evaluate", record_of(results), *options)
    assert called.code == 2 and "goes with a method's name" in called.err


# Stored adapters without a record


def test_weights_beside_the_backbone_are_found_by_their_content(tmp_path):
    from torchvision.models import resnet18

    prior, other = tmp_path / "prior.pth", tmp_path / "other.pth"
    for path, seed in ((prior, 0), (other, 1)):
        torch.manual_seed(seed)
        torch.save(resnet18().state_dict(), path)
    settings = (
        f"method.pir_petl.prior_weights={prior}",
        "method.pir_petl.prior=resnet18",
        "method.pir_petl.bottleneck=32",
    )
    results = tmp_path / "results"
    run_trial(small_trial(results, "train.epochs=1", *settings, method="pir_petl"))
    record = record_of(results, "pir_petl")
    assert str(tmp_path) not in record.read_text().replace(json.dumps(str(results)), "")
    where = "method.pir_petl.prior_weights"
    assert f"give it with --set {where}=FILE" in call("evaluate", record).error
    assert "the record was made with" in call("evaluate", record, "--set", f"{where}={other}").error
    assert call("evaluate", record, "--set", f"{where}={prior}").code == 0


def test_an_adapter_needs_no_record(results, tmp_path):
    recorded = read_record(record_of(results)).metrics["test"].recalls
    (adapter,) = results.rglob("*.adapter")
    moved = adapter.rename(tmp_path / "mine")
    out = tmp_path / "out.json"
    called = call("evaluate", "lora", "--adapter", moved, *SETS, "-d", "scenes", "--out", out, "--json")
    assert called.code == 0, called
    assert called.json["metrics"]["recalls"] == recorded
    assert called.json["weights"]["kind"] == "adapter" and called.json["weights"]["about"]["method"] == "lora"
    assert json.loads(out.read_text()) == called.json


def test_an_adapter_brings_its_options_and_backbone(tmp_path):
    trial = small_trial(tmp_path, "train.epochs=1", "method.lora.rank=3", method="lora")
    record = run_trial(trial)
    (adapter,) = tmp_path.rglob("*.adapter")
    called = call("evaluate", "lora", "--adapter", adapter, *SETS, "--json")
    assert called.json["spec"]["method"]["options"]["rank"] == 3
    assert called.json["metrics"]["recalls"] == record.metrics["test"].recalls
    error = call("evaluate", "lora", "--adapter", adapter, *SETS, "--set", "method.lora.rank=4").error
    assert "does not fit method lora as it was built" in error


def test_an_adapter_is_measured_as_it_was_trained(tmp_path, monkeypatch):
    sets = ("train.epochs=1", "train.captions=cleaned", "train.precision=bf16")
    record = run_trial(small_trial(tmp_path, *sets, method="linear_probe"))
    (adapter,) = tmp_path.rglob("*.adapter.safetensors")
    called = call("evaluate", "linear_probe", "--adapter", adapter, *SETS, "--json")
    assert {key: called.json["spec"]["train"][key] for key in ("captions", "precision")} == {
        "captions": "cleaned",
        "precision": "bf16",
    }
    assert called.json["metrics"]["recalls"] == record.metrics["test"].recalls


def test_an_adapter_is_measured_at_the_resolution_it_was_trained_at(tmp_path, monkeypatch):
    trial = small_trial(tmp_path, "train.epochs=1", method="linear_probe")
    asked = trial.spec.model_copy(update={"backbone": Named(name="tiny-clip", options={"resolution": 32})})
    run_trial(trial.model_copy(update={"spec": asked}))
    (adapter,) = tmp_path.rglob("*.adapter.safetensors")

    def larger(name, *, seed=0, **options):
        backbone = random_clip(seed=7)
        backbone.provenance = backbone.provenance.model_copy(update={"resolution": 64})
        return backbone

    monkeypatch.setattr("petlbench.harness.parts.load_backbone", larger)
    error = call("evaluate", "linear_probe", "--adapter", adapter, *SETS).error
    assert "with resolution" in error and "this one has 64" in error


def test_an_adapter_of_something_else_is_refused(results, monkeypatch):
    (adapter,) = results.rglob("*.adapter.safetensors")
    error = call("evaluate", "lora", "--adapter", adapter, *SETS).error
    assert "was trained as method linear_probe, not lora" in error
    monkeypatch.setattr("petlbench.harness.parts.load_backbone", lambda name, *, seed=0, **options: random_clip(seed=8))
    error = call("evaluate", "linear_probe", "--adapter", adapter, *SETS).error
    assert "was trained on backbone tiny-clip with weights" in error


@pytest.mark.parametrize("options", [(), ("--adapter", "x", "--official-checkpoint", "y")])
def test_a_method_needs_weights_from_one_place(options):
    called = call("evaluate", "lora", *options)
    assert called.code == 2 and "lora is a method, so give its weights" in called.err


def test_a_name_that_is_neither_is_told():
    assert "did you mean lora" in call("evaluate", "lorra", "--official-checkpoint", "x").error
    assert "no finished record below this folder" in call("evaluate", str(Path(__file__).parent)).error
