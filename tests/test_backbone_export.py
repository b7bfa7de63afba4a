"""`benchmark export-backbone`: a trial's whole backbone in one file, exact, deterministic, or refused with a reason."""

import errno
import json
import shutil

import pytest
import torch
from cli_calls import call
from joint_files import tower_sets, write_image_tower, write_text_tower
from safetensors import safe_open
from safetensors.torch import load_file
from small_trials import small_trial

from petlbench.harness import backbone_export
from petlbench.harness.adapters import load_adapter
from petlbench.harness.parts import assemble, build
from petlbench.harness.record_files import find_records, read_record
from petlbench.harness.retrial import Places, trial_of
from petlbench.harness.trial import run_trial
from petlbench.methods.backbones.exported import ENTRY, Exported, read_header
from petlbench.methods.backbones.registry import load_backbone

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = ("train.epochs=1", "train.lr=0.001")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tower files, and a results folder with one finished trial of each method."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETLBENCH_CACHE", str(folder / "cache"))
        patch.delenv("PETLBENCH_WEIGHTS", raising=False)
        threads = torch.get_num_threads()
        towers = tower_sets(write_image_tower(folder), write_text_tower(folder / "text"))
        for method in ("full_finetune", "linear_probe", "lora"):
            run_trial(
                small_trial(
                    folder / "results", *TRAIN, *towers, method=method, datasets=["scenes"], backbones=["vits14-minilm"]
                )
            )
        run_trial(small_trial(folder / "results", *TRAIN, datasets=["scenes"], backbones=["tiny-clip"]))
        run_trial(small_trial(folder / "results", method="zero_shot", datasets=["scenes"], backbones=["tiny-clip"]))
        yield folder
        torch.set_num_threads(threads)


def record_in(results, method="full_finetune", backbone="vits14-minilm"):
    (path,) = (p for p in find_records(results) if p.parent.name == method and p.name.startswith(f"{backbone}-s"))
    return path


def export(world, out, *arguments, method="full_finetune", backbone="vits14-minilm", record=None):
    places = [part for a in tower_sets(world / "vit.safetensors", world / "text")[:2] for part in ("--set", a)]
    record = record or record_in(world / "results", method, backbone)
    return call("export-backbone", record, "--out", out, *(places if backbone == "vits14-minilm" else ()), *arguments)


def trained_model(world, method="full_finetune"):
    """The model of a record, as a trial builds it."""
    path = record_in(world / "results", method)
    given = {"weights": world / "vit.safetensors", "text_weights": world / "text"}
    parts = assemble(trial_of(read_record(path), path, Places(backbone={"vits14-minilm": given})))
    built = build(parts, 0, torch.device("cpu"))
    load_adapter(parts.method, built.model, built.trainable, path.with_name(read_record(path).artifacts["weights"]))
    return built.model


@pytest.mark.parametrize("method", ["full_finetune", "linear_probe"])
def test_the_file_is_the_trained_model_whole(world, tmp_path, method):
    out = tmp_path / "joint.safetensors"
    called = export(world, out, "--json", method=method)
    assert called.code == 0, called
    state, model = load_file(out), trained_model(world, method)
    assert {name.partition(".")[0] for name in state} == {
        "vision",
        "language",
        "image_head",
        "text_head",
        "logit_scale",
    }
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    row = called.json
    assert (row["tensors"], row["scalars"]) == (len(state), sum(t.numel() for t in state.values()))
    assert row["bytes"] == out.stat().st_size and row["backbone"] == "vits14-minilm-joint"


def test_the_header_says_where_it_comes_from(world, tmp_path):
    out = tmp_path / "joint.safetensors"
    called = export(world, out)
    assert called.code == 0, called
    record = read_record(record_in(world / "results"))
    header = read_header(out)
    by = header.alignment
    assert (by.spec_id, by.spec, by.method, by.dataset) == (record.spec_id, record.spec, "full_finetune", "scenes")
    assert by.splits == {name: part.sha256 for name, part in record.data.splits.items()}
    assert (by.val_mR, by.epoch, by.selection) == (record.selection.val_mR, record.selection.epoch, "best_val")
    assert by.code["git"] == record.provenance["git"] and by.code["torch"] == record.provenance["packages"]["torch"]
    assert header.backbone.model_dump(mode="json") == record.backbone and not header.backbone.aligned
    assert (header.two_tower.vision.width, header.two_tower.language.hidden_size) == (64, 16)
    assert f"trial {record.spec_id[:8]}" in called.out and f"validation mR {by.val_mR:.2f}" in called.out
    assert f"--set backbone.vits14-minilm-joint.weights={out}" in called.out
    with safe_open(out, framework="pt") as opened:
        assert list(opened.metadata()) == [ENTRY]
        assert str(world) not in opened.metadata()[ENTRY], "no path of this machine"


def test_equal_exports_are_equal_to_the_byte_and_never_replaced_unasked(world, tmp_path):
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    assert export(world, one).code == export(world, other).code == 0
    assert one.read_bytes() == other.read_bytes()
    one.write_bytes(b"mine")
    assert "exists; give --force" in export(world, one).error
    assert one.read_bytes() == b"mine"
    assert export(world, one, "--force").code == 0 and one.read_bytes() == other.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {one.name, other.name}, "nothing half-written stays"


def test_a_clip_is_exported_for_its_own_option(world, tmp_path):
    out = tmp_path / "clip.safetensors"
    called = export(world, out, backbone="tiny-clip")
    assert called.code == 0 and "-b tiny-clip" in called.out and "activation" not in called.out, called
    tuned, shipped = load_backbone("tiny-clip", weights=str(out)), load_backbone("tiny-clip")
    path = record_in(world / "results", backbone="tiny-clip")
    stored = load_file(path.with_name(read_record(path).artifacts["weights"]))
    assert all(torch.equal(p, stored[n]) for n, p in tuned.named_parameters()) and len(stored) > 50
    assert not torch.equal(tuned.clip.visual.proj, shipped.clip.visual.proj)


@pytest.mark.parametrize(
    ("method", "backbone", "says"),
    [
        ("lora", "vits14-minilm", ["lora leaves", "lora_A", "such as full_finetune"]),
        ("zero_shot", "tiny-clip", ["zero_shot trained nothing", "tiny-clip, as it was"]),
    ],
)
def test_what_is_more_or_less_than_a_trained_backbone_is_refused(world, tmp_path, method, backbone, says):
    error = export(world, tmp_path / "x.safetensors", method=method, backbone=backbone).error
    assert all(part in error for part in says), error
    assert not list(tmp_path.iterdir())


def test_hooks_are_found_by_what_the_model_says(world, tmp_path, monkeypatch):
    real = backbone_export.build

    def hooked(parts, seed, device):
        built = real(parts, seed, device)
        built.model.text_head.register_forward_hook(lambda module, inputs, out: out * 1.001)
        return built

    monkeypatch.setattr(backbone_export, "build", hooked)
    assert "something besides weights was changed (hooks" in export(world, tmp_path / "x.safetensors").error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("weights.pt", "end in .safetensors; found .pt"),
        ("weights", "found no suffix"),
        ("dir.safetensors", "is a folder"),
    ],
)
def test_a_wrong_place_is_told_first(world, tmp_path, out, says):
    (tmp_path / "dir.safetensors").mkdir()
    assert says in export(world, tmp_path / out).error


def test_failed_records_and_lost_tensors_are_refused(world, tmp_path):
    results = shutil.copytree(world / "results", tmp_path / "results")
    record = record_in(results)
    record.with_name(read_record(record).artifacts["weights"]).unlink()
    assert "its trained weights" in export(world, tmp_path / "x.safetensors", record=record).error
    payload = json.loads(record.read_text())
    payload["status"] = "failed"
    record.write_text(json.dumps(payload))
    assert (
        "has status `failed`, so there is nothing to export"
        in export(world, tmp_path / "x.safetensors", record=record).error
    )
    assert not (tmp_path / "x.safetensors").exists()


def test_a_full_disk_is_told_and_leaves_nothing(world, tmp_path, monkeypatch):
    def full(path, payload):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backbone_export, "write_atomically", full)
    assert "the exported backbone cannot be written" in export(world, tmp_path / "x.safetensors").error
    assert not list(tmp_path.iterdir())


def test_the_record_fixes_everything_but_places(world, tmp_path):
    error = export(world, tmp_path / "x.safetensors", "--set", "train.epochs=2").error
    assert "the record fixes everything but the places of files" in error


def test_headers_are_validated():
    with pytest.raises(ValueError, match="does not divide"):
        Exported.model_validate(
            {"two_tower": {"vision": {"width": 6, "heads": 4, "blocks": 1, "grid": 1, "mlp_ratio": 4}}}
        )
