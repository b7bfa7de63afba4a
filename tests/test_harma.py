"""HarMA: equal to the authors' code on the same weights, both forms, sizes, temperature, padding."""

import pytest
import torch
from built_models import assembled as built
from golden.fill import inputs
from harma_case import DESCRIBED, GOLDEN, golden_backbone, golden_tensors, method_of
from pydantic import ValidationError
from torch.nn.functional import normalize

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.harness.engine import parameter_groups
from petlbench.methods.backbones.base import Hidden, Tokens
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.backbones.shapes import shape_only
from petlbench.methods.backbones.tiny_clip import untrained_tiny_clip
from petlbench.methods.base import Batch, count
from petlbench.methods.harma import Harma, HarmaConfig, _own_name
from petlbench.methods.layers.mini_adapter import GATE_START, MiniAdapter, visible_keys
from petlbench.methods.official import OfficialState, load_official
from petlbench.methods.recipe import LossConfig, Recipe

LOSS = LossConfig(**Harma.presets["paper"].train["loss"])

pytestmark = pytest.mark.usefixtures("one_thread")


def stir(method, model, seed=1):
    """Give every trained tensor a value, so that adapters are no identity."""
    generator = torch.Generator().manual_seed(seed)
    trained = set(method.trainable(model)) - {"temperature"}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def adapters(tower):
    return [block.attached_mlp[0] for block in tower.blocks]


# --- against the authors' code ---


@pytest.fixture(scope="module", params=["gelu", "quick_gelu"])
def imported(request):
    """Our model with the golden weights, its loss on the golden batch, and what the authors' code gave."""
    method = method_of(loss=LOSS)
    model = built(method, golden_backbone(request.param))
    state = OfficialState(golden_tensors(), "golden.pth")
    load_official(model, method.import_official(model, state), state, list(method.trainable(model)))
    side = GOLDEN["vision"]["image_size"]
    ids = torch.tensor(GOLDEN["ids"])
    batch = Batch(
        inputs((len(ids), 3, side, side), GOLDEN["seed"]),
        Tokens(ids, torch.arange(ids.shape[1]) <= ids.argmax(1, keepdim=True)),
        torch.tensor(GOLDEN["image_ids"]),
        torch.arange(len(ids)),
    )
    return method, model, batch, GOLDEN["activations"][request.param]


def far(found, expected):
    expected = torch.as_tensor(expected)
    return float((found - expected).abs().max() / expected.abs().max())


def test_embeddings_equal_the_authors_code(imported):
    method, model, batch, expected = imported
    with torch.no_grad():
        image, text = method.embed(model, batch)
    assert far(normalize(image, dim=-1), expected["image"]) <= 1e-5
    assert far(normalize(text, dim=-1), expected["text"]) <= 1e-5


def test_losses_equal_the_authors_code(imported):
    method, model, batch, expected = imported
    terms = method.loss(model, batch)
    assert list(terms) == ["multi_positive", "adaptive_triplet"]
    assert terms["multi_positive"].item() == pytest.approx(expected["contrastive"], rel=1e-6, abs=1e-6)
    assert terms["adaptive_triplet"].item() == pytest.approx(expected["triplet"], rel=1e-6, abs=1e-6)


def test_gradients_equal_the_authors_code(imported):
    method, model, batch, expected = imported
    own = dict(model.named_parameters())
    model.zero_grad()
    sum(method.loss(model, batch).values()).backward()
    assert len(expected["gradient_norms"]) >= 17
    for theirs, norm in expected["gradient_norms"].items():
        name = "temperature" if theirs == "temp" else _own_name(theirs)
        assert own[name].grad.norm().item() == pytest.approx(norm, rel=1e-4), theirs


@pytest.mark.parametrize("part", ["mini", "attention", "gate", "block_gate"])
def test_the_golden_case_sees_every_part(imported, part):
    method, model, batch, _ = imported
    chosen = [p for n, p in adapters(model.text)[0].named_parameters() if n.split(".")[0] == part]
    kept = [p.detach().clone() for p in chosen]
    with torch.no_grad():
        before = normalize(method.encode_text(model, batch.tokens), dim=-1)
        for parameter in chosen:
            parameter.mul_(0.9)
        after = normalize(method.encode_text(model, batch.tokens), dim=-1)
        for parameter, value in zip(chosen, kept, strict=True):
            parameter.copy_(value)
    assert far(after, before) > 1e-4  # ten times the tolerance


# --- sizes ---


@pytest.mark.parametrize("form", ["as_released", "as_described"])
def test_size_on_vit_b_32_equals_what_the_authors_code_trains(form):
    method, backbone = method_of(HarmaConfig(form=form)), shape_only("ViT-B-32")
    expected = method.expected_trainable(backbone)
    model = method.build(backbone)
    names = list(method.trainable(model))
    assert count(model, names) == expected == GOLDEN["vit_b_32"]["trained"] == 5_934_397
    assert len(names) == GOLDEN["vit_b_32"]["adapter_tensors"] + 1


@pytest.mark.parametrize("architecture", ["ViT-B-16", "ViT-L-14"])
@pytest.mark.parametrize("config", [HarmaConfig(), DESCRIBED, HarmaConfig(bottleneck=64, mini_bottleneck=24, heads=4)])
def test_closed_form_holds_for_other_towers(architecture, config):
    method, backbone = method_of(config), shape_only(architecture)
    expected = method.expected_trainable(backbone)
    model = method.build(backbone)
    assert count(model, method.trainable(model)) == expected


@pytest.mark.parametrize("config", [HarmaConfig(), DESCRIBED])
@pytest.mark.parametrize("make", [untrained_tiny_clip, random_two_tower, lambda: random_clip(blocks=1, text_blocks=3)])
def test_closed_form_holds_where_towers_differ_in_depth(config, make):
    method, backbone = method_of(config), make()
    expected = method.expected_trainable(backbone)
    model = built(method, backbone)
    assert count(model, method.trainable(model)) == expected
    assert audit.check_gradients(method, model, set(method.trainable(model)), fake_batch(backbone)) == "ok"


@pytest.mark.parametrize(("field", "width"), [("bottleneck", 100), ("mini_bottleneck", 12)])
def test_heads_have_to_divide_both_bottlenecks(field, width):
    with pytest.raises(ValidationError, match=f"heads=8 does not divide {field}={width}"):
        HarmaConfig(**{field: width})


# --- forms ---


def test_as_released_has_mini_adapters_in_the_text_tower_only():
    model = built(method_of(), random_clip(blocks=3))
    assert [a.mini for a in adapters(model.image)] == [None] * 3
    minis = [a.mini for a in adapters(model.text)]
    assert all(isinstance(m, MiniAdapter) for m in minis) and len(set(map(id, minis))) == 3


def test_as_described_shares_one_mini_adapter_per_layer():
    model = built(method_of(DESCRIBED), random_clip(blocks=2, text_blocks=3))
    image, text = ([a.mini for a in adapters(tower)] for tower in (model.image, model.text))
    assert image[0] is text[0] and image[1] is text[1] and len(set(map(id, text))) == 3


def test_the_block_equation():
    model = built(method_of(), random_clip())
    stir(method_of(), model)
    adapter, block = adapters(model.image)[0], model.image.blocks[0]
    x = inputs((2, 5, 32), 7)

    def attend(layer, z):
        twin = torch.nn.MultiheadAttention(128, 8, batch_first=True)
        twin.load_state_dict(
            {
                "in_proj_weight": layer.qkv.weight,
                "in_proj_bias": layer.qkv.bias,
                "out_proj.weight": layer.out.weight,
                "out_proj.bias": layer.out.bias,
            }
        )
        return twin(z, z, z, need_weights=False)[0]

    with torch.no_grad():
        h = x + block.attention(q_x=block.ln_1(x))
        y = block.mlp(block.ln_2(h))
        z = torch.nn.functional.gelu(adapter.down(y))
        u = attend(adapter.attention, attend(adapter.attention, z))
        a, s = adapter.gate.sigmoid(), adapter.block_gate.sigmoid()
        adapted = y + adapter.up(a * z + (1 - a) * u)
        expected = h + s * adapted + (1 - s) * y
        assert torch.allclose(model.image.run_block(0, Hidden(x)).x, expected, atol=1e-5)


def test_same_seed_same_weights_whatever_was_built_before():
    first = built(method_of(), random_clip(), seed=5).state_dict()
    built(method_of(), random_clip(), seed=1)
    again = built(method_of(), random_clip(), seed=5).state_dict()
    other = built(method_of(), random_clip(), seed=6).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_two_models_share_nothing():
    one, other = (built(method_of(), random_clip()) for _ in range(2))
    assert not {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}


def test_gates_start_where_the_authors_do():
    model = built(method_of(), random_clip())
    gates = [p for n, p in model.named_parameters() if n.endswith("gate")]
    assert len(gates) == 2 * 2 * 2 + 2 and all(g.item() == pytest.approx(GATE_START) for g in gates)


# --- padding ---


@pytest.mark.parametrize("make", [random_clip, random_two_tower])
def test_as_released_sees_padding_and_says_so(make):
    method, backbone = method_of(), make()
    assert backbone.trims_text
    model = built(method, backbone)
    assert not backbone.trims_text
    stir(method, model)
    tokens = fake_batch(backbone).tokens
    short = tokens[tokens.mask.sum(1).argsort()[:2]]
    with torch.no_grad():
        assert far(method.encode_text(model, short.trimmed()), method.encode_text(model, short)) > 1e-3


@pytest.mark.parametrize("make", [random_clip, random_two_tower])
@pytest.mark.parametrize("config", [DESCRIBED, HarmaConfig(text_attention="causal")])
def test_masked_attention_does_not_see_padding(make, config):
    method, backbone = method_of(config), make()
    model = built(method, backbone)
    assert backbone.trims_text
    stir(method, model)
    tokens = fake_batch(backbone).tokens
    short = tokens[tokens.mask.sum(1).argsort()[:2]]
    noisy = Tokens(torch.where(short.mask, short.ids, 7), short.mask)
    with torch.no_grad():
        whole = method.encode_text(model, short)
        assert far(method.encode_text(model, short.trimmed()), whole) < 1e-5
        assert far(method.encode_text(model, noisy), whole) < 1e-5


def test_what_a_token_may_see():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    x, ends = torch.zeros(2, 3, 4), torch.tensor([1, 2])
    assert visible_keys(Hidden(x, mask=mask), "all") is None
    assert visible_keys(Hidden(x), "padding") is None
    assert visible_keys(Hidden(x, mask=mask), "padding").squeeze().equal(mask)
    assert visible_keys(Hidden(x, pool_at=ends), "padding").squeeze().equal(mask)
    order = torch.ones(3, 3, dtype=torch.bool).tril()
    assert visible_keys(Hidden(x, pool_at=ends), "causal").squeeze().equal(order)
    assert visible_keys(Hidden(x, mask=mask), "causal")[0, 0].equal(order & mask[0])


# --- temperature and recipe ---


def test_the_temperature_divides():
    method = method_of(loss=LOSS)
    model = built(method, random_clip())
    assert model.temperature.item() == pytest.approx(0.07)
    assert method.logit_scale(model).exp().item() == pytest.approx(1 / 0.07, rel=1e-6)
    assert model.temperature.requires_grad and not model.clip.logit_scale.requires_grad


@pytest.mark.parametrize("name", ["infonce", "multi_positive", "siglip", "hinge", "hinge_hardest", "hmmc", "harma"])
def test_every_loss_reaches_everything_that_is_trained(name):
    backbone = random_clip()
    method = method_of(loss=LossConfig(name=name))
    expected = method.expected_trainable(backbone)
    model = built(method, backbone)
    names = set(method.trainable(model))
    assert ("temperature" in names) == (name in ("infonce", "multi_positive", "siglip", "harma"))
    assert count(model, names) == expected
    assert audit.check_gradients(method, model, names, fake_batch(backbone)) == "ok"


def test_paper_recipe_decays_all_but_biases():
    recipe = Recipe(**Harma.presets["paper"].train)
    method = method_of(loss=recipe.loss)
    model = built(method, random_clip())
    groups = parameter_groups(model, list(method.trainable(model)), set(), recipe)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert (id(parameter) in decayed) == (not name.endswith("bias")), name
    assert {g["weight_decay"] for g in groups} == {0.0, 0.04}


def test_presets_say_what_the_configurations_say():
    vit, geo = (Recipe(**Harma.presets[name].train) for name in ("paper", "paper_geo"))
    assert (vit.lr, vit.epochs, geo.lr, geo.epochs) == (4e-4, 50, 4e-6, 80)
    for recipe in (vit, geo):
        assert (recipe.batch_size, recipe.betas, recipe.schedule, recipe.warmup) == (428, (0.9, 0.98), "linear", 0.1)
        assert (recipe.clip_norm, recipe.captions, recipe.loss.name) == (0.0, "cleaned", "harma")
        assert recipe.augmentation.randaugment.magnitude == 7
