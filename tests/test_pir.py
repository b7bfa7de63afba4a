"""PIR: equal to the authors' code on the same weights, losses, sizes, released files, masks, the cached prior."""

import json
import re
from dataclasses import replace

import pytest
import torch
from golden.fill import filled, inputs, integers
from pir_parts import RELEASED, SMALL, audit_names, built, method_of
from small_trials import small_trial
from support import ROOT
from torch.nn.functional import normalize

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.harness.trial import run_trial
from petlbench.methods import losses
from petlbench.methods.backbones.base import BackboneError, Tokens
from petlbench.methods.backbones.minilm import build_bert
from petlbench.methods.backbones.random_models import random_clip, random_swin_bert, random_two_tower
from petlbench.methods.backbones.swin import SWIN_T, build_swin
from petlbench.methods.backbones.swin_bert import SwinBertEncoder
from petlbench.methods.backbones.swin_bert_files import BERT_BASE
from petlbench.methods.base import Batch, MethodError, count
from petlbench.methods.layers.prior_blocks import CyclicReadout, PriorReadout, head_size
from petlbench.methods.layers.scene_prior import ScenePrior
from petlbench.methods.official import OfficialError, OfficialState, load_official
from petlbench.methods.pir import Pir, PirConfig
from petlbench.methods.recipe import LossConfig, Recipe

GOLDEN = json.loads((ROOT / "tests" / "golden" / "pir.json").read_text(encoding="utf-8"))
pytestmark = pytest.mark.usefixtures("one_thread")


# --- against the authors' code ---


def all_shapes(by_pattern):
    found = {}
    for key, places in by_pattern.items():
        pattern, _, shape = key.partition("|")
        for place in places.split(" "):
            numbers = iter(place.split(","))
            name = re.sub(r"\{\}", lambda _: next(numbers), pattern)  # noqa: B023
            found[name] = [int(side) for side in shape.split(",")] if shape else []
    return found


def golden_tensors():
    shapes = all_shapes(GOLDEN["shapes"])
    tables = {n: s for n, s in shapes.items() if re.search("relative_position_index|attn_mask|num_batches_tracked", n)}
    state = filled({n: s for n, s in shapes.items() if n not in tables}, GOLDEN["seed"])
    for pattern, factor, term in GOLDEN["rules"]:
        for name in state:
            if re.fullmatch(pattern, name):
                state[name] = factor * state[name] + term
    state = {n: t.abs() if n.endswith("running_var") else t for n, t in state.items()}
    return {**state, **{n: torch.zeros(s, dtype=torch.int64) for n, s in tables.items()}}


def golden_backbone():
    swin, bert = GOLDEN["swin"], GOLDEN["bert"]
    vision = build_swin(swin["embed_dim"], swin["depths"], swin["num_heads"], swin["image_res"])
    language = build_bert({**bert, "layer_norm_eps": 1e-12})
    return SwinBertEncoder(
        "golden", vision, language, None, random_swin_bert().provenance, embed_dim=GOLDEN["embed_dim"]
    ).eval()


@pytest.fixture(scope="module")
def imported():
    """Our model as released with the golden weights, and the golden batch, without padding and labels."""
    method = method_of(**RELEASED)
    model = built(method, golden_backbone())
    state = OfficialState(golden_tensors(), "golden.pth")
    load_official(model, method.import_official(model, state), state, list(method.trainable(model)))
    rows, side = len(GOLDEN["image_ids"]), GOLDEN["swin"]["image_res"]
    ids = integers((rows, GOLDEN["length"]), GOLDEN["bert"]["vocab_size"], GOLDEN["seed"])
    batch = Batch(
        inputs((rows, 3, side, side), GOLDEN["seed"]),
        Tokens(ids, torch.ones_like(ids, dtype=torch.bool)),
        torch.tensor(GOLDEN["image_ids"]),
        torch.arange(rows),
    )
    return method, model.eval(), batch


def far(found, expected):
    expected = torch.as_tensor(expected)
    return float((found - expected).abs().max() / expected.abs().max())


def test_embeddings_equal_the_authors_code(imported):
    method, model, batch = imported
    with torch.no_grad():
        image, text = method.embed(model, batch)
    assert far(normalize(image, dim=-1), GOLDEN["image"]) <= 1e-5
    assert far(normalize(text, dim=-1), GOLDEN["text"]) <= 1e-5


def test_contrastive_loss_equals_the_authors_code(imported):
    method, model, batch = imported
    found = method.loss(model, batch)["multi_positive"].item()
    assert found == pytest.approx(GOLDEN["contrastive"], rel=1e-6)


def test_affiliation_loss_and_gradients_equal_the_authors_code():
    golden = GOLDEN["affiliation"]
    rows = len(golden["labels"])
    image = inputs((rows, 512), GOLDEN["seed"] + 1).requires_grad_()
    text = (image + 0.5 * inputs((rows, 512), GOLDEN["seed"] + 2)).detach().requires_grad_()
    temperature = torch.tensor(golden["temperature"], requires_grad=True)
    found = losses.affiliation(image, text, 1 / temperature, torch.tensor(golden["labels"]), transposed=True)
    assert found.item() == pytest.approx(golden["loss"], rel=1e-6)
    found.backward()
    for tensor, norm in zip((image, text, temperature), golden["gradient_norms"], strict=True):
        assert tensor.grad.norm().item() == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(
    "part", ["image_head.steps.0.cross", "image_head.steps.1.mapping", "image_head.prior", "prior"]
)
def test_the_golden_case_sees_every_part_of_the_image_head(imported, part):
    method, model, batch = imported
    chosen = list(model.get_submodule(part).parameters())
    kept = [p.detach().clone() for p in chosen]
    with torch.no_grad():
        before = normalize(method.encode_image(model, batch.images), dim=-1)
        for parameter in chosen:
            parameter.mul_(0.9)
        after = normalize(method.encode_image(model, batch.images), dim=-1)
        for parameter, value in zip(chosen, kept, strict=True):
            parameter.copy_(value)
    assert far(after, before) > 1e-4  # ten times the tolerance


# --- released checkpoints and sizes ---


@pytest.fixture(scope="module")
def full():
    """The full model in shape only, with everything that it declares."""
    method = method_of()
    provenance = random_swin_bert().provenance
    with torch.device("meta"):
        vision, language = build_swin(**SWIN_T, resolution=224), build_bert(BERT_BASE)
        backbone = SwinBertEncoder("swin-bert", vision, language, None, provenance)
        expected = method.expected_trainable(backbone)
        model = method.build(backbone)
    return method, model, expected


def test_sizes_are_those_of_the_authors_code(full):
    method, model, expected = full
    trained = set(method.trainable(model))
    new = set(audit_names(model.backbone))
    assert count(model, trained - new) == expected == 161_134_460 - 2 * 393_728 - 1
    assert count(model, trained) == GOLDEN["full"]["trained"] == 161_134_460
    assert sum(p.numel() for p in model.parameters()) == GOLDEN["full"]["total"] == 184_642_492
    parts = {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_children()}
    assert (parts["image_head"], parts["text_head"], parts["prior"]) == (10_256_384, 13_679_616, 23_508_032)
    towers = model.backbone
    assert sum(p.numel() for p in towers.vision.parameters()) == 27_519_354
    assert sum(p.numel() for p in towers.language.parameters()) == 108_891_648


def test_the_key_set_of_the_full_model_is_read_to_the_last_tensor(full):
    method, model, _ = full
    state = OfficialState({n: torch.empty(s, device="meta") for n, s in all_shapes(GOLDEN["full"]["shapes"]).items()})
    mapped = method.import_official(model, state)
    load_official(model, mapped, state, list(method.trainable(model)))
    assert mapped.keys() == set(model.state_dict()) and not list(state)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("text_encoder.encoder.layer.1.output.dense.bias"), "1 trained tensors without a value"),
        (lambda s: s.update({"conv_encoder.9.weight": torch.ones(1)}), r"1 unknown to the model: prior\.network\.9"),
        (lambda s: s.update({"other": torch.ones(1)}), "1 left over in the file: other"),
        (lambda s: s.update({"vision_proj.bias": torch.ones(3)}), "1 differing shapes"),
        (lambda s: s.pop("txt_ca.2.ffn.1.weight"), r"no tensor txt_ca\.2\.ffn\.1\.weight"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(imported, change, told):
    method, model, _ = imported
    tensors = golden_tensors()
    change(tensors)
    state = OfficialState(tensors)
    with pytest.raises(OfficialError, match=told):
        load_official(model, method.import_official(model, state), state, list(method.trainable(model)))


@pytest.mark.parametrize(("config", "make"), [({}, random_clip), (SMALL, random_swin_bert)])
def test_released_weights_fit_the_released_form_only(config, make):
    method = method_of(**config)
    with pytest.raises(MethodError, match=r"Use the backbone swin-bert and method\.prior=resnet50"):
        method.import_official(built(method, make()), OfficialState({}))


@pytest.mark.parametrize("make", [random_clip, random_two_tower, random_swin_bert])
@pytest.mark.parametrize("config", [{}, {"affiliation": 0.0, "image_steps": 1, "text_steps": 2}])
def test_closed_form_holds_and_gradients_reach_everything(make, config):
    method, backbone = method_of(**SMALL, **config), make()
    expected, new = method.expected_trainable(backbone), set(audit_names(backbone))
    model = built(method, backbone)
    names = set(method.trainable(model))
    assert count(model, names - new) == expected
    assert audit.check_gradients(method, model, names, fake_batch(backbone)) == "ok"
    assert not any(p.requires_grad for p in model.prior.parameters())


@pytest.mark.parametrize("name", ["infonce", "siglip", "hinge", "hinge_hardest", "hmmc", "adaptive_triplet", "harma"])
def test_every_loss_crosses_with_the_affiliation_loss(name):
    backbone = random_swin_bert()
    method = method_of(LossConfig(name=name), **SMALL)
    model = built(method, backbone)
    terms = method.loss(model, fake_batch(backbone))
    assert list(terms)[-1] == "affiliation" and len(terms) >= 2
    assert audit.check_gradients(method, model, set(method.trainable(model)), fake_batch(backbone)) == "ok"


# --- heads ---


def test_readout_equals_a_slow_reference():
    """Every kept token with a query row of its own, as the equations have it."""
    torch.manual_seed(0)
    head = PriorReadout(16, 6, steps=2, heads=4).eval()
    tokens, prior = inputs((3, 10, 16), 1), inputs((3, 6), 2)

    def attend(layer, query, memory):
        twin = torch.nn.MultiheadAttention(16, 4, batch_first=True)
        twin.in_proj_weight.data = torch.cat([layer.query.weight, layer.key_value.weight])
        twin.in_proj_bias.data = torch.cat([layer.query.bias, layer.key_value.bias])
        twin.out_proj.load_state_dict(layer.merge.state_dict())
        return twin(query, memory, memory, need_weights=False)[0]

    def block(layer, x, query):
        x = layer.norm1(x + attend(layer.attention, query, x))
        return layer.norm2(x + layer.ffn(x))

    with torch.no_grad():
        c = head.prior(prior)
        belief = torch.softmax((tokens @ c[:, :, None])[..., 0], 1)
        order = belief.argsort(1, descending=True)[:, :8]
        x = torch.stack([row[kept] for row, kept in zip(tokens, order, strict=True)])
        for step in head.steps:
            y = block(step.own, x, x)
            x = block(step.cross, y, step.mapping(c[:, None].expand_as(y)))
        assert torch.allclose(head(tokens, prior), head.head(x[:, 0]), atol=1e-5)


def test_cycles_ignore_padding_and_read_where_told():
    torch.manual_seed(0)
    head = CyclicReadout(16, heads=4).eval()
    tokens = inputs((2, 7, 16), 3)
    mask = torch.arange(7) < torch.tensor([[4], [7]])
    noisy = torch.where(mask[..., None], tokens, torch.tensor(9.0))
    at = torch.tensor([3, 6])
    with torch.no_grad():
        assert torch.allclose(head(tokens, mask, at), head(noisy, mask, at), atol=1e-6)
        assert torch.allclose(head(tokens[:1, :4], None, at[:1]), head(tokens, mask, at)[:1], atol=1e-6)
        assert not torch.allclose(head(tokens, mask, at), head(tokens, mask), atol=1e-2)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 23_936_000),
        ({"share": True}, 10_519_040),
        ({"bottleneck": 128}, 1_938_176),
        ({"bottleneck": 64}, 621_440),
        ({"bottleneck": 32}, 224_192),
    ],
)
def test_sizes_of_the_heads(options, size):
    with torch.device("meta"):
        heads = PriorReadout(512, 2048, **options), CyclicReadout(512, **options)
    assert sum(p.numel() for head in heads for p in head.parameters()) == size
    assert head_size(512, 2, prior_width=2048, **options) + head_size(512, 3, **options) == size


# --- padding ---


def test_as_released_sees_padding_and_the_default_does_not():
    for config, seen in (({}, False), (RELEASED, True)):
        backbone = random_swin_bert()
        method = method_of(**{**SMALL, **config})
        model = built(method, backbone).eval()
        assert backbone.trims_text is not seen
        tokens = fake_batch(backbone).tokens
        short = tokens[tokens.mask.sum(1).argsort()[:2]]
        with torch.no_grad():
            moved = far(method.encode_text(model, short.trimmed()), method.encode_text(model, short))
        assert moved > 1e-3 if seen else moved < 1e-5


# --- the prior ---


def test_the_prior_never_leaves_evaluation_mode():
    torch.manual_seed(0)
    prior = ScenePrior("resnet18", "random", 32).train()
    images = inputs((3, 3, 32, 32), 1)
    before = {n: t.clone() for n, t in prior.state_dict().items()}
    alone, together = prior(images[:1]), prior(images)
    assert torch.allclose(alone, together[:1], rtol=1e-4, atol=1e-4) and not together.requires_grad
    assert all(torch.equal(t, before[n]) for n, t in prior.state_dict().items())
    assert together.std(0).mean() > 0.02, "a random prior must tell pictures apart"


def test_a_prior_file_is_read_strictly(tmp_path):
    from torchvision.models import resnet18

    source = resnet18(weights=None)
    path = tmp_path / "scenes.pth"
    torch.save({"model": source.state_dict()}, path)
    prior = ScenePrior("resnet18", str(path), 32)
    assert torch.equal(prior.network.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    renamed = {f"0.{n}": t for n, t in source.state_dict().items()}  # what the released loader meets, and ignores
    torch.save(renamed, path)
    with pytest.raises(BackboneError, match="scene prior: 0 of 120 names match"):
        ScenePrior("resnet18", str(path), 32)


def test_a_kept_prior_gives_the_same_loss():
    backbone = random_swin_bert()
    method = method_of(**SMALL)
    model = built(method, backbone).eval()
    batch = fake_batch(backbone)
    kept = replace(batch, image_side=method.side_features(model, batch.images))
    with torch.no_grad():
        computed = method.embed(model, batch)
        model.prior.network = None  # must not be asked again
        found = method.embed(model, kept)
    for one, other in zip(found, computed, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(TypeError):
        method.embed(model, batch)


@pytest.mark.parametrize(
    ("setting", "passes"), [((), 48 + 30 + 30), (("train.augmentation.horizontal_flip=0.5",), None)]
)
def test_a_trial_asks_the_prior_once_per_picture(tmp_path, monkeypatch, setting, passes):
    monkeypatch.setattr("petlbench.harness.parts.load_backbone", lambda name, **options: random_clip(seed=7))
    seen = []
    forward = ScenePrior.forward
    monkeypatch.setattr(ScenePrior, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    trial = small_trial(tmp_path, *setting, "method.pir.prior=resnet18", "train.epochs=2", method="pir")
    record = run_trial(trial)
    audits = 2 * 4  # identity and gradients, four pictures each
    query = 2 * 30  # what encoding a picture takes is timed on the test pictures, after a run that warms up
    # Each split that is kept is asked for one picture first.
    if passes:
        assert sum(seen) == passes + audits + query + 3 and record.cost.cached_features
    else:
        assert sum(seen) == 2 * 48 + 30 + 30 + audits + query + 2 and not record.cost.cached_features
    assert record.audit["frozen"] == "ok" and record.curve[-1].parts["affiliation"] > 0


# --- recipe ---


def test_presets_say_what_the_configurations_say():
    recipe = Recipe(**Pir.presets["paper"].train)
    assert (recipe.lr, recipe.epochs, recipe.batch_size, recipe.betas) == (6e-5, 50, 256, (0.9, 0.98))
    assert (recipe.schedule, recipe.warmup, recipe.clip_norm, recipe.weight_decay) == ("linear", 0.1, 0.0, 0.01)
    assert (recipe.captions, recipe.loss.name, recipe.loss.positives) == ("cleaned", "multi_positive", "image")
    config = PirConfig(**Pir.presets["paper"].method)
    assert (config.padding, config.text_term, config.class_less) == ("seen", "transposed", "own_class")
    assert [p.selection for p in Pir.published] == ["test", "test"]
