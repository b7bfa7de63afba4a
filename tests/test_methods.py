"""Each method's own promises: parameter counts on the real shapes, closed forms, and refusals."""

import copy
import runpy

import pytest
import torch
from built_models import assembled as built
from support import ROOT
from torch import nn

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.methods import registry
from petlbench.methods.backbones.random_models import random_clip, random_two_tower, random_vilt
from petlbench.methods.backbones.shapes import shape_only
from petlbench.methods.base import MethodError, count, names_in, parameters_under
from petlbench.methods.full_finetune import FullFinetune
from petlbench.methods.linear_probe import LinearProbe, LinearProbeConfig
from petlbench.methods.lora import Lora, LoraConfig
from petlbench.methods.recipe import LossConfig
from petlbench.methods.zero_shot import ZeroShot

RANDOM = {"open_clip": random_clip, "two_tower": random_two_tower}
CPU = torch.device("cpu")
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "methods_readme.py"))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vit_b_32():
    """CLIP ViT-B/32 in shape only: values on the meta device, so that copies cost nothing."""
    return shape_only("ViT-B-32")


def fill(model, pattern: str = "lora_B"):
    """Give updates that start at zero a value, so that they are seen."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if pattern in name:
            nn.init.normal_(parameter, std=0.3)


def embed(method, model, batch):
    return audit.embed_for_audit(method, model, batch, CPU)


# --- parameters on ViT-B/32 ---


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (ZeroShot(), 0),
        (LinearProbe(), 525_312),
        (LinearProbe(LinearProbeConfig(form="heads")), 655_360),
        (LinearProbe(LinearProbeConfig(form="two_layer")), 1_050_624),
        (LinearProbe(LinearProbeConfig(form="projections")), 655_360),
        (FullFinetune(), 151_277_313),
        (Lora(), 737_280),
        (Lora(LoraConfig(rank=8, targets="mlp")), 1_228_800),
        (Lora(LoraConfig(rank=8, targets="both")), 1_966_080),
        (Lora(LoraConfig(rank=2)), 737_280 // 4),
        (Lora(LoraConfig(towers="image")), 8 * 6 * 768 * 12),
        (Lora(LoraConfig(towers="text")), 8 * 6 * 512 * 12),
    ],
    ids=lambda value: f"{value:,}" if isinstance(value, int) else type(value).__name__,
)
def test_trained_parameters_on_vit_b_32(vit_b_32, method, expected):
    backbone = copy.deepcopy(vit_b_32)
    assert method.expected_trainable(backbone) == expected
    model = method.build(backbone)
    assert count(model, method.trainable(model)) == expected


def test_every_packed_attention_gets_its_updates(vit_b_32):
    model = copy.deepcopy(vit_b_32)
    trained = list(Lora().trainable(Lora().build(model)))
    assert len(trained) == 24 * 4  # A and B, for q, k, v together and for the output, in 24 blocks


@pytest.mark.parametrize(
    "name",
    [n for n, s in registry.discover().items() if s.builtin],
)
def test_every_method_has_the_common_protocol_and_its_published_recipe(name):
    assert {"matched", "paper"} <= set(registry.load(registry.discover()[name]).presets)


@pytest.mark.parametrize("name", [n for n, s in registry.discover().items() if s.builtin])
def test_what_stays_at_inference_is_not_more_than_was_added(name):
    cls = registry.load(registry.discover()[name])
    backbone = random_clip() if "open_clip" in cls.kinds else random_vilt()
    before = sum(p.numel() for p in backbone.parameters())
    method = cls()
    added = sum(p.numel() for p in method.build(backbone).parameters()) - before
    assert min(0, added) <= method.added_at_inference(added) <= added  # below 0 where blocks are dropped


def test_the_readmes_list_every_method():
    tables = SCRIPT["tables"]()
    for file, table in SCRIPT["FILES"].items():
        text = (ROOT / file).read_text(encoding="utf-8")
        assert SCRIPT["updated"](text, tables[table], file) == text, "run python scripts/methods_readme.py"


# --- zero-shot, probe, full ---


def test_zero_shot_is_the_backbone_and_refuses_unaligned_towers():
    method, backbone = ZeroShot(), random_clip()
    assert method.build(backbone) is backbone
    assert method.refuse(backbone) is None
    for unaligned in (random_clip(aligned=False), random_two_tower()):
        assert "never trained together" in str(method.refuse(unaligned))


def test_probe_is_a_linear_map_behind_each_projection():
    method, backbone = LinearProbe(), random_clip()
    model, batch = built(method, backbone), fake_batch(backbone)
    fill(model, "_map")
    assert batch.images is not None and batch.tokens is not None
    with torch.no_grad():
        image = backbone.encode_image(batch.images) @ model.image_map.weight.T + model.image_map.bias
        text = backbone.encode_text(batch.tokens) @ model.text_map.weight.T + model.text_map.bias
        assert torch.allclose(method.encode_image(model, batch.images), image, atol=1e-6)
        assert torch.allclose(method.encode_text(model, batch.tokens), text, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "kind", "adds", "tensors"),
    [
        ("auto", "open_clip", True, 4),
        ("auto", "two_tower", False, 0),
        ("embedding", "two_tower", True, 4),
        ("heads", "open_clip", False, 2),  # no heads are missing there, so it trains CLIP's own projections
    ],
)
def test_probe_follows_the_backbone(form, kind, adds, tensors):
    method, backbone = LinearProbe(LinearProbeConfig(form=form)), RANDOM[kind]()
    model = built(method, backbone)
    assert (model is not backbone) == adds
    assert len(list(method.trainable(model))) == tensors
    sizes = dict(model.named_parameters())
    assert sum(sizes[name].numel() for name in method.trainable(model)) == method.expected_trainable(backbone)


@pytest.mark.parametrize(("form", "tensors"), [("two_layer", 8), ("projections", 2)])
def test_other_probes_start_at_zero_shot_and_train_what_they_say(form, tensors):
    method, backbone = LinearProbe(LinearProbeConfig(form=form)), random_clip()
    batch = fake_batch(backbone)
    before = embed(ZeroShot(), backbone, batch)
    model = built(method, backbone)
    assert torch.allclose(embed(method, model, batch), before, atol=1e-6)
    names = list(method.trainable(model))
    assert len(names) == tensors
    assert audit.check_gradients(method, model, set(names), batch) == "ok"
    assert method.expected_trainable(backbone) == count(model, names)


def test_trained_projections_are_clips_own():
    method, backbone = LinearProbe(LinearProbeConfig(form="projections")), random_clip()
    assert set(method.trainable(built(method, backbone))) == {"clip.visual.proj", "clip.text_projection"}
    method, backbone = LinearProbe(LinearProbeConfig(form="projections")), random_two_tower()
    assert not list(method.trainable(built(method, backbone)))  # joining heads are trained by every method


@pytest.mark.parametrize("kind", RANDOM)
def test_full_fine_tuning_reaches_everything(kind):
    method, backbone = FullFinetune(), RANDOM[kind]()
    model = built(method, backbone)
    names = set(method.trainable(model))
    assert names == {n for n, _ in backbone.named_parameters()}
    assert audit.check_gradients(method, model, names, fake_batch(backbone)) == "ok"


def test_a_method_takes_its_loss_from_the_recipe():
    backbone = random_clip()
    batch = fake_batch(backbone)
    values = {}
    for loss in (LossConfig(), LossConfig(mask_duplicates=True), LossConfig(name="multi_positive")):
        losses = ZeroShot(loss=loss).loss(backbone, batch)
        assert list(losses) == [loss.name]
        values[loss.name, loss.mask_duplicates] = float(losses[loss.name].detach())
    assert values["infonce", True] < values["infonce", False]  # the batch holds a picture and a string twice
    # One duplicate embeds exactly like the other, so averaging over the two positives moves terms, not their sum.
    assert values["multi_positive", False] == pytest.approx(values["infonce", False], rel=1e-5)


def test_names_in_follow_the_backbone_into_a_wrapper():
    method, backbone = LinearProbe(LinearProbeConfig(form="embedding")), random_two_tower()
    model = built(method, backbone)
    new = list(backbone.new_parameters())
    assert names_in(model, backbone, new) == [f"backbone.{n}" for n in new]
    assert names_in(backbone, backbone, new) == new
    with pytest.raises(MethodError, match="does not hold the backbone's parameters image_head"):
        names_in(nn.Linear(2, 2), backbone, new)


# --- LoRA ---


def test_lora_on_packed_attention_is_w_plus_scaled_b_a():
    method, backbone = Lora(LoraConfig(rank=4, alpha=6.0)), random_clip()
    plain = copy.deepcopy(backbone)
    model, batch = built(method, backbone), fake_batch(backbone)
    fill(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, attention in plain.named_modules():
            if isinstance(attention, nn.MultiheadAttention):
                for part, weight in (("in_proj", attention.in_proj_weight), ("out_proj", attention.out_proj.weight)):
                    a, b = parameters[f"{name}.lora_A.{part}"], parameters[f"{name}.lora_B.{part}"]
                    assert (a.shape, b.shape) == ((4, weight.shape[1]), (weight.shape[0], 4))
                    weight += 6.0 / 4 * b @ a
    expected = embed(ZeroShot(), plain, batch)
    assert torch.allclose(embed(method, model, batch), expected, atol=1e-5)
    untouched = embed(ZeroShot(), random_clip(), batch)
    assert (expected - untouched).abs().max() > 0.01  # the update is large enough to be missed


@pytest.mark.parametrize(("kind", "targets"), [("open_clip", "mlp"), ("two_tower", "both"), ("two_tower", "attention")])
def test_lora_on_linear_layers_is_w_plus_scaled_b_a(kind, targets):
    method, backbone = Lora(LoraConfig(rank=4, alpha=6.0, targets=targets)), RANDOM[kind]()
    plain = copy.deepcopy(backbone)
    model, batch = built(method, backbone), fake_batch(backbone)
    fill(model)
    parameters = dict(model.named_parameters())
    changed = 0
    with torch.no_grad():
        for name, linear in plain.named_modules():
            if (a := parameters.get(f"{name}.lora_A.default.weight")) is not None:
                linear.weight += 6.0 / 4 * parameters[f"{name}.lora_B.default.weight"] @ a
                changed += 1
    assert 2 * changed == len(list(method.trainable(model)))
    assert torch.allclose(embed(method, model, batch), embed(ZeroShot(), plain, batch), atol=1e-5)


def test_lora_never_touches_the_frozen_weights():
    # Adding an update to the weights and subtracting it again would leave rounding behind, pass after pass.
    method, backbone = Lora(LoraConfig(targets="both")), random_clip()
    model, batch = built(method, backbone), fake_batch(backbone)
    fill(model)
    trained = set(method.trainable(model))
    before = audit.frozen_hash(model, trained)
    pointers = {n: id(p) for n, p in model.named_parameters()}
    for _ in range(3):
        method.loss(model, batch)["infonce"].backward()
    assert audit.frozen_hash(model, trained) == before
    assert {n: id(p) for n, p in model.named_parameters()} == pointers


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_lora_can_stay_in_one_tower(kind, tower):
    method, backbone = Lora(LoraConfig(towers=tower, targets="both")), RANDOM[kind]()
    batch = fake_batch(backbone)
    before = embed(ZeroShot(), backbone, batch)
    model = built(method, backbone)
    fill(model)
    image, text = ((embed(method, model, batch) - before).abs().amax(1) > 1e-3).chunk(2)
    assert image.all() == text.logical_not().all() == (tower == "image")
    assert text.all() == (tower == "text")


@pytest.mark.parametrize(
    ("kind", "targets"), [("open_clip", "mlp"), ("open_clip", "attention"), ("two_tower", "attention")]
)
def test_lora_dropout_acts_in_training_only(kind, targets):
    method, backbone = Lora(LoraConfig(dropout=0.5, targets=targets)), RANDOM[kind]()
    model, batch = built(method, backbone), fake_batch(backbone)
    fill(model)
    model.train()
    for name, module in model.named_modules():  # leave only LoRA's own dropout on
        if isinstance(module, nn.Dropout) and "lora_dropout" not in name and ".attn." not in name:
            module.eval()
    assert batch.tokens is not None
    one, other = (method.encode_text(model, batch.tokens) for _ in range(2))
    assert not torch.allclose(one, other)
    assert torch.equal(embed(method, model, batch), embed(method, model, batch))


def test_parameters_under_takes_whole_names_only():
    model = nn.ModuleDict({"map": nn.Linear(2, 2), "mapper": nn.Linear(2, 2)})
    assert parameters_under(model, "map") == ["map.weight", "map.bias"]
    assert parameters_under(model, "map.bias", "mapper") == ["map.bias", "mapper.weight", "mapper.bias"]
    assert parameters_under(model) == []
