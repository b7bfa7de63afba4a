"""Stored adapters: the trained tensors and nothing else, whole or not at all."""

import json

import pytest
import torch
from factories import make_payload
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from petlbench.harness import adapters, audit
from petlbench.harness.adapters import About, AdapterError, adapter_of
from petlbench.harness.contract_data import fake_batch
from petlbench.harness.record import Record
from petlbench.methods import registry
from petlbench.methods.backbones.random_models import random_clip, random_two_tower, random_vilt
from petlbench.methods.base import PeftFormat
from petlbench.methods.bitfit import BitFit
from petlbench.methods.linear_probe import LinearProbe
from petlbench.methods.lora import Lora

pytestmark = pytest.mark.usefixtures("one_thread")

BUILTIN = [name for name, source in registry.discover().items() if source.builtin]


def about(method, **changes):
    said = {"method": method.name, "options": {"rank": 8}, "backbone": "tiny-clip", "backbone_sha256": "ab" * 32}
    return About(**{**said, "seed": 3, "spec_id": "cd" * 32, **changes})


def named(cls):
    """The class as the registry hands it out."""
    return registry.load(registry.discover()[cls.__module__.rpartition(".")[2]])


def built(method, backbone, seed=0):
    torch.manual_seed(seed)
    model = method.build(backbone)
    new = set(backbone.new_parameters()) if method.trains else set()
    return model, {*method.trainable(model), *new}


def trained(method, backbone):
    """A built model whose trained tensors moved."""
    model, names = built(method, backbone)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model, names


def embedded(method, model, backbone):
    return audit.outputs(method, model, fake_batch(backbone), torch.device("cpu"))


def fitting(method):
    for make in (random_clip, random_two_tower, random_vilt):
        if method.refuse(make()) is None:
            return make
    pytest.skip("no random backbone fits")


@pytest.mark.parametrize("name", BUILTIN)
def test_every_method_comes_back_as_it_was_stored(tmp_path, name):
    cls = registry.load(registry.discover()[name])
    method = cls()
    make = fitting(method)
    backbone = make()
    model, names = trained(method, backbone)
    path = adapters.save_adapter(method, model, names, about(cls), tmp_path, "x")
    assert (path is None) == (not cls.trains)
    if path is None:
        assert not list(tmp_path.iterdir())
        return
    again = make()
    other, same_names = built(cls(), again)
    assert same_names == names
    assert not torch.equal(embedded(method, other, again), embedded(method, model, backbone))
    adapters.load_adapter(method, other, names, path)
    assert torch.equal(embedded(method, other, again), embedded(method, model, backbone))
    scalars = sum(p.numel() for n, p in model.named_parameters() if n in names)
    # Tensors that peft stores beside the trained ones (VeRA's shared projections) come from the seed; all else is trained.
    extra = sum(
        model.state_dict()[n].numel() for n in (getattr(method.peft_format(model), "keys", {})) if n not in names
    )
    assert 4 * scalars < adapters.stored_bytes(path) < 4 * (scalars + extra) + 200 * len(names) + 4096
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "nothing else is left behind"


def test_a_plain_adapter_is_one_file_that_says_what_it_is(tmp_path):
    method = named(LinearProbe)()
    model, names = trained(method, random_clip())
    path = adapters.save_adapter(method, model, names, about(method), tmp_path / "new", "tiny-s0")
    assert path == tmp_path / "new" / "tiny-s0.adapter.safetensors"
    assert load_file(path).keys() == names
    assert adapters.read_about(path) == about(method)


def test_a_peft_adapter_is_a_folder_that_peft_knows(tmp_path):
    method = named(Lora)()
    model, names = trained(method, random_clip())
    path = adapters.save_adapter(method, model, names, about(method), tmp_path, "x")
    assert sorted(p.name for p in path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    keys = method.peft_format(model).keys
    stored = load_file(path / "adapter_model.safetensors")
    parameters = dict(model.named_parameters())
    assert names == set(keys)
    assert all(torch.equal(stored[key], parameters[name]) for name, key in keys.items())
    assert adapters.read_about(path) == about(method)
    with safe_open(path / "adapter_model.safetensors", framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"


def test_what_peft_does_not_know_lies_beside_it(tmp_path, monkeypatch):
    whole = Lora.peft_format

    def without_heads(self, model):
        known = whole(self, model)
        return PeftFormat(known.config, {name: key for name, key in known.keys.items() if "_head." not in name})

    monkeypatch.setattr(Lora, "peft_format", without_heads)
    method, backbone = named(Lora)(), random_two_tower()
    model, names = trained(method, backbone)
    path = adapters.save_adapter(method, model, names, about(method), tmp_path, "x")
    assert load_file(path / "other.safetensors").keys() == set(backbone.new_parameters())
    again = random_two_tower()
    other, _ = built(method, again)
    assert adapters.load_adapter(method, other, names, path) == len(names)
    assert torch.equal(embedded(method, other, again), embedded(method, model, backbone))
    (path / "other.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"missing: image_head\.0\.bias"):
        adapters.load_adapter(method, other, names, path)


def test_a_newer_adapter_replaces_the_older_one_of_either_form(tmp_path):
    probe, lora = named(LinearProbe)(), named(Lora)()
    first, first_names = trained(probe, random_clip())
    second, second_names = trained(lora, random_clip())
    for method, model, names in ((probe, first, first_names), (lora, second, second_names)) * 2:
        for seed in (0, 1):
            path = adapters.save_adapter(method, model, names, about(method, seed=seed), tmp_path, "x")
            assert [p.name for p in tmp_path.iterdir()] == [path.name]
            assert adapters.read_about(path).seed == seed


@pytest.mark.parametrize("cls", [LinearProbe, Lora])
def test_a_failing_write_leaves_the_old_adapter(tmp_path, cls, monkeypatch):
    method = named(cls)()
    model, names = trained(method, random_clip())
    path = adapters.save_adapter(method, model, names, about(method, seed=1), tmp_path, "x")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapters, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        adapters.save_adapter(method, model, names, about(method, seed=2), tmp_path, "x")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert adapters.read_about(path).seed == 1


@pytest.fixture
def probe(tmp_path):
    """A stored linear probe, and a fresh model to load into."""
    method = named(LinearProbe)()
    model, names = trained(method, random_clip())
    path = adapters.save_adapter(method, model, names, about(method), tmp_path, "x")
    fresh, _ = built(method, random_clip())
    return method, fresh, names, path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("image_map.bias"), r"1 missing: image_map\.bias"),
        (lambda t: t.update(surplus=torch.zeros(1)), r"1 unknown to the model: surplus"),
        (lambda t: t.update({"text_map.bias": torch.zeros(3)}), r"text_map\.bias is \(3,\), expected \(16,\)"),
    ],
)
def test_what_does_not_fit_is_refused_whole(probe, change, message):
    method, fresh, names, path = probe
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    before = {n: p.clone() for n, p in fresh.named_parameters()}
    with pytest.raises(AdapterError, match=message):
        adapters.load_adapter(method, fresh, names, path)
    assert all(torch.equal(p, before[n]) for n, p in fresh.named_parameters())


def test_tensors_that_another_form_trains_are_refused(tmp_path):
    """Frozen weights of the smaller form would be overwritten, and the recall be the larger form's under its name."""
    whole, half = (named(BitFit)(BitFit.Config(towers=towers)) for towers in ("both", "image"))
    model, names = trained(whole, random_clip())
    path = adapters.save_adapter(whole, model, names, about(whole), tmp_path, "x")
    fresh, own = built(half, random_clip())
    before = {n: p.clone() for n, p in fresh.named_parameters()}
    with pytest.raises(
        AdapterError, match=r"\d+ not trained in this form: .*Were method, options and backbone the same"
    ):
        adapters.load_adapter(half, fresh, own, path)
    assert own < names and all(torch.equal(p, before[n]) for n, p in fresh.named_parameters())


def test_missing_and_damaged_files_are_named(probe, tmp_path):
    method, fresh, names, path = probe
    for read in (lambda p: adapters.load_adapter(method, fresh, names, p), adapters.read_about):
        with pytest.raises(AdapterError, match=r"gone\.safetensors: no such file"):
            read(tmp_path / "gone.safetensors")
        path.write_bytes(b"not tensors")
        with pytest.raises(AdapterError, match=r"x\.adapter\.safetensors: cannot be read as a stored adapter"):
            read(path)


def test_a_folder_is_for_methods_of_peft(probe, tmp_path):
    method, fresh, names, _ = probe
    with pytest.raises(AdapterError, match="peft's format, which method linear_probe does not have"):
        adapters.load_adapter(method, fresh, names, tmp_path)


def test_an_adapter_without_a_word_about_itself_can_be_loaded(probe):
    method, fresh, names, path = probe
    save_file(load_file(path), path)
    assert adapters.read_about(path) is None
    assert adapters.load_adapter(method, fresh, names, path) == len(names)


def test_a_format_that_names_what_is_not_there_is_told(tmp_path, monkeypatch):
    method = named(LinearProbe)()
    model, names = trained(method, random_clip())
    monkeypatch.setattr(type(method), "peft_format", lambda self, model: PeftFormat({}, {"nothing": "key"}))
    with pytest.raises(AdapterError, match=r"peft_format\(\) names nothing, which the model does not have"):
        adapters.save_adapter(method, model, names, about(method), tmp_path, "x")
    assert not list(tmp_path.iterdir())


def test_frozen_tensors_are_not_stored(tmp_path):
    method, model = named(LinearProbe)(), nn.Linear(2, 2)
    path = adapters.save_adapter(method, model, {"bias"}, about(method), tmp_path, "x")
    assert load_file(path).keys() == {"bias"}


def test_adapters_are_found_where_this_and_earlier_versions_put_them(tmp_path):
    record = tmp_path / "scenes" / "lora" / "x.json"
    for name, place in (
        ("x.adapter", record.with_name("x.adapter")),
        (".work/weights/x.weights.safetensors", tmp_path / ".work" / "weights" / "x.weights.safetensors"),
    ):
        payload = make_payload()
        payload["artifacts"] = {"weights": name}
        read = Record.model_validate(payload)
        with pytest.raises(AdapterError, match=r"x\.json: its trained weights .* are not there"):
            adapter_of(read, record)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        assert adapter_of(read, record) == place
    payload["artifacts"] = {}
    assert adapter_of(Record.model_validate(payload), record) is None
