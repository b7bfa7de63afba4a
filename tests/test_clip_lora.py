"""CLIP-LoRA against the code of its authors."""

import copy
import json

import pytest
import torch
from built_models import built, disturb
from golden import openai_clip
from golden.fill import filled, inputs
from lora_parts import RANDOM, embed
from support import ROOT
from torch import nn

from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.base import MethodError
from petlbench.methods.clip_lora import ClipLora, ClipLoraConfig
from petlbench.methods.official import OfficialError, OfficialState, load_official, read_official
from petlbench.methods.zero_shot import ZeroShot

pytestmark = pytest.mark.usefixtures("one_thread")
GOLDEN = json.loads((ROOT / "tests" / "golden" / "clip_lora.json").read_text(encoding="utf-8"))


# --- CLIP-LoRA against its authors' code ---


def official_form(form):
    golden = GOLDEN["forms"][form]
    method = ClipLora(ClipLoraConfig(projections="".join(golden["parts"])))
    backbone = openai_clip.encoder(GOLDEN["sizes"])
    clip = filled(golden["clip_shapes"], GOLDEN["seed"])
    backbone.clip.load_state_dict(clip, strict=False)
    model = built(method, backbone)
    side = GOLDEN["sizes"]["image_resolution"]
    images = inputs((GOLDEN["rows"], 3, side, side), GOLDEN["seed"])
    tensors = filled(golden["lora_shapes"], GOLDEN["seed"], scale=0.3)
    return method, model, images, openai_clip.tokens(torch.tensor(GOLDEN["ids"])), tensors, golden


def assert_same(ours, theirs):
    theirs = torch.tensor(theirs)
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < 1e-5


@pytest.mark.parametrize("form", GOLDEN["forms"])
def test_clip_lora_embeds_as_its_authors_code(form):
    method, model, images, tokens, tensors, golden = official_form(form)
    with torch.no_grad():
        assert_same(method.encode_image(model, images), golden["untouched"][0])  # before the import: plain CLIP
        assert_same(method.encode_text(model, tokens), golden["untouched"][1])
        metadata = {"metadata.r": torch.tensor(GOLDEN["rank"]), "metadata.alpha": torch.tensor(GOLDEN["alpha"])}
        state = OfficialState({**tensors, **metadata}, "lora_weights.pt")
        trained = set(method.trainable(model))
        load_official(model, method.import_official(model, state), state, trained)
        assert_same(method.encode_image(model, images), golden["image"])
        assert_same(method.encode_text(model, tokens), golden["text"])
    assert sum(model.get_parameter(n).numel() for n in trained) == golden["trainable"]


def test_clip_lora_import_is_complete_or_refused():
    method, model, _, _, tensors, _ = official_form("official")
    trained = set(method.trainable(model))
    for change, says in (
        (dict(list(tensors.items())[1:]), "no tensor weights.layer_0.q_proj.w_lora_A"),
        ({**tensors, "weights.layer_4.q_proj.w_lora_A": torch.zeros(2, 64)}, "1 left over in the file"),
    ):
        state = OfficialState(change, "file.pt")
        with pytest.raises(OfficialError, match=says):
            load_official(model, method.import_official(model, state), state, trained)
    state = OfficialState({**tensors, "metadata.alpha": torch.tensor(4)}, "file.pt")
    with pytest.raises(MethodError, match=r"trained with alpha 4, the model has 1; set method\.clip_lora\.alpha=4"):
        method.import_official(model, state)
    with pytest.raises(MethodError, match="choose an open_clip backbone"):
        method.import_official(built(ClipLora(), random_two_tower()), OfficialState(tensors))


def test_clip_lora_reads_the_file_that_its_authors_save(tmp_path):
    method, model, images, _, tensors, golden = official_form("official")
    weights = {}
    for name, tensor in tensors.items():
        _, layer, projection, matrix = name.split(".")
        weights.setdefault(layer, {}).setdefault(projection, {})[matrix] = tensor
    settings = {"r": 2, "alpha": 1, "encoder": "both", "params": ["q", "k", "v"], "position": "all"}
    torch.save({"weights": weights, "metadata": settings}, tmp_path / "lora_weights.pt")
    state = read_official(tmp_path / "lora_weights.pt")
    load_official(model, method.import_official(model, state), state, set(method.trainable(model)))
    with torch.no_grad():
        assert_same(method.encode_image(model, images), golden["image"])


@pytest.mark.parametrize("kind", RANDOM)
def test_clip_lora_scales_by_the_root_of_the_rank(kind):
    method, backbone = ClipLora(ClipLoraConfig(rank=4, alpha=3.0)), RANDOM[kind]()
    plain, batch = copy.deepcopy(backbone), fake_batch(backbone)
    model = built(method, backbone)
    disturb(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                for i, part in enumerate("qkv"):
                    b, a = parameters[f"{name}.lora_B.{part}"], parameters[f"{name}.lora_A.{part}"]
                    module.in_proj_weight.chunk(3)[i].add_(3.0 / 2 * b @ a)
            elif f"{name}.lora_A.default.weight" in parameters:
                b, a = (parameters[f"{name}.lora_{m}.default.weight"] for m in "BA")
                module.weight.add_(3.0 / 2 * b @ a)
    assert torch.allclose(embed(method, model, batch), embed(ZeroShot(), plain, batch), atol=1e-5)


def test_dropout_touches_the_update_only():
    method, backbone = ClipLora(ClipLoraConfig(dropout=0.5)), random_clip()
    model, batch = built(method, backbone), fake_batch(backbone)
    model.train()
    assert batch.images is not None
    before = method.encode_image(model, batch.images)
    assert torch.allclose(before, random_clip().encode_image(batch.images), atol=1e-6)  # B is zero
    disturb(model)
    torch.manual_seed(0)
    one, other = (method.encode_image(model, batch.images) for _ in range(2))
    assert not torch.allclose(one, other)
