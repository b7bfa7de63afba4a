"""The prior network of PIR-CLIP: its layout, its weights, and its output, computed once."""

from dataclasses import replace

import pytest
import torch
from built_models import assembled as built
from pir_clip_parts import SMALL, method_of
from pydantic import ValidationError

from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.random_models import random_clip
from petlbench.methods.layers.prior_resnet import PriorResNet, attention_pool, prior_scalars
from petlbench.methods.pir_clip import PirClipConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "size",
    [((3, 4, 6, 3), 64, 512, 224), ((1, 2, 1, 1), 8, 32, 64), ((2, 1, 1, 3), 10, 16, 32), ((1, 1, 1, 1), 8, 5, 98)],
)
def test_prior_scalars(size):
    with torch.device("meta"):
        assert sum(p.numel() for p in PriorResNet(*size).parameters()) == prior_scalars(*size)
    assert prior_scalars((3, 4, 6, 3), 64, 512, 224) == 37_267_808


@pytest.mark.parametrize("side", [32, 64, 70, 96])
def test_the_short_pooling_is_open_clips_own(side):
    torch.manual_seed(0)
    prior = PriorResNet((1, 1, 1, 1), 8, 16, side)
    prior.start_at_random(open_branches=True)
    pool, features = prior.net.attnpool, torch.randn(3, 256, side // 32, side // 32)
    for bias in (pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias):
        torch.nn.init.normal_(bias)
    expected = pool(features)
    assert torch.allclose(attention_pool(pool, features.flatten(2).transpose(1, 2)), expected, atol=1e-5)
    images = torch.randn(3, 3, side, side)
    assert torch.allclose(prior(images), prior.net(images), atol=1e-5)


def test_the_prior_stays_as_it_is_in_training():
    method = method_of(PirClipConfig(form="as_described", **SMALL))
    backbone = random_clip()
    model = built(method, backbone)
    before = {n: t.clone() for n, t in model.prior.state_dict().items()}
    model.train()
    assert not any(m.training for m in model.prior.modules())
    sum(method.loss(model, fake_batch(backbone)).values()).backward()
    assert all(torch.equal(t, before[n]) for n, t in model.prior.state_dict().items())


def test_a_random_prior_tells_pictures_apart():
    torch.manual_seed(0)
    prior = PriorResNet((1, 1, 1, 1), 8, 32, 64)
    pictures = torch.nn.functional.interpolate(torch.randn(6, 3, 5, 5), (64, 64), mode="bilinear")
    spread = {}
    for open_branches in (None, False, True):
        if open_branches is not None:
            prior.start_at_random(open_branches=open_branches)
        with torch.no_grad():
            found = prior(pictures)
        spread[open_branches] = float(found.std(0).mean() / found.abs().mean())
    assert spread[None] < 1e-2  # as open_clip initialises it, without batch statistics
    assert spread[False] > 0.1 and spread[True] > 0.1


def test_same_seed_same_prior():
    first, again, other = (
        built(method_of(PirClipConfig(**SMALL)), random_clip(), seed).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["prior.net.conv1.weight"], other["prior.net.conv1.weight"])


@pytest.mark.parametrize("prefix", ["", "visual.", "res_visual."])
def test_prior_weights_are_read_strictly(tmp_path, prefix):
    torch.manual_seed(1)
    source = PriorResNet((1, 1, 1, 1), 8, 16, 32)
    source.start_at_random(open_branches=True)
    state = {prefix + name: tensor for name, tensor in source.net.state_dict().items()}
    beside = {"logit_scale": torch.ones(())} if prefix else {}  # the rest of a CLIP, or of a checkpoint
    path = tmp_path / "prior.pt"
    torch.save({**state, **beside}, path)
    model = built(method_of(PirClipConfig(prior_weights=str(path), **SMALL)), random_clip())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.prior(images), source(images))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: {f"x{k}": v for k, v in s.items()}, r"0 of the \d+ tensors of a CLIP ResNet were found"),
        (lambda s: {k: v for k, v in s.items() if k != "conv2.weight"}, r"1 missing keys: conv2\.weight"),
        (lambda s: {**s, "fc.weight": torch.ones(1)}, r"1 unexpected keys: fc\.weight"),
        (lambda s: {**s, "conv1.weight": torch.ones(2, 3, 3, 3)}, r"1 differing shapes: conv1\.weight"),
    ],
)
def test_unfitting_prior_weights_are_an_error(tmp_path, change, told):
    path = tmp_path / "prior.pt"
    torch.save(change(PriorResNet((1, 1, 1, 1), 8, 16, 32).net.state_dict()), path)
    with pytest.raises(BackboneError, match=told):
        method_of(PirClipConfig(prior_weights=str(path), **SMALL)).build(random_clip())


def test_missing_prior_weights_are_an_error():
    with pytest.raises(BackboneError, match="was not found"):
        method_of(PirClipConfig(prior_weights="nowhere.pt", **SMALL)).build(random_clip())


def test_an_odd_prior_width_is_refused():
    with pytest.raises(ValidationError, match="multiple of 2"):
        PirClipConfig(prior_width=7)


# --- the prior's output, computed once ---


def test_a_frozen_priors_output_can_be_kept():
    backbone, method = random_clip(), method_of(PirClipConfig(form="as_described", **SMALL))
    model = built(method, backbone)
    batch = fake_batch(backbone)
    side = method.side_features(model, batch.images)
    assert side.shape == (8, 16)
    whole = method.embed(model, batch)[0]
    model.prior = None  # not needed any more
    assert torch.allclose(method.embed(model, replace(batch, image_side=side))[0], whole, atol=1e-6)


def test_a_trained_priors_output_is_not_kept():
    method = method_of(PirClipConfig(**SMALL))
    model = built(method, random_clip())
    assert method.side_features(model, torch.randn(1, 3, 32, 32)) is None
