"""`vits14-minilm-joint`: what an alignment made, loaded whole or not at all, and every method on it."""

import json

import pytest
import torch
from joint_files import joint_sets, write_image_tower, write_text_tower
from safetensors.torch import load_file, save_file
from small_trials import SMALL, small_plan, small_trial

from petlbench.harness import contract
from petlbench.harness.contract_pairs import PairRun
from petlbench.harness.contract_runs import BackboneRun
from petlbench.harness.evaluation import evaluate_record
from petlbench.harness.retrial import Places
from petlbench.harness.trial import run_trial
from petlbench.methods import registry
from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.exported import ENTRY, Alignment, Exported, read_header
from petlbench.methods.backbones.joint import WEIGHTS_FILE, describe_towers
from petlbench.methods.backbones.random_models import random_clip, random_joint, random_two_tower
from petlbench.methods.backbones.registry import NAMED, describe_backbone, load_backbone
from petlbench.methods.linear_probe import LinearProbe, LinearProbeConfig
from petlbench.methods.pair import PairMethod
from petlbench.methods.partial import Partial
from petlbench.methods.recipe import LossConfig

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "vits14-minilm-joint"
METHODS = {n: cls for n, s in registry.discover().items() if "two_tower" in (cls := registry.load(s)).kinds}


def header_of(towers):
    by = Alignment(
        spec_id="ab" * 32,
        spec={"seed": 3},
        method="full_finetune",
        method_sha256="cd" * 32,
        dataset="rsicd",
        dataset_licence="research only",
        splits={"train": "ef" * 32},
        selection="best_val",
        epoch=4,
        val_mR=12.345,
        code={},
    )
    return Exported(name=towers.name, backbone=towers.provenance, alignment=by, two_tower=describe_towers(towers))


def write(path, state, header):
    text = header if isinstance(header, str) else header.model_dump_json()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata={ENTRY: text})
    return path


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A folder with tower files, a joint file in its subfolder ``weights``, and the model that the file was made of."""
    folder = tmp_path_factory.mktemp("joint")
    image, text = write_image_tower(folder), write_text_tower(folder / "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PETLBENCH_WEIGHTS", raising=False)
        model = load_backbone("vits14-minilm", weights=image, text_weights=text, resolution=28)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    (folder / "weights").mkdir()
    write(folder / "weights" / WEIGHTS_FILE, model.state_dict(), header_of(model))
    return folder, model


@pytest.fixture
def here(towers, monkeypatch):
    """The folder, with its weights found by name."""
    monkeypatch.setenv("PETLBENCH_WEIGHTS", str(towers[0] / "weights"))
    return towers[0]


def load(folder, **options):
    return load_backbone(NAME, text_weights=folder / "text", **options)


def test_the_loaded_model_is_the_aligned_one(towers, here):
    joint, source = load(here), towers[1]
    images, tokens = torch.randn(3, 3, 28, 28), joint.tokenize(["a port", "two green parks", "lake"])
    assert torch.equal(tokens.ids, source.tokenize(["a port", "two green parks", "lake"]).ids)
    with torch.no_grad():
        assert torch.equal(joint.encode_image(images), source.encode_image(images))
        assert torch.equal(joint.encode_text(tokens), source.encode_text(tokens))
    assert torch.equal(joint.logit_scale, source.logit_scale)
    assert joint.aligned and not source.aligned
    assert list(source.new_parameters()) and not list(joint.new_parameters())
    assert not joint.training and all(p.dtype == torch.float32 for p in joint.parameters())


def test_pretrained_heads_have_no_dropout(here):
    joint = load(here).train()
    images = torch.randn(2, 3, 28, 28)
    assert torch.equal(joint.encode_image(images), joint.encode_image(images))
    new = random_two_tower().train()
    assert not torch.equal(new.encode_image(images), new.encode_image(images))


def test_provenance_names_the_alignment(here):
    said = load(here).provenance
    assert said.source == "vit.safetensors + text, aligned on rsicd by full_finetune, trial abababab"
    assert said.kind == "two_tower" and said.resolution == 28 and len(said.sha256) == 64
    for part in ("at 28 px", "seed 3", "best_val", "validation mR 12.35", "licence of rsicd: research only"):
        assert part in said.notes
    assert load(here, resolution=56).provenance.resolution == 56
    file = here / "weights" / WEIGHTS_FILE
    assert read_header(file).alignment.splits == {"train": "ef" * 32}


def test_it_is_listed_and_described_without_being_read(here):
    assert (NAMED[NAME].kind, NAMED[NAME].aligned) == ("two_tower", True)
    options = describe_backbone(NAME, text_weights=here / "text").options
    assert options["weights"] == str(here / "weights" / WEIGHTS_FILE) and options["resolution"] == 28


def test_without_a_file_the_way_to_one_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PETLBENCH_WEIGHTS", str(tmp_path))
    for asked in (load_backbone, describe_backbone):
        with pytest.raises(BackboneError) as caught:
            asked(NAME)
        for part in (
            "weights=FILE",
            WEIGHTS_FILE,
            "PETLBENCH_WEIGHTS",
            "full_finetune",
            "benchmark export-backbone RECORD",
        ):
            assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vision.layernorm.bias": None}, r"1 missing keys: vision\.layernorm\.bias"),
        ({"vision.extra": torch.zeros(2)}, r"1 unexpected keys: vision\.extra"),
        ({"logit_scale": torch.zeros(2)}, r"1 differing shapes: logit_scale is \(2,\), expected \(\)"),
        ({"image_head.0.bias": torch.full((512,), float("nan"))}, "image_head.0.bias holds NaN"),
    ],
)
def test_files_load_whole_or_not_at_all(towers, here, tmp_path, change, says):
    state = {key: value for key, value in {**towers[1].state_dict(), **change}.items() if value is not None}
    with pytest.raises(BackboneError, match=says):
        load(here, weights=write(tmp_path / "x.safetensors", state, header_of(towers[1])))


def test_foreign_files_are_refused(towers, here, tmp_path):
    state, header = towers[1].state_dict(), header_of(towers[1])
    path = tmp_path / "x.safetensors"
    save_file(state, path)
    with pytest.raises(BackboneError, match=r"x\.safetensors: its header has no entry `petlbench`"):
        load(here, weights=path)
    with pytest.raises(BackboneError, match=r"key `version`.*another version"):
        load(here, weights=write(path, state, json.dumps({**header.model_dump(mode="json"), "version": 9})))
    with pytest.raises(BackboneError, match="kind open_clip; it is read by that backbone's own option"):
        clip = header.model_copy(update={"two_tower": None, "backbone": random_clip().provenance})
        load(here, weights=write(path, state, clip))
    path.write_bytes(b"no tensors")
    with pytest.raises(BackboneError, match="not a readable safetensors file"):
        load(here, weights=path)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(BackboneError, match=r"is one \.safetensors file"):
        load(here, weights=tmp_path / "x.pt")


def test_another_tokenizer_and_resolution_are_refused(here, tmp_path):
    other = write_text_tower(tmp_path / "other", ["some", "other", "words"])
    with pytest.raises(BackboneError, match="words of another tokenizer"):
        load_backbone(NAME, text_weights=other)
    with pytest.raises(BackboneError, match="not a multiple of the patch size 14; give 28 or 42"):
        load(here, resolution=30)
    with pytest.raises(BackboneError, match="has no option blocks"):
        load(here, blocks=1)


def test_only_the_tokenizer_is_needed_of_the_text_tower(here, tmp_path):
    folder = tmp_path / "words"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((here / "text" / name).read_bytes())
    assert load_backbone(NAME, text_weights=folder).aligned


# Methods


def run_of(name, config=None, make=random_joint):
    cls = METHODS[name]
    kind = PairRun if issubclass(cls, PairMethod) else BackboneRun
    return kind(cls, cls.Config.model_validate(config or {}), LossConfig(name="multi_positive"), make, "joint", 0)


@pytest.mark.parametrize("name", METHODS)
def test_methods_build_on_it_with_the_declared_count_and_frozen_heads(name):
    run = run_of(name)
    with torch.random.fork_rng(devices=[]):
        run.accepts(), run.build(), run.names()
        if METHODS[name].trains:
            run.count()
        if METHODS[name].identity_start:
            run.identity_start()
    heads = [n for n in run.trainable if n.removeprefix("backbone.").startswith(("image_head.0", "text_head.0"))]
    own_heads = {"pir_petl", "pir", "full_finetune", "partial"}
    assert name in own_heads or not heads, "the heads belong to the backbone"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("zero_shot", {}),
        ("coop", {}),
        ("vpt", {}),
        ("clip_adapter", {}),
        ("partial", {}),
        ("linear_probe", {"form": "heads"}),
        ("linear_probe", {"form": "projections"}),
    ],
)
def test_methods_keep_the_contract_on_it(name, config):
    assert not [check for check in run_of(name, config).all() if check.outcome == "failed"]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_methods_keep_the_whole_contract_on_it(name, monkeypatch):
    monkeypatch.setattr(contract, "BACKBONES", {"random-joint": random_joint})
    checks = contract.check_method(METHODS[name])
    assert not [check for check in checks if check.outcome == "failed"]
    assert "save and load" in {c.name for c in checks if c.outcome == "ok"}


def test_the_heads_count_as_projections():
    """(P + 1) H + (H + 1) E per modality; P is 64 for pictures and 32 for captions, H 32, E 16."""
    heads = (64 + 1) * 32 + (32 + 1) * 16 + (32 + 1) * 32 + (32 + 1) * 16
    joint, apart = random_joint(), random_two_tower()
    probe = LinearProbe(LinearProbeConfig(form="projections"))
    assert (probe.expected_trainable(joint), probe.expected_trainable(apart)) == (heads, 0)
    assert Partial().expected_trainable(joint) - Partial().expected_trainable(apart) == heads


@pytest.fixture
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_trials_on_it_run_audited_and_evaluate_again(here, tmp_path, private_cache, monkeypatch):
    places = joint_sets(here / "weights" / WEIGHTS_FILE, here / "text")
    results = tmp_path / "results"
    for method in ("zero_shot", "lora"):
        trial = small_trial(results, *places, "train.epochs=1", method=method, datasets=["scenes"], backbones=[NAME])
        record = run_trial(trial)
        assert record.backbone["aligned"] and record.params.trained_new_heads == 0
        assert record.audit["identity_start"] == "ok"
        assert str(here) not in json.dumps(record.spec), "the file by its content"
        assert (record.params.trained == 0) == (method == "zero_shot")
    monkeypatch.delenv("PETLBENCH_WEIGHTS")
    (path,) = (results / "scenes" / "lora").glob("*.json")
    given = {"weights": here / "weights" / WEIGHTS_FILE, "text_weights": here / "text"}
    assert evaluate_record(path, Places(backbone={NAME: given})).same


def test_a_plan_keeps_zero_shot(here, tmp_path):
    plan = small_plan(
        tmp_path,
        *joint_sets(here / "weights" / WEIGHTS_FILE, here / "text"),
        *SMALL,
        methods=["zero_shot", "coop"],
        datasets=["scenes"],
        backbones=[NAME],
    )
    assert {p.trial.spec.method.name for p in plan.planned} == {"zero_shot", "coop"} and not plan.refused


def test_a_file_does_not_change_what_it_was_loaded_from(towers, here):
    before = load_file(here / "weights" / WEIGHTS_FILE)
    model = load(here)
    with torch.no_grad():
        model.logit_scale.add_(1)
    assert torch.equal(load_file(here / "weights" / WEIGHTS_FILE)["logit_scale"], before["logit_scale"])
