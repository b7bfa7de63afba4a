"""CoCoOp and CUP: what their embeddings depend on, what evaluation costs, and equality with the official code."""

import json
import re

import pytest
import torch
from built_models import built
from golden.fill import filled, inputs
from golden.openai_clip import encoder
from support import ROOT
from torch import nn

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.backbones.tokenizers import HashingTokenizer
from petlbench.methods.base import Batch
from petlbench.methods.cocoop import Cocoop, CocoopConfig
from petlbench.methods.cup import Cup, CupConfig
from petlbench.methods.layers.context_cluster import ContextCluster
from petlbench.methods.layers.context_cluster import _divisor as divisor
from petlbench.methods.official import OfficialError, OfficialState, load_official
from petlbench.methods.recipe import LossConfig

pytestmark = pytest.mark.usefixtures("one_thread")

unit = nn.functional.normalize


def far(a, b):
    """Largest difference, relative to the largest value."""
    return float(((a - b).abs().max() / b.abs().max()).detach())


def golden(name, case):
    data = json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    return data, data["cases"][case]


def weights(data, shapes):
    state = filled(shapes, data["seed"], data["scale"])
    return {n: 1 + t if re.search(r"(^|\.)ln_\w+\.weight$", n) else t for n, t in state.items()}


def pictures(data):
    side = data["sizes"]["image_resolution"]
    return inputs((len(data["captions"]), 3, side, side), data["seed"])


# --- CoCoOp ---


def test_cocoop_pairs_give_the_logits_of_its_code():
    data, case = golden("coop", "cocoop")
    backbone = encoder(data["sizes"])
    backbone.clip.load_state_dict(weights(data, case["clip"]))
    method = Cocoop(CocoopConfig(tokens=case["tokens"], words=""))
    model = method.build(backbone).eval()
    fixed = {"token_prefix": torch.zeros(3, 1, 64), "token_suffix": torch.zeros(3, 19, 64)}
    state = OfficialState(weights(data, case["learner"]) | fixed)
    load_official(model, method.import_official(model, state), state, list(method.trainable(model)))
    own = HashingTokenizer(data["sizes"]["vocab_size"], data["sizes"]["context_length"])
    scores = method.score_pairs(model, pictures(data), own([f"{text}." for text in data["captions"]]))
    assert far(method.logit_scale(model).exp() * scores, torch.tensor(case["logits"])) < 1e-5


@pytest.mark.parametrize("make", [random_clip, random_two_tower])
def test_cocoop_conditions_a_caption_on_itself(make):
    method = Cocoop()
    model = built(method, make())
    tokens = fake_batch(model.backbone).tokens
    with torch.no_grad():
        nn.init.normal_(model.shift[2].weight)
        condition = unit(model.backbone.encode_text(tokens), dim=-1)
        assert model.prompts(condition).shape == (8, 4, 32)
        text = method.encode_text(model, tokens)
        one = method._conditioned(model, tokens[2:3], model.prompts(condition[2:3]))
        assert far(text[2:3], one) < 1e-5
        other = method._conditioned(model, tokens[2:3], model.prompts(condition[3:4]))
        assert far(text[2:3], other) > 1e-4


def test_cocoop_counts_what_the_published_form_costs():
    assert Cocoop.text_encodings(1_093, 5 * 1_093) == 5_973_245
    method = Cocoop()
    model = built(method, random_clip())
    batch, calls = fake_batch(model.backbone), []
    block = model.backbone.text.blocks[0].ln_1
    block.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    scores = method.score_pairs(model, batch.images[:3], batch.tokens)
    assert scores.shape == (3, 8) and sum(calls) == method.text_encodings(3, 8)
    calls.clear()
    method.encode_text(model, batch.tokens)
    assert calls == [8, 8]  # the condition, then the caption
    assert not model.backbone.clip.transformer.resblocks[0].attn.in_proj_weight.requires_grad


def test_cocoop_condition_needs_no_gradient():
    method = Cocoop()
    model = built(method, random_clip())
    tokens = fake_batch(model.backbone).tokens
    recorded = []
    block = model.backbone.text.blocks[0].ln_1
    block.register_forward_hook(lambda module, args, out: recorded.append(out.requires_grad))
    assert method.encode_text(model, tokens).requires_grad
    assert recorded == [False, True]


# --- CUP ---


def cup_of(data, case, **options):
    backbone = encoder(data["sizes"])
    method = Cup(CupConfig(tokens=case["tokens"], positions="shifted", **options))
    model = method.build(backbone).eval()
    tensors = weights(data, case["shapes"])
    for name in tensors:
        if re.fullmatch(case["narrow"], name):
            tensors[name] /= 100
        for pattern, term in case["start"].items():
            if re.fullmatch(pattern, name):
                tensors[name] += term
    state = OfficialState(tensors)
    load_official(model, method.import_official(model, state), state, list(method.trainable(model)))
    sizes = data["sizes"]
    own = HashingTokenizer(sizes["vocab_size"], sizes["context_length"] - case["tokens"])
    return method, model, own(data["captions"])


def test_cup_gives_the_embeddings_of_its_code():
    data, case = golden("cup", "cup")
    method, model, tokens = cup_of(data, case)
    with torch.no_grad():
        prior = model.prior(model.cluster(pictures(data)))
        image, text = method.encode_image(model, pictures(data)), method.encode_text(model, tokens)
        assert far(prior, torch.tensor(case["prior"])) < 1e-5
        assert far(image, torch.tensor(case["image_in_loss"])) < 1e-5
        assert far(text, torch.tensor(case["text_in_loss"])) < 1e-5
        method, model, tokens = cup_of(data, case, adapter_input="as_released")
        image, text = method.encode_image(model, pictures(data)), method.encode_text(model, tokens)
        assert far(unit(image, dim=-1), torch.tensor(case["image_at_evaluation"])) < 1e-5
        assert far(unit(text, dim=-1), torch.tensor(case["text_at_evaluation"])) < 1e-5


@pytest.mark.parametrize("adapter_input", ["normalised", "as_released"])
def test_cup_gives_the_losses_of_its_code(monkeypatch, adapter_input):
    data, case = golden("cup", "cup")
    method, model, tokens = cup_of(data, case, adapter_input=adapter_input)
    rows = torch.arange(len(tokens))
    noise = inputs((10, 6, len(tokens), data["sizes"]["embed_dim"]), data["seed"] + 1)
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: noise)
    with torch.no_grad():
        found = method.loss(model, Batch(pictures(data), tokens, rows, rows))
    official = case["losses"]
    assert float(found["infonce"]) == pytest.approx(official["clip_loss"], rel=1e-6)
    assert float(found["prior"]) == pytest.approx(official["prior_loss"], rel=1e-6)
    assert float(found["gap"]) == pytest.approx(official["uncertainty_loss"], rel=1e-5)  # a difference of small numbers


def test_cup_is_as_large_as_its_code():
    _, case = golden("cup", "cup")
    assert Cup.variants["n16"].trainable == case["trained_on_vit_b_32"] == 5_666_695


def test_cup_needs_all_of_its_checkpoint():
    method = Cup()
    model = method.build(encoder(golden("cup", "cup")[0]["sizes"]))
    with pytest.raises(OfficialError, match="no tensor visual_prompt_embeddings"):
        method.import_official(model, OfficialState({"prompt_embeddings": torch.zeros(1, 16, 64)}))


def test_cup_gates_start_open_and_stay_in_bounds():
    method = Cup()
    model = built(method, random_clip())
    batch = fake_batch(model.backbone)
    with torch.no_grad():
        context = model.cluster(batch.images)
        assert torch.allclose(model.mix(context), torch.tensor(0.5), atol=0.1)
        nn.init.constant_(model.image_gate.bias, 7.0)
        raw, _ = method._image(model, batch.images)
        plain = unit(raw, dim=-1)
        expected = 0.1 * model.image_adapter(plain) + 0.9 * plain
        assert far(method.encode_image(model, batch.images), expected) < 1e-5
        nn.init.constant_(model.image_gate.bias, -7.0)
        assert far(method.encode_image(model, batch.images), plain) < 1e-6


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(),
        LossConfig(mask_duplicates=True),
        LossConfig(name="siglip"),
        LossConfig(name="hmmc"),
        LossConfig(name="harma"),
    ],
    ids=lambda loss: f"{loss.name}{'-masked' * loss.mask_duplicates}",
)
def test_cup_reaches_every_tensor_under_every_loss(loss):
    method = Cup(loss=loss)
    model = built(method, random_clip())
    names = set(method.trainable(model))
    batch = fake_batch(model.backbone)
    assert audit.check_gradients(method, model, names, batch) == "ok"
    found = method.loss(model, batch)
    assert {"prior", "gap"} < set(found)
    if loss.name == "hmmc":
        assert {"hinge", "hinge_image", "hinge_text"} < set(found)


def test_cup_without_regularisers_is_the_contrastive_part():
    method = Cup(CupConfig(prior_weight=0, gap_weight=0))
    model = built(method, random_clip())
    assert set(method.loss(model, fake_batch(model.backbone))) == {"infonce"}


def test_cluster_regions_follow_the_grid():
    assert [divisor(56, 8), divisor(28, 4)] == [8, 4]  # 224 px, as released
    assert [divisor(16, 8), divisor(28, 8), divisor(7, 8), divisor(11, 8)] == [8, 7, 7, 1]
    torch.manual_seed(0)
    network = ContextCluster(12)
    for side in (28, 32, 64):
        assert network(torch.randn(2, 3, side, side)).shape == (2, 12)


def test_cluster_centres_gather_their_own_points_only():
    torch.manual_seed(0)
    cluster = ContextCluster(4).stages[0].cluster
    x = torch.randn(1, 128, 16, 16)
    moved = x.clone()
    moved[:, :, :2, :2] += 1.0  # one region of 2 x 2 points
    with torch.no_grad():
        change = (cluster(moved) - cluster(x)).abs().amax(1)[0]
    assert change[:2, :2].max() > 1e-3
    change[:2, :2] = 0
    assert change.max() < 1e-6


@pytest.mark.parametrize("make", [random_clip, random_two_tower])
def test_cup_without_its_prior_leaves_the_heads_of_the_prior_alone(make):
    method, backbone = Cup(CupConfig(prior_weight=0)), make()
    model = built(method, backbone)
    trained = set(method.trainable(model))
    sizes = dict(model.named_parameters())
    assert not any(name.startswith("prior") for name in trained)
    assert sum(sizes[name].numel() for name in trained) == method.expected_trainable(backbone)
    assert audit.check_gradients(method, model, trained, fake_batch(backbone)) == "ok"
