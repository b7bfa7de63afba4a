"""PIR-CLIP: equal to the authors' code on the same weights, what `fixed` repairs, sizes, the prior, released files."""

import hashlib
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from built_models import assembled as built
from golden.fill import filled, inputs
from pir_clip_parts import SMALL, method_of
from support import ROOT
from torch.nn.functional import normalize

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.base import Hidden, Tokens
from petlbench.methods.backbones.open_clip_model import OpenClipEncoder
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.backbones.shapes import shape_only
from petlbench.methods.backbones.tiny_clip import untrained_tiny_clip
from petlbench.methods.base import Batch, MethodError, count
from petlbench.methods.official import OfficialError, OfficialState, load_official
from petlbench.methods.pir_clip import PirClipConfig
from petlbench.methods.recipe import LossConfig

GOLDEN = json.loads((ROOT / "tests" / "golden" / "pir_clip.json").read_text(encoding="utf-8"))
RELEASED = PirClipConfig(form="as_released")
pytestmark = pytest.mark.usefixtures("one_thread")


# --- against the authors' code ---


def golden_tensors():
    state = filled(GOLDEN["shapes"], GOLDEN["seed"])
    for pattern, factor, term in GOLDEN["rules"]:
        for name in state:
            if re.fullmatch(pattern, name):
                state[name] = factor * state[name] + term
    return state


def golden_backbone(activation="gelu"):
    import open_clip

    vision = {key: value for key, value in GOLDEN["vision"].items() if not key.startswith("res_")}
    vision["output_tokens"] = False
    towers = open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**GOLDEN["text"])
    clip = open_clip.CLIP(GOLDEN["embed_dim"], *towers)
    side = GOLDEN["vision"]["image_size"]
    provenance = random_clip().provenance.model_copy(update={"activation": activation, "resolution": side})
    return OpenClipEncoder("golden", clip, None, provenance).eval()


def golden_config(**options):
    vision = GOLDEN["vision"]
    return PirClipConfig(prior_layers=vision["res_layers"], prior_width=vision["res_width"], **options)


def golden_batch():
    side, ids = GOLDEN["vision"]["image_size"], torch.tensor(GOLDEN["ids"])
    times = side // 4
    coarse = inputs((len(ids), 3, 4, 4), GOLDEN["seed"]).repeat_interleave(times, 2).repeat_interleave(times, 3)
    pictures = coarse + torch.arange(side * side).remainder(7).reshape(side, side) / 7
    tokens = Tokens(ids, torch.arange(ids.shape[1]) <= ids.argmax(1, keepdim=True))
    return Batch(pictures, tokens, torch.arange(len(ids)), torch.arange(len(ids)), torch.tensor(GOLDEN["labels"]))


@pytest.fixture(scope="module")
def imported():
    """Our model with the golden weights, and the golden batch."""
    method = method_of(golden_config(form="as_released"))
    model = built(method, golden_backbone())
    state = OfficialState(golden_tensors(), "golden.pt")
    load_official(model, method.import_official(model, state), state, list(method.trainable(model)))
    return method, model, golden_batch()


def far(found, expected):
    expected = torch.as_tensor(expected)
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def golden_embeddings(method, model, batch):
    with torch.no_grad():
        return [normalize(e, dim=-1)[:, :: GOLDEN["stride"]] for e in method.embed(model, batch)]


def test_embeddings_equal_the_authors_code(imported):
    image, text = golden_embeddings(*imported)
    assert far(image, GOLDEN["image_embeddings"]) <= 1e-5
    assert far(text, GOLDEN["text_embeddings"]) <= 1e-5


def test_beliefs_equal_the_authors_code(imported):
    method, model, batch = imported
    with torch.no_grad():
        token = model.prior_map(model.prior(batch.images))[:, None]
        beliefs = method._scores(model.backbone.image.embed(batch.images).x, token).softmax(1)
    assert far(beliefs[:2], GOLDEN["belief"]) <= 1e-5


def test_losses_equal_the_authors_code(imported):
    method, model, batch = imported
    terms = method.loss(model, batch)
    assert list(terms) == ["infonce", "affiliation"]
    assert terms["infonce"].item() == pytest.approx(GOLDEN["contrastive"], rel=1e-6, abs=1e-6)
    assert terms["affiliation"].item() == pytest.approx(GOLDEN["affiliation"], rel=1e-6, abs=1e-6)


def test_gradients_equal_the_authors_code(imported):
    method, model, batch = imported
    own = dict(model.named_parameters())
    model.zero_grad()
    sum(method.loss(model, batch).values()).backward()
    assert len(GOLDEN["gradient_norms"]) >= 16
    for theirs, norm in GOLDEN["gradient_norms"].items():
        assert own[own_name(theirs)].grad.norm().item() == pytest.approx(norm, rel=1e-4), theirs


def own_name(theirs):
    for prefix, ours in (("res_visual.", "prior.net."), ("vision_proj_res.", "prior_map.")):
        if theirs.startswith(prefix):
            return ours + theirs.removeprefix(prefix)
    return f"backbone.clip.{theirs}"


@pytest.mark.parametrize(
    "change",
    [
        {"form": "fixed"},
        {"form": "as_released", "weighting": "belief"},
        {"form": "as_released", "belief": "scaled"},
        {"form": "as_released", "belief": "cosine"},
    ],
)
def test_the_golden_case_tells_the_forms_apart(imported, change):
    _, model, batch = imported
    image, text = golden_embeddings(method_of(golden_config(**change)), model, batch)
    assert far(image, GOLDEN["image_embeddings"]) > 1e-3
    assert far(text, GOLDEN["text_embeddings"]) <= 1e-5


def test_the_released_model_has_this_layout():
    method, backbone = method_of(RELEASED), shape_only("ViT-B-32")
    expected = GOLDEN["vit_b_32"]
    model = method.build(backbone)
    shapes = {}
    for name, tensor in model.state_dict().items():
        theirs = name.replace("prior.net.", "res_visual.").replace("prior_map.", "vision_proj_res.")
        shapes[theirs.removeprefix("backbone.clip.")] = list(tensor.shape)
    lines = "\n".join(f"{name} {shapes[name]}" for name in sorted(shapes))
    assert len(shapes) == expected["tensors"] == 643
    assert hashlib.sha256(lines.encode()).hexdigest() == expected["sha256"]
    assert count(model, method.trainable(model)) == expected["trained"] == 188_939_105
    assert sum(p.numel() for p in model.prior.parameters()) == expected["prior"] == 37_267_808


# --- what is computed ---


def states(tokens=6, width=32, batch=3):
    return inputs((batch, tokens, width), 5), 0.3 * inputs((batch, 1, width), 6)


def test_as_released_takes_the_sorting_order_for_ranks():
    x, token = states()
    found = method_of(RELEASED)._released_input(Hidden(x, prefix=1), token)
    belief = (x @ token.transpose(1, 2)).squeeze(-1).softmax(1)
    order = belief.sort(dim=1, descending=True).indices
    weighted = x * belief[..., None] + x * (order + 1).float().rsqrt()[..., None]
    assert torch.equal(found.x[:, :1], token) and found.prefix == 2
    assert torch.allclose(found.x[:, 1:], weighted / weighted.norm(dim=1, keepdim=True), atol=1e-6)
    assert torch.allclose(found.x[:, 1:].norm(dim=1), torch.ones(3, 32), atol=1e-5)  # of each channel, over the tokens


def test_fixed_ranks_patches_and_keeps_their_size():
    x, token = states()
    found = method_of()._fixed_input(Hidden(x, prefix=1), token)
    assert torch.equal(found.x[:, :1], x[:, :1]) and torch.equal(found.x[:, 1:2], token)  # class token, prior
    factors = (found.x[:, 2:] / x[:, 1:]).mean(-1)
    scores = (x[:, 1:] @ token.transpose(1, 2)).squeeze(-1)
    assert torch.equal(factors.argsort(dim=1), scores.argsort(dim=1))  # the more belief, the more weight
    assert torch.allclose(factors.mean(1), torch.ones(3), atol=1e-5)
    best = factors.amax(1) / factors.amin(1)
    belief = scores.softmax(1)
    expected = (belief.amax(1) + 1) / (belief.amin(1) + 1 / math.sqrt(5))
    assert torch.allclose(best, expected, rtol=1e-4)


def test_fixed_does_not_depend_on_the_order_of_patches():
    backbone = random_clip(resolution=64)
    x, token = inputs((2, 17, 32), 7), inputs((2, 1, 32), 8)
    order = torch.tensor([0, *reversed(range(1, 17))])
    for feed, independent in ((method_of()._fixed_input, True), (method_of(RELEASED)._released_input, False)):
        with torch.no_grad():
            plain, moved = (
                backbone.image.pool(backbone.image.run(feed(Hidden(h, prefix=1), token))) for h in (x, x[:, order])
            )
        assert (far(moved, plain) < 1e-5) == independent


def test_normalising_along_features_would_undo_the_weights():
    x, token = states()
    weighted = method_of()._fixed_input(Hidden(x, prefix=1), token).x[:, 2:]
    assert not torch.allclose(weighted, x[:, 1:], atol=1e-2)
    assert torch.allclose(normalize(weighted, dim=-1), normalize(x[:, 1:], dim=-1), atol=1e-6)


@pytest.mark.parametrize("form", ["fixed", "as_released"])
def test_which_token_is_read(form):
    backbone = random_clip(blocks=1)
    method = method_of(PirClipConfig(form=form, **SMALL))
    model = built(method, backbone)
    kept = {}
    tower = backbone.image
    tower.run_block, plain = (lambda i, h: kept.setdefault("h", plain(i, h))), tower.run_block
    with torch.no_grad():
        found = method.encode_image(model, torch.randn(2, 3, 32, 32))
        at_start = method.head_image(model, tower.visual.ln_post(kept["h"].x[:, 0]))
    assert torch.equal(found, at_start)


def test_beliefs_that_underflow_still_have_an_order():
    x, token = states()
    hidden, strong = Hidden(x, prefix=1), 500 * token
    assert (method_of()._scores(x, strong).softmax(1) == 0).sum() > 6
    found = method_of()._fixed_input(hidden, strong).x[:, 2:] / x[:, 1:]
    scores = method_of()._scores(x[:, 1:], strong)
    assert torch.equal(found.mean(-1).argsort(dim=1), scores.argsort(dim=1))


# --- what is trained ---


@pytest.mark.parametrize("make", [random_clip, untrained_tiny_clip, lambda: random_clip(blocks=1, text_width=16)])
@pytest.mark.parametrize("trains", ["all", "figure", "token"])
def test_the_closed_form_holds_and_everything_trained_is_reached(make, trains):
    method, backbone = method_of(PirClipConfig(trains=trains, **SMALL)), make()
    expected = method.expected_trainable(backbone)
    model = built(method, backbone)
    names = set(method.trainable(model))
    assert count(model, names) == expected
    assert audit.check_gradients(method, model, names, fake_batch(backbone)) == "ok"


def test_as_described_freezes_text_and_prior():
    backbone = random_clip()
    model = built(method_of(PirClipConfig(form="as_described", **SMALL)), backbone)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any(n.startswith("prior.") for n in trained)
    assert trained >= {"prior_map.weight", "backbone.clip.visual.proj", "backbone.clip.logit_scale"}
    assert {n for n in trained if "visual" not in n} == {
        "prior_map.weight",
        "prior_map.bias",
        "backbone.clip.logit_scale",
    }


def test_other_settings_can_be_frozen_without_the_form():
    method = method_of(PirClipConfig(form="as_released", trains="token", **SMALL))
    model = built(method, random_clip())
    assert list(method.trainable(model)) == ["prior_map.weight", "prior_map.bias"]


@pytest.mark.parametrize("name", ["infonce", "multi_positive", "siglip", "hinge_hardest", "hmmc", "harma"])
def test_every_loss_can_stand_beside_affiliation(name):
    backbone, loss = random_clip(), LossConfig(name=name)
    method = method_of(PirClipConfig(**SMALL), loss)
    model = built(method, backbone)
    terms = method.loss(model, fake_batch(backbone))
    assert "affiliation" in terms and len(terms) > 1
    assert all(torch.isfinite(value) for value in terms.values())


def test_affiliation_needs_labels_and_a_weight():
    backbone, batch = random_clip(), fake_batch(random_clip())
    off = method_of(PirClipConfig(affiliation=0, **SMALL))
    assert list(off.loss(built(off, backbone), batch)) == ["infonce"]
    on = method_of(PirClipConfig(affiliation=0.5, **SMALL))
    model = built(on, random_clip())
    assert list(on.loss(model, replace(batch, labels=None))) == ["infonce"]
    whole = method_of(PirClipConfig(**SMALL)).loss(model, batch)["affiliation"]
    assert on.loss(model, batch)["affiliation"].item() == pytest.approx(0.5 * whole.item(), rel=1e-6)


def test_a_picture_without_a_class_is_left_out_or_a_class_as_released():
    batch = fake_batch(random_clip())  # row 5 has no label
    fixed, released = (method_of(PirClipConfig(form=f, **SMALL)) for f in ("fixed", "as_released"))
    own = replace(batch, labels=torch.where(batch.labels < 0, 99, batch.labels))
    for method, equal in ((fixed, False), (released, True)):
        model = built(method, random_clip())
        with torch.no_grad():
            one, other = (float(method.loss(model, b)["affiliation"]) for b in (batch, own))
        assert (one == pytest.approx(other, rel=1e-6)) == equal


def test_the_temperature_is_clamped():
    method = method_of(PirClipConfig(**SMALL))
    model = built(method, random_clip())
    for start, expected in ((10.0, 100.0), (-1.0, 1.0), (2.0, math.exp(2))):
        torch.nn.init.constant_(model.backbone.clip.logit_scale, start)
        assert method.logit_scale(model).exp().item() == pytest.approx(expected, rel=1e-5)


# --- refusals and released checkpoints ---


@pytest.mark.parametrize("side", [30, 33])
def test_pictures_that_the_prior_cannot_halve_are_refused(side):
    assert f"has {side} px" in method_of().refuse(random_clip(resolution=side, patch=side // 3))


def test_other_backbones_are_refused():
    assert "backbones of kind open_clip" in method_of().refuse(random_two_tower())
    averaging = random_clip()
    averaging.image.visual.pool_type = "avg"
    assert "averages over patches" in method_of(RELEASED).refuse(averaging)
    assert method_of().refuse(averaging) is None


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda s: s.pop("res_visual.layer3.0.bn1.running_var"), OfficialError, "lacks 1 of"),
        (lambda s: s.pop("vision_proj_res.bias"), OfficialError, r"lacks 1 of .* prior_map\.bias"),
        (lambda s: s.pop("visual.proj"), OfficialError, "part of CLIP"),
        (lambda s: s.update({"other.weight": torch.ones(1)}), OfficialError, "1 unknown to the model"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(change, error, told):
    method = method_of(golden_config(form="as_released"))
    model = built(method, golden_backbone())
    tensors = golden_tensors()
    change(tensors)
    state = OfficialState(tensors)
    with pytest.raises(error, match=told):
        load_official(model, method.import_official(model, state), state, list(method.trainable(model)))


def test_released_weights_fit_the_released_form_and_activation_only():
    method = method_of(golden_config())
    with pytest.raises(MethodError, match="belongs to form as_released; asked for fixed"):
        method.import_official(built(method, golden_backbone()), OfficialState(golden_tensors()))
    method = method_of(golden_config(form="as_released"))
    model = built(method, golden_backbone("quick_gelu"))
    with pytest.raises(MethodError, match="was trained with gelu; golden computes quick_gelu"):
        method.import_official(model, OfficialState(golden_tensors()))


def test_the_prior_of_a_checkpoint_serves_the_other_forms(tmp_path):
    path = tmp_path / "PIR-CLIP_RET-3.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in golden_tensors().items()}}, path)
    model = built(method_of(golden_config(form="as_described", prior_weights=str(path))), golden_backbone())
    assert torch.equal(model.prior.net.conv1.weight, golden_tensors()["res_visual.conv1.weight"])
