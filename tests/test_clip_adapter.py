"""CLIP-Adapter: against its authors' code, on cached features, and its switches."""

import json

import pytest
import torch
from built_models import assembled as built
from golden.fill import filled, inputs
from support import ROOT
from torch import nn

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.base import Batch, MethodError, count
from petlbench.methods.clip_adapter import ClipAdapter, ClipAdapterConfig
from petlbench.methods.official import OfficialError, OfficialState, load_official

GOLDEN = json.loads((ROOT / "tests" / "golden" / "clip_adapter.json").read_text(encoding="utf-8"))
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def at_golden():
    size = GOLDEN["sizes"]
    backbone = random_clip(embed_dim=size["width"], quick_gelu=True)
    # The authors' model was given embeddings, so nothing is projected here.
    backbone.project_image = backbone.project_text = lambda pooled: pooled
    with torch.no_grad():
        backbone.logit_scale.fill_(size["log_scale"])
    method = ClipAdapter(ClipAdapterConfig(reduction=4, towers="image"))
    return method, built(method, backbone)


def load(method, model, tensors):
    state = OfficialState(tensors, "golden.pth.tar")
    load_official(model, method.import_official(model, state), state, set(method.trainable(model)))


# --- against the authors' code ---


def test_features_logits_and_loss_equal_the_authors():
    method, model = at_golden()
    load(method, model, filled(GOLDEN["shapes"], GOLDEN["seed"]))
    size = GOLDEN["sizes"]
    features, texts = (inputs((size["rows"], size["width"]), GOLDEN["seed"] + i) for i in (0, 1))
    image, text = method.head_image(model, features), method.head_text(model, texts)
    assert torch.equal(text, texts)
    adapted = (image - 0.8 * features) / 0.2
    assert torch.allclose(adapted[:, :16], torch.tensor(GOLDEN["adapted_sample"]), rtol=1e-5, atol=1e-5)
    assert adapted.norm(dim=1).tolist() == pytest.approx(GOLDEN["adapted_norms"], rel=1e-5)
    logits = model.backbone.logit_scale.exp() * nn.functional.normalize(image) @ nn.functional.normalize(text).T
    theirs = torch.tensor(GOLDEN["logits"])
    assert ((logits - theirs).abs().max() / theirs.abs().max()).item() < 1e-5
    ids = torch.arange(size["rows"])
    loss = method.loss(model, Batch(None, None, ids, ids, image_pooled=features, text_pooled=texts))["infonce"]
    assert loss.item() == pytest.approx(GOLDEN["infonce"], rel=1e-6)
    loss.backward()
    for layer, official in ((model.image_adapter.down, "fc.0.weight"), (model.image_adapter.up, "fc.2.weight")):
        assert layer.weight.grad.norm().item() == pytest.approx(GOLDEN["gradient_norms"][official], rel=1e-4)


def test_an_import_is_complete_or_refused():
    method, model = at_golden()
    tensors = filled(GOLDEN["shapes"], GOLDEN["seed"])
    with pytest.raises(OfficialError, match=r"1 left over in the file: fc\.0\.bias"):
        load(method, model, {**tensors, "fc.0.bias": torch.ones(256)})
    with pytest.raises(OfficialError, match=r"no tensor fc\.2\.weight"):
        load(method, model, {"fc.0.weight": tensors["fc.0.weight"]})
    other = ClipAdapter()
    with pytest.raises(MethodError, match="towers=image"):
        other.import_official(built(other, random_clip()), OfficialState(tensors))


# --- the method ---


@pytest.mark.parametrize("make", [random_clip, random_two_tower])
@pytest.mark.parametrize("towers", ["image", "text", "both"])
def test_only_the_named_embeddings_are_adapted(towers, make):
    method, backbone = ClipAdapter(ClipAdapterConfig(towers=towers)), make()
    batch, expected = fake_batch(backbone), method.expected_trainable(backbone)
    before = audit.embed_untouched(backbone, batch, CPU)
    model = built(method, backbone)
    assert count(model, method.trainable(model)) == expected == (2 if towers == "both" else 1) * 2 * 16 * 8
    changed = (audit.embed_for_audit(method, model, batch, CPU) - before).abs().amax(1) > 1e-5
    for part, name in zip(changed.chunk(2), ("image", "text"), strict=True):
        assert part.all() if towers in (name, "both") else not part.any()


def test_cached_features_give_what_the_towers_give():
    method, backbone = ClipAdapter(), random_clip()
    model, batch = built(method, backbone), fake_batch(backbone)
    with torch.no_grad():
        pooled = backbone.image.pooled(batch.images), backbone.text.pooled(batch.tokens)
        ids = (batch.image_ids, batch.text_ids)
        cached = Batch(None, None, *ids, image_pooled=pooled[0], text_pooled=pooled[1])
        assert torch.equal(torch.cat(method.embed(model, batch)), torch.cat(method.embed(model, cached)))


def test_ratio_zero_is_the_backbone_and_the_last_relu_can_be_left_out():
    backbone = random_clip()
    batch = fake_batch(backbone)
    before = audit.embed_untouched(backbone, batch, CPU)
    method = ClipAdapter(ClipAdapterConfig(ratio=0.0))
    assert torch.equal(audit.embed_for_audit(method, built(method, backbone), batch, CPU), before)
    features = inputs((8, 16), 0)
    for final_relu in (True, False):
        method = ClipAdapter(ClipAdapterConfig(ratio=1.0, final_relu=final_relu))
        with torch.no_grad():
            adapted = built(method, random_clip()).image_adapter(features)
        assert (adapted >= 0).all() == final_relu


def test_a_reduction_that_leaves_nothing_is_refused_with_advice():
    assert ClipAdapter(ClipAdapterConfig(reduction=16)).refuse(random_clip()) is None
    reason = ClipAdapter(ClipAdapterConfig(reduction=17)).refuse(random_clip())
    assert "reduction 17 leaves no hidden unit" in str(reason)
    assert "reduction to 16 or less" in str(reason)
