"""Methods that train a part of the towers, and SSF: which parts, how many scalars, and SSF against its authors' code."""

import copy
import json

import open_clip
import pytest
import torch
from built_models import built
from golden.fill import filled, inputs
from support import ROOT
from torch import nn

from petlbench.datasets.augment import augment
from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.base import Provenance
from petlbench.methods.backbones.open_clip_model import OpenClipEncoder
from petlbench.methods.backbones.open_clip_origin import CLIP_MEAN, CLIP_STD
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.base import MethodError, count
from petlbench.methods.bitfit import BitFit, BitFitConfig
from petlbench.methods.layer_norm import LayerNormConfig, LayerNormTuning
from petlbench.methods.official import OfficialError, OfficialState, load_official
from petlbench.methods.partial import Partial, PartialConfig
from petlbench.methods.recipe import Recipe
from petlbench.methods.ssf import Ssf, SsfConfig
from petlbench.methods.zero_shot import ZeroShot

RANDOM = {"open_clip": random_clip, "two_tower": random_two_tower}
GOLDEN = json.loads((ROOT / "tests" / "golden" / "ssf.json").read_text(encoding="utf-8"))
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def embed(method, model, batch):
    return audit.embed_for_audit(method, model, batch, CPU)


def names(method, kind="open_clip", **shape):
    return set(method.trainable(built(method, RANDOM[kind](**shape))))


# --- which tensors ---


@pytest.mark.parametrize("kind", RANDOM)
def test_bitfit_trains_every_bias_of_the_towers(kind):
    backbone = RANDOM[kind]()
    heads = set(backbone.new_parameters())
    biases = {n for n, _ in backbone.named_parameters() if n.endswith("bias")} - heads
    assert names(BitFit(), kind) == biases
    assert any(n.endswith("in_proj_bias") for n in biases) == (kind == "open_clip")


@pytest.mark.parametrize("kind", RANDOM)
def test_layer_norm_tuning_trains_every_norm_of_the_towers(kind):
    found = names(LayerNormTuning(), kind)
    norms = {n for n, m in RANDOM[kind]().named_modules() if isinstance(m, nn.LayerNorm)}
    assert found == {f"{n}.{part}" for n in norms for part in ("weight", "bias")}
    assert norms


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize(
    ("method", "config"),
    [(BitFit, BitFitConfig), (LayerNormTuning, LayerNormConfig), (Ssf, SsfConfig), (Partial, PartialConfig)],
    ids=lambda v: v.__name__,
)
def test_a_tower_can_be_left_alone(method, config, kind):
    parts = [names(method(config(towers=tower)), kind) for tower in ("image", "text")]
    assert all(parts) and not parts[0] & parts[1]
    assert parts[0] | parts[1] == names(method(config()), kind)
    image = {"open_clip": "clip.visual.", "two_tower": "vision."}[kind]
    assert all(n.startswith(image) for n in parts[0]) and not any(n.startswith(image) for n in parts[1])
    for tower in ("image", "text"):
        chosen, backbone = method(config(towers=tower)), RANDOM[kind]()
        expected = chosen.expected_trainable(backbone)
        model = built(chosen, backbone)
        assert count(model, chosen.trainable(model)) == expected


def test_partial_trains_the_last_blocks_and_what_follows():
    found = names(Partial(PartialConfig(blocks=2)), blocks=3, text_blocks=4)
    blocks = {
        n.partition(".resblocks.")[0] + n.partition(".resblocks.")[2].partition(".")[0]
        for n in found
        if "resblocks" in n
    }
    assert blocks == {f"clip.visual.transformer{i}" for i in (1, 2)} | {f"clip.transformer{i}" for i in (2, 3)}
    rest = {n for n in found if "resblocks" not in n}
    norms = {f"clip.{norm}.{part}" for norm in ("visual.ln_post", "ln_final") for part in ("weight", "bias")}
    assert rest == norms | {"clip.visual.proj", "clip.text_projection"}
    assert not {n for n in names(Partial(PartialConfig(norms=False, projections=False))) if "resblocks" not in n}
    assert names(Partial(), "two_tower") >= {"vision.layernorm.weight", "language.encoder.layer.1.output.dense.weight"}


def test_partial_stops_the_gradient_below_its_blocks():
    method, backbone = Partial(), random_clip(blocks=3)
    model, batch = built(method, backbone), fake_batch(backbone)
    seen = []
    model.clip.visual.transformer.resblocks[1].mlp.c_proj.register_forward_hook(
        lambda m, i, out: seen.append(out.requires_grad)
    )
    method.loss(model, batch)
    assert seen == [False]


def test_partial_refuses_more_blocks_than_there_are():
    method = Partial(PartialConfig(blocks=3))
    assert "the text tower of random-clip has 2; set method.partial.blocks to 2" in str(
        method.refuse(random_clip(blocks=3, text_blocks=2))
    )
    assert method.refuse(random_clip(blocks=3)) is None
    assert "two_tower" not in str(method.refuse(random_two_tower(blocks=3)))


# --- SSF ---


def official_backbone(*, ln_pre=False):
    """CLIP with an image tower of the authors' shape, and a small text tower."""
    sizes = GOLDEN["sizes"]
    clip = open_clip.CLIP(
        8,
        open_clip.CLIPVisionCfg(
            layers=sizes["depth"],
            width=sizes["embed_dim"],
            head_width=sizes["embed_dim"] // sizes["num_heads"],
            patch_size=sizes["patch_size"],
            image_size=sizes["img_size"],
            no_ln_pre=not ln_pre,
        ),
        open_clip.CLIPTextCfg(context_length=8, vocab_size=16, width=16, heads=2, layers=1),
    )
    provenance = Provenance(
        kind="open_clip",
        architecture="golden",
        source="golden",
        sha256="0" * 64,
        activation="gelu",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resolution=sizes["img_size"],
        aligned=True,
    )
    return OpenClipEncoder("golden", clip, None, provenance).eval()


def test_ssf_pools_as_its_authors_code():
    method, backbone = Ssf(SsfConfig(towers="image")), official_backbone()
    model = built(method, backbone)
    trained = set(method.trainable(model))
    state = OfficialState(filled(GOLDEN["shapes"], GOLDEN["seed"], scale=0.2), "golden.pth")
    load_official(model, method.import_official(model, state), state, trained)
    side = GOLDEN["sizes"]["img_size"]
    with torch.no_grad():
        found = model.image.pooled(inputs((GOLDEN["rows"], 3, side, side), GOLDEN["seed"]))
    expected = torch.tensor(GOLDEN["pooled"])
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-5
    assert count(model, trained) == GOLDEN["trainable"]


def test_ssf_import_is_complete_or_refused():
    tensors = filled(GOLDEN["shapes"], GOLDEN["seed"])
    method, backbone = Ssf(SsfConfig(towers="image")), official_backbone()
    model = built(method, backbone)
    trained = set(method.trainable(model))
    classifier = {"head.weight": torch.zeros(3, 32), "head.bias": torch.zeros(3)}
    state = OfficialState({**tensors, **classifier})
    load_official(model, method.import_official(model, state), state, trained)
    state = OfficialState({**tensors, "blocks.2.ssf_scale_1": torch.zeros(32)})
    with pytest.raises(OfficialError, match=r"1 left over in the file: blocks\.2\.ssf_scale_1"):
        load_official(model, method.import_official(model, state), state, trained)
    for unfit in (Ssf(), Ssf(SsfConfig(towers="image"))):
        other = built(unfit, official_backbone(ln_pre=True))
        with pytest.raises(MethodError, match="whose image tower has no ln_pre"):
            unfit.import_official(other, OfficialState(tensors))


def test_ssf_starts_as_its_authors_code():
    method, backbone = Ssf(), random_clip(width=128)
    model = built(method, backbone)
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    for kind in ("scale", "shift"):
        values = torch.cat([p for n, p in parameters.items() if n.endswith(kind)])
        mean, std = GOLDEN["start"][kind]
        assert values.mean().item() == pytest.approx(mean, abs=4e-3)
        assert values.std().item() == pytest.approx(std, rel=0.1)
    assert all(p.std() > 0 for p in parameters.values())


@pytest.mark.parametrize("kind", RANDOM)
def test_ssf_merges_into_the_operations(kind):
    method, backbone = Ssf(SsfConfig(init_std=0.3)), RANDOM[kind]()
    plain, batch = copy.deepcopy(backbone), fake_batch(backbone)
    model = built(method, backbone)
    parameters = dict(model.named_parameters())
    merged = set()

    def fold(owner, weight, bias, place):
        scale, shift = parameters[f"{place}.scale"], parameters[f"{place}.shift"]
        value = getattr(owner, weight)
        value.mul_(scale if isinstance(owner, nn.Embedding) else scale.view(-1, *[1] * (value.ndim - 1)))
        if isinstance(owner, nn.Embedding):
            value.add_(shift)
        elif getattr(owner, bias) is None:  # CLIP's patch convolution: the only one that needs a bias of its own
            setattr(owner, bias, nn.Parameter(shift.clone()))
        else:
            getattr(owner, bias).mul_(scale).add_(shift)
        merged.update({f"{place}.scale", f"{place}.shift"})

    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                fold(module, "in_proj_weight", "in_proj_bias", f"{name}.ssf_qkv")
                fold(module.out_proj, "weight", "bias", f"{name}.ssf_out")
            elif f"{name}.ssf.scale" in parameters:
                fold(module, "weight", "bias", f"{name}.ssf")
    assert merged == set(method.trainable(model))
    expected = embed(ZeroShot(), plain, batch)
    assert torch.allclose(embed(method, model, batch), expected, atol=1e-4)
    assert (expected - embed(ZeroShot(), RANDOM[kind](), batch)).abs().max() > 0.01


def test_ssf_without_deviation_is_the_untouched_backbone():
    for make in RANDOM.values():
        method, backbone = Ssf(SsfConfig(init_std=0)), make()
        batch = fake_batch(backbone)
        before = embed(ZeroShot(), backbone, batch)
        assert torch.allclose(embed(method, built(method, backbone), batch), before, atol=1e-5)


def test_paper_preset_of_partial_crops_224_of_256_pixels():
    config = Recipe.model_validate(dict(Partial.presets["paper"].train)).augmentation
    ramp = torch.arange(224, dtype=torch.uint8).expand(8, 3, 224, 224)
    for pictures in (ramp, ramp.mT):
        seen = augment(pictures, config, torch.Generator().manual_seed(0)).flatten(1).int()
        side = seen.amax(1) - seen.amin(1) + 1
        assert ((side - 196).abs() <= 1).all()  # 224 / 256 of each side, wherever the crop lies
