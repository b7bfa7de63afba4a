"""HarMA's released checkpoints: read to the last tensor, or refused with what is wrong."""

import pytest
import torch
from built_models import assembled as built
from harma_case import DESCRIBED, GOLDEN, all_shapes, golden_backbone, golden_tensors, method_of

from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.open_clip_model import load_clip_state
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.backbones.registry import describe_backbone
from petlbench.methods.backbones.shapes import shape_only
from petlbench.methods.backbones.weights_io import read_state_dict
from petlbench.methods.base import MethodError
from petlbench.methods.harma import HarmaConfig
from petlbench.methods.official import OfficialError, OfficialState, load_official, read_official

pytestmark = pytest.mark.usefixtures("one_thread")


def official_state(source="checkpoint_best.pth", config=None):
    return OfficialState(golden_tensors(), source, config)


def test_the_key_set_of_vit_b_32_is_read_to_the_last_tensor():
    method, backbone = method_of(), shape_only("ViT-B-32")
    model = method.build(backbone).to("meta")
    shapes = all_shapes(GOLDEN["vit_b_32"]["shapes"])
    assert len(shapes) == GOLDEN["vit_b_32"]["tensors"] == 302 + 348 + 1
    state = OfficialState({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    mapped = method.import_official(model, state)
    load_official(model, mapped, state, list(method.trainable(model)))
    assert mapped.keys() == set(model.state_dict()) and not list(state)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("model.transformer.resblocks.1.gate1"), "1 trained tensors without a value"),
        (lambda s: s.update({"model.extra": torch.ones(1)}), r"1 unknown to the model: clip\.extra"),
        (lambda s: s.update({"other": torch.ones(1)}), "1 left over in the file: other"),
        (lambda s: s.update({"model.visual.proj": torch.ones(2, 2)}), "1 differing shapes"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(change, told):
    method = method_of()
    model = built(method, golden_backbone("gelu"))
    tensors = golden_tensors()
    change(tensors)
    state = OfficialState(tensors)
    with pytest.raises(OfficialError, match=told):
        load_official(model, method.import_official(model, state), state, list(method.trainable(model)))


def test_a_checkpoint_without_temperature_is_refused():
    method = method_of()
    model = built(method, golden_backbone("gelu"))
    tensors = golden_tensors()
    del tensors["temp"]
    with pytest.raises(OfficialError, match="no tensor temp"):
        method.import_official(model, OfficialState(tensors))


@pytest.mark.parametrize(
    ("source", "config"), [("harma_rsitmd_georsclip_mr523.pth", {"model": "vit"}), ("best.pth", {"model": "geo"})]
)
def test_weights_of_a_georsclip_start_need_quick_gelu(source, config):
    method = method_of()
    with pytest.raises(MethodError, match="GeoRSCLIP, whose activation is quick_gelu; golden computes gelu"):
        method.import_official(built(method, golden_backbone("gelu")), official_state(source, config))
    model = built(method, golden_backbone("quick_gelu"))
    assert method.import_official(model, official_state(source, config))


@pytest.mark.parametrize(
    ("config", "make"), [(DESCRIBED, lambda: golden_backbone("gelu")), (HarmaConfig(), random_two_tower)]
)
def test_released_weights_fit_the_released_form_only(config, make):
    method = method_of(config)
    with pytest.raises(MethodError, match="holds the form as_released on an open_clip backbone"):
        method.import_official(built(method, make()), official_state())


def test_a_checkpoint_file_is_read_with_its_configuration(tmp_path):
    path = tmp_path / "checkpoint_best.pth"
    torch.save({"model": {"temp": torch.tensor(0.05)}, "config": {"model": "geo", "temp1": 0.07}}, path)
    state = read_official(path)
    assert list(state) == ["temp"] and state.config["model"] == "geo"


def test_georsclip_start_is_known_by_its_file_name(tmp_path):
    path = tmp_path / "RS5M_ViT-B-32_RET-2.pt"
    path.touch()
    assert describe_backbone("ViT-B-32", weights=path).options["activation"] == "quick_gelu"
    with pytest.raises(BackboneError, match="needs quick_gelu"):
        describe_backbone("ViT-B-32", weights=path, activation="gelu")


def test_georsclip_layout_loads_into_the_towers(tmp_path):
    # A flat open_clip state dict without wrapper or prefix.
    start, backbone = random_clip(seed=1, quick_gelu=True), random_clip(seed=2, quick_gelu=True)
    path = tmp_path / "RS5M_ViT-B-32_RET-2.pt"
    torch.save(start.clip.state_dict(), path)
    load_clip_state(backbone.clip, read_state_dict(path), path.name)
    batch, method = fake_batch(backbone), method_of()
    model = built(method, backbone)
    with torch.no_grad():
        assert torch.allclose(method.encode_image(model, batch.images), start.encode_image(batch.images), atol=1e-6)
