"""Convpass: against its authors' code, on any grid, and what its convolutions may see."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from built_models import assembled as built
from golden.fill import filled, inputs
from golden.vit_blocks import put_blocks, relative
from support import ROOT
from torch import nn

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.base import BranchState, Hidden
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.base import MethodError, count
from petlbench.methods.convpass import Convpass, ConvpassConfig
from petlbench.methods.layers.patch_conv import CausalBypass, GridError, PatchBypass
from petlbench.methods.official import OfficialError, OfficialState, load_official

GOLDEN = json.loads((ROOT / "tests" / "golden" / "convpass.json").read_text(encoding="utf-8"))
FORMS = GOLDEN["forms"]
PLACEMENT = {"convpass": "both", "convpass_attn": "attention"}
RANDOM = {"open_clip": random_clip, "two_tower": random_two_tower}
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def stirred(module):
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def state(x, prefix=1):
    """What a bypass sees of a branch that adds nothing."""
    return BranchState(torch.zeros_like(x), torch.full_like(x, torch.nan), x, Hidden(x, prefix=prefix))


# --- against the authors' code ---


@pytest.fixture(scope="module")
def wide():
    """One block as wide as the released layers, and its input; 14 x 14 patches."""
    backbone = random_clip(width=768, blocks=1, text_width=32, resolution=32, patch=16)
    return backbone, inputs(GOLDEN["sizes"]["input"], GOLDEN["seed"])


def at_golden(name, backbone):
    form, size = FORMS[name], GOLDEN["sizes"]
    options = {"bottleneck": size["bottleneck"], "scale": form["scale"], "placement": PLACEMENT[name]}
    method = Convpass(ConvpassConfig(sharing="layer", **options))
    return form, method, built(method, copy.deepcopy(backbone))


@pytest.mark.parametrize("name", FORMS)
def test_a_block_equals_the_authors(name, wide):
    backbone, x = wide
    form, method, model = at_golden(name, backbone)
    block = model.image.blocks[0]
    put_blocks(model.image, filled(form["block_shapes"], GOLDEN["seed"]))
    tensors = OfficialState(filled(form["shapes"], GOLDEN["seed"]), "golden.pt")
    load_official(model, method.import_official(model, tensors), tensors, set(method.trainable(model)))
    assert tensors.dropped.keys() == {"head.weight", "head.bias"}
    out = model.eval().image.run_block(0, Hidden(x, prefix=1)).x
    sample = out[:, GOLDEN["sizes"]["tokens"], : GOLDEN["sizes"]["channels"]]
    for ours, key in ((sample, "sample"), (out.norm(dim=-1), "token_norms")):
        assert relative(ours, form[key]) < 1e-5
    out.square().mean().backward()
    gradients = {}
    for kind, official in (("attention", "attn"), ("mlp", "mlp")):
        for bypass in getattr(block, f"attached_{kind}", ()):
            for part, parameter in bypass.named_parameters():
                gradients[f"blocks.0.adapter_{official}.adapter_{part}"] = parameter.grad.norm().item()
    assert gradients == {n: pytest.approx(value, rel=1e-4) for n, value in form["gradient_norms"].items()}


@pytest.mark.parametrize("name", FORMS)
def test_the_start_equals_the_authors(name, wide):
    form, _, model = at_golden(name, wide[0])
    for official, sums in form["start_sums"].items():
        kind = "attention" if "adapter_attn" in official else "mlp"
        bypass = getattr(model.image.blocks[0], f"attached_{kind}")[0]
        parameter = bypass.get_parameter(official.split("adapter_")[-1])
        assert [parameter.sum().item(), parameter.square().sum().item()] == sums  # the identity, or zeros
    down = model.image.blocks[0].attached_attention[0].down.weight
    assert down.abs().max().item() == pytest.approx((6 / (768 + 8)) ** 0.5, rel=0.01)  # Xavier-uniform


def test_an_import_is_complete_or_refused():
    shapes = {
        f"blocks.0.adapter_attn.adapter_{n}": tuple(p.shape) for n, p in PatchBypass(32, 8, 0, 1).named_parameters()
    }
    method = Convpass(ConvpassConfig(sharing="layer", placement="attention", bottleneck=8))
    model = built(method, random_clip(blocks=1))
    tensors = filled(shapes, 0)
    extra = OfficialState({**tensors, "blocks.1.adapter_attn.adapter_up.bias": torch.ones(32)}, "x.pt")
    with pytest.raises(OfficialError, match=r"1 left over in the file: blocks\.1\.adapter_attn"):
        load_official(model, method.import_official(model, extra), extra, set(method.trainable(model)))
    both = Convpass(ConvpassConfig(sharing="layer", bottleneck=8))
    with pytest.raises(OfficialError, match=r"no tensor blocks\.0\.adapter_mlp\.adapter_down\.weight"):
        both.import_official(built(both, random_clip(blocks=1)), OfficialState(tensors))
    for options in ({}, {"sharing": "layer", "text": "causal_conv"}):
        other = Convpass(ConvpassConfig(**options))
        with pytest.raises(MethodError, match="sharing=layer and text=none"):
            other.import_official(model, OfficialState(tensors))


# --- the convolutions ---


@pytest.mark.parametrize("side", [1, 2, 7])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_patches_are_convolved_on_their_grid_and_leading_tokens_alone(side, prefix):
    bypass = stirred(PatchBypass(12, 4, 0.0, 0.5))
    x = inputs((2, prefix + side * side, 12), 0)
    inner = F.linear(x, bypass.down.weight, bypass.down.bias)
    inner = inner * torch.sigmoid(1.702 * inner)
    maps = [inner[:, i : i + 1].transpose(1, 2)[..., None] for i in range(prefix)]
    maps.append(inner[:, prefix:].transpose(1, 2).reshape(2, 4, side, side))
    mixed = torch.cat([bypass.conv(m).flatten(2).transpose(1, 2) for m in maps], 1)
    expected = 0.5 * bypass.up(mixed * torch.sigmoid(1.702 * mixed))
    assert torch.allclose(bypass(state(x, prefix)), expected, atol=1e-5)


def test_a_picture_that_is_not_square_is_refused():
    with pytest.raises(GridError, match=r"7 tokens, 1 of them no patches, leave 6, which is no square grid"):
        PatchBypass(12, 4, 0.0, 1.0)(state(torch.zeros(2, 7, 12)))


def test_a_word_sees_itself_and_the_two_before_it():
    bypass, x = stirred(CausalBypass(12, 4, 0.0, 1.0)), inputs((1, 6, 12), 0)
    before = bypass(state(x, 0))
    assert before.shape == x.shape
    x[0, 2] += 1
    moved = (bypass(state(x, 0)) - before).abs().amax(2)[0] > 1e-4
    assert moved.tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize("kind", [PatchBypass, CausalBypass])
def test_the_convolution_starts_as_the_identity_or_at_random(kind):
    x = inputs((2, 5, 12), 0)
    bypass = kind(12, 4, 0.0, 1.0)
    assert torch.equal(bypass(state(x)), torch.zeros_like(x))
    assert torch.allclose(bypass._mix(x[..., :4], 1), x[..., :4])
    assert not torch.allclose(kind(12, 4, 0.0, 1.0, identity=False)._mix(x[..., :4], 1), x[..., :4])


# --- the method ---


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("text", ["none", "causal_conv"])
@pytest.mark.parametrize("placement", ["both", "attention"])
@pytest.mark.parametrize("sharing", ["all", "layer"])
def test_the_count_has_its_closed_form_and_text_moves_only_if_asked(kind, text, placement, sharing):
    method = Convpass(ConvpassConfig(bottleneck=4, text=text, placement=placement, sharing=sharing))
    backbone = RANDOM[kind]()
    batch, expected = fake_batch(backbone), method.expected_trainable(backbone)
    before = audit.embed_untouched(backbone, batch, CPU)
    model = built(method, backbone)
    trained = set(method.trainable(model))
    assert count(model, trained) == expected
    for name, parameter in model.named_parameters():
        if name in trained:
            nn.init.normal_(parameter, std=0.3)
    image, words = ((audit.embed_for_audit(method, model, batch, CPU) - before).abs().amax(1) > 1e-4).chunk(2)
    assert image.all()
    assert words.all() if text == "causal_conv" else not words.any()


def test_padding_a_caption_changes_nothing_with_the_causal_convolution():
    method, backbone = Convpass(ConvpassConfig(text="causal_conv", bottleneck=4)), random_clip()
    model, tokens = built(method, backbone), backbone.tokenize(["a river", "many green trees beside a road"])
    stirred(model.text.blocks[0].attached_mlp)
    with torch.no_grad():
        assert torch.allclose(method.encode_text(model, tokens), method.encode_text(model, tokens.trimmed()), atol=1e-5)
