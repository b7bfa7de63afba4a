"""Adapters in the blocks: AdaptFormer against its authors' code; where each sits, and what is shared over the layers."""

import json

import pytest
import torch
import torch.nn.functional as F
from built_models import assembled as built
from golden import openai_clip
from golden.fill import filled, inputs
from golden.vit_blocks import put_blocks, relative
from pydantic import ValidationError
from support import ROOT
from torch import nn

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.methods.adapter import Adapter, AdapterConfig
from petlbench.methods.adaptformer import AdaptFormer, AdaptFormerConfig
from petlbench.methods.backbones.base import Hidden
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.base import MethodError, count
from petlbench.methods.official import OfficialError, OfficialState, load_official
from petlbench.methods.uniadapter import UniAdapter, UniAdapterConfig

RANDOM = {"open_clip": random_clip, "two_tower": random_two_tower}
CPU = torch.device("cpu")
VIT_L_14 = {
    "embed_dim": 768,
    "image_resolution": 224,
    "vision_layers": 24,
    "vision_width": 1024,
    "vision_patch_size": 14,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 768,
    "transformer_heads": 12,
    "transformer_layers": 12,
}
METHODS = {
    "adapter": (Adapter, AdapterConfig),
    "adaptformer": (AdaptFormer, AdaptFormerConfig),
    "uniadapter": (UniAdapter, UniAdapterConfig),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def golden(name):
    return json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text(encoding="utf-8"))


def make(name, **options):
    cls, config = METHODS[name]
    return cls(config(**options))


def stir(model, method):
    """Give everything that is trained a value, so that no part hides behind a zero."""
    torch.manual_seed(1)
    trained = set(method.trainable(model))
    for name, parameter in model.named_parameters():
        if name in trained:
            nn.init.normal_(parameter, std=0.2)


def attached(tower, kind="mlp"):
    return [getattr(block, f"attached_{kind}")[0] for block in tower.blocks]


def embed(method, model, batch):
    return audit.embed_for_audit(method, model, batch, CPU)


def load(method, model, tensors):
    state = OfficialState(tensors, "golden.pth")
    load_official(model, method.import_official(model, state), state, set(method.trainable(model)))
    return state


# --- AdaptFormer against the authors' code ---


def adaptformer_at_golden():
    made = golden("adaptformer")
    size = made["sizes"]
    method = make("adaptformer", sharing="layer", towers="image", bottleneck=size["bottleneck"])
    model = built(method, random_clip(width=size["width"], blocks=size["depth"]))
    tensors = filled(made["shapes"], made["seed"], scale=0.2)
    put_blocks(model.image, tensors)
    return made, method, model, tensors


def test_adaptformer_equals_the_authors():
    made, method, model, tensors = adaptformer_at_golden()
    state = load(method, model, tensors)
    assert {"head.weight", "cls_token", "blocks.0.attn.q_proj.weight"} <= state.dropped.keys()
    out = model.eval().image.run(Hidden(inputs(made["sizes"]["input"], made["seed"]), prefix=1)).x
    assert relative(out, made["out"]) < 1e-5
    out.square().mean().backward()
    for index, adapter in enumerate(attached(model.image)):
        for layer in ("down", "up"):
            for kind in ("weight", "bias"):
                ours = getattr(getattr(adapter, layer), kind).grad.norm().item()
                theirs = made["gradient_norms"][f"blocks.{index}.adaptmlp.{layer}_proj.{kind}"]
                assert ours == pytest.approx(theirs, rel=1e-4)


def test_adaptformer_starts_as_the_authors_do():
    made, _, model, _ = adaptformer_at_golden()
    for layer in ("down", "up"):
        for kind in ("weight", "bias"):
            ours = getattr(getattr(attached(model.image)[0], layer), kind).abs().max().item()
            # Uniform values: the largest of 256 is near the bound, whatever the seed.
            assert ours == pytest.approx(made["start_largest"][f"{layer}_proj.{kind}"], rel=0.05)


def test_an_adaptformer_import_is_complete_or_refused():
    made, method, model, tensors = adaptformer_at_golden()
    with pytest.raises(OfficialError, match=r"1 left over in the file: blocks\.0\.adaptmlp\.scale"):
        load(method, model, tensors | {"blocks.0.adaptmlp.scale": torch.ones(1)})
    del tensors["blocks.1.adaptmlp.up_proj.bias"]
    with pytest.raises(OfficialError, match=r"no tensor blocks\.1\.adaptmlp\.up_proj\.bias"):
        load(method, model, tensors)
    for options in ({"towers": "image"}, {"sharing": "layer"}):
        other = make("adaptformer", **options)
        with pytest.raises(MethodError, match="sharing=layer and towers=image"):
            other.import_official(built(other, random_clip()), OfficialState(filled(made["shapes"], 0)))


# --- what each computes ---


@pytest.mark.parametrize("sharing", ["all", "layer"])
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_adapter_acts_on_what_the_branch_adds(sharing, placement):
    method = make("adapter", sharing=sharing, placement=placement, bottleneck=4)
    model = built(method, random_clip())
    stir(model, method)
    x = inputs((2, 5, 32), 3)

    def adapted(adapter, out):
        return out + adapter.up(F.gelu(adapter.down(out), approximate="tanh"))

    with torch.no_grad():
        expected = x
        for block in model.image.blocks:
            out = block.attention(block.ln_1(expected))
            expected = expected + (adapted(block.attached_attention[0], out) if placement == "houlsby" else out)
            expected = expected + adapted(block.attached_mlp[0], block.mlp(block.ln_2(expected)))
        assert torch.allclose(model.image.run(Hidden(x, prefix=1)).x, expected, atol=1e-5)
    assert hasattr(model.image.blocks[0], "attached_attention") == (placement == "houlsby")


@pytest.mark.parametrize("name", ["adaptformer", "uniadapter"])
def test_parallel_adapters_read_the_stream_in_post_norm_blocks_too(name):
    method = make(name, sharing="layer", bottleneck=4)
    model = built(method, random_two_tower())
    stir(model, method)
    x = inputs((2, 5, 32), 3)
    block, adapter = model.text.blocks[0], model.text.blocks[0].attached_mlp[0]
    with torch.no_grad():
        h = block.attention.output(block.attention.self(x)[0], x)
        read = F.layer_norm(h, (32,), adapter.norm.weight, adapter.norm.bias) if name == "uniadapter" else h
        added = 0.1 * adapter.up(F.relu(adapter.down(read)))
        expected = block.output.LayerNorm(block.output.dense(block.intermediate(h)) + added + h)
        assert torch.allclose(model.eval().text.run_block(0, Hidden(x)).x, expected, atol=1e-5)


def test_dropout_acts_while_training_only():
    for name in METHODS:
        method = make(name, dropout=0.5)
        backbone = random_clip()
        model, batch = built(method, backbone), fake_batch(backbone)
        stir(model, method)
        model.train()
        one, other = (method.encode_image(model, batch.images) for _ in range(2))
        assert not torch.allclose(one, other)
        assert torch.equal(embed(method, model, batch), embed(method, model, batch))


# --- sharing, places, counts ---


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("name", METHODS)
def test_one_module_serves_all_places_or_each_has_its_own(name, kind):
    for sharing in ("all", "layer"):
        method, backbone = make(name, sharing=sharing, bottleneck=4), RANDOM[kind]()
        expected = method.expected_trainable(backbone)
        model = built(method, backbone)
        assert count(model, method.trainable(model)) == expected
        for tower in (model.image, model.text):
            kinds = ("attention", "mlp") if name == "adapter" else ("mlp",)
            modules = [m for k in kinds for m in attached(tower, k)]
            assert len({id(m) for m in modules}) == (1 if sharing == "all" else len(modules))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("adapter", {}, 131_072 + 64 + 1_024 + 98_304 + 64 + 768),
        ("adapter", {"sharing": "layer"}, 48 * (131_072 + 64 + 1_024) + 24 * (98_304 + 64 + 768)),
        ("adaptformer", {"sharing": "layer"}, 24 * (131_072 + 64 + 1_024) + 12 * (98_304 + 64 + 768)),
        ("uniadapter", {}, 24 * (32_768 + 16 + 3 * 1_024) + 12 * (24_576 + 16 + 3 * 768)),
    ],
)
def test_sizes_scale_to_vit_l_14(name, options, expected):
    with torch.device("meta"):
        backbone = openai_clip.encoder(VIT_L_14)
        method = make(name, **options)
        assert method.expected_trainable(backbone) == expected
        model = method.build(backbone)
    assert count(model, method.trainable(model)) == expected


@pytest.mark.parametrize("name", ["adapter", "adaptformer"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_adapters_can_stay_in_one_tower(name, tower):
    method, backbone = make(name, towers=tower), random_clip()
    batch = fake_batch(backbone)
    before = audit.embed_untouched(backbone, batch, CPU)
    model = built(method, backbone)
    stir(model, method)
    image, text = ((embed(method, model, batch) - before).abs().amax(1) > 1e-3).chunk(2)
    assert image.all() == text.logical_not().all() == (tower == "image")
    assert text.all() == (tower == "text")


def test_the_same_seed_gives_the_same_adapters():
    for name in METHODS:
        method = make(name, sharing="layer")
        states = [built(method, random_clip(), seed).state_dict() for seed in (1, 1, 2)]
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
        assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


# --- starts and switches ---


def test_near_identity_is_small_but_not_nothing_and_not_promised():
    method, backbone = make("adapter", init="near_identity", sharing="layer"), random_clip()
    batch = fake_batch(backbone)
    before = audit.embed_untouched(backbone, batch, CPU)
    model = built(method, backbone)
    assert not method.identity_start and make("adapter").identity_start and Adapter.identity_start
    weights = torch.cat([layer.weight.flatten() for a in attached(model.image) for layer in (a.down, a.up)])
    assert weights.abs().max().item() <= 2e-3
    assert weights.std().item() == pytest.approx(0.88e-3, rel=0.03)  # a normal cut at two deviations has 0.88 of them
    difference = (embed(method, model, batch) - before).abs().max().item()
    assert 0 < difference < 1e-2


@pytest.mark.parametrize("kind", RANDOM)
def test_layer_norms_are_trained_where_asked_for(kind):
    backbone = RANDOM[kind]()
    plain, method = make("adapter"), make("adapter", layer_norms=True)
    expected = method.expected_trainable(backbone)
    batch = fake_batch(backbone)
    added = set(method.trainable(built(method, backbone))) - set(plain.trainable(built(plain, RANDOM[kind]())))
    norms = {n for n, m in RANDOM[kind]().named_modules() if isinstance(m, nn.LayerNorm)}
    new = set(backbone.new_parameters())
    assert added == {f"{n}.{part}" for n in norms for part in ("weight", "bias")} - new
    assert count(backbone, method.trainable(backbone)) == expected
    assert audit.check_gradients(method, backbone, set(method.trainable(backbone)), batch) == "ok"


def test_layer_norms_of_one_tower_only_are_refused():
    with pytest.raises(ValidationError, match="towers=both or layer_norms=false"):
        AdapterConfig(layer_norms=True, towers="image")
