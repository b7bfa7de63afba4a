"""PIR's heads on a frozen encoder: sizes, start, where they read, padding, belief, the prior."""

from dataclasses import replace

import pytest
import torch
from built_models import built
from torch.nn.functional import normalize

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.base import BackboneError, Tokens
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.backbones.shapes import shape_only
from petlbench.methods.backbones.tiny_clip import untrained_tiny_clip
from petlbench.methods.base import count
from petlbench.methods.layers.joint_tokens import image_tokens, text_tokens
from petlbench.methods.pir_petl import PirPetl, PirPetlConfig
from petlbench.methods.recipe import LossConfig

SMALL = {"prior": "resnet18", "bottleneck": 8}
RANDOM = {"open_clip": random_clip, "two_tower": random_two_tower}

pytestmark = pytest.mark.usefixtures("one_thread")


def method_of(loss=None, **options):
    PirPetl.name = "pir_petl"
    return PirPetl(PirPetlConfig(**{**SMALL, **options}), loss)


def opened(method, backbone):
    """With output layers that are not zero."""
    model = built(method, backbone)
    for head in (model.image_head, model.text_head):
        torch.nn.init.normal_(head.head.weight, std=0.5)
    return model


def embed(method, model, batch):
    with torch.no_grad():
        return [normalize(e, dim=-1) for e in method.embed(model, batch)]


# --- sizes ---


@pytest.mark.parametrize(
    ("architecture", "options", "expected"),
    [
        ("ViT-B-32", {"bottleneck": None}, 10_256_384 + 13_679_616),
        ("ViT-B-32", {"bottleneck": None, "share": True}, 5_784_064 + 4_734_976),
        ("ViT-B-32", {"bottleneck": 128}, 958_976 + 979_200),
        ("ViT-B-32", {"bottleneck": 64}, 340_480 + 280_960),
        ("ViT-B-32", {"bottleneck": 32}, 135_680 + 88_512),
        ("ViT-L-14", {"bottleneck": None}, 22_265_856 + 30_743_040),
        ("ViT-B-32", {"prior": "resnet18"}, 340_480 + 280_960 - 1_536 * 64),
    ],
)
def test_sizes(architecture, options, expected):
    method = PirPetl(PirPetlConfig(**options))
    backbone = shape_only(architecture)
    assert method.expected_trainable(backbone) == expected
    model = method.build(backbone)
    assert count(model, method.trainable(model)) == expected
    if options.get("prior") != "resnet18":
        assert sum(p.numel() for p in model.prior.parameters()) == 23_508_032


@pytest.mark.parametrize("make", [random_clip, random_two_tower, untrained_tiny_clip])
@pytest.mark.parametrize("options", [{}, {"bottleneck": None}, {"share": True, "image_steps": 3, "text_steps": 1}])
def test_everything_trained_is_reached(make, options):
    method, backbone = method_of(**options), make()
    expected = method.expected_trainable(backbone)
    model = built(method, backbone)
    names = set(method.trainable(model))
    assert count(model, names) == expected
    assert audit.check_gradients(method, model, names, fake_batch(backbone)) == "ok"


def test_nothing_else_is_trained():
    model = built(method_of(), random_clip())
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"image_head", "text_head"}


# --- start ---


@pytest.mark.parametrize("kind", RANDOM)
def test_step_0_is_the_backbone_unless_the_original_start_is_asked_for(kind):
    for init in ("zero", "original"):
        backbone, method = RANDOM[kind](), method_of(init=init)
        batch = fake_batch(backbone)
        before = audit.embed_untouched(backbone, batch, torch.device("cpu"))
        after = torch.cat(embed(method, built(method, backbone), batch))
        assert method.identity_start == (init == "zero")
        assert torch.allclose(after, before, atol=1e-5) == (init == "zero")
    assert PirPetl.identity_start  # the class goes on promising it


# --- where the heads read ---


def test_clip_tokens_are_projected_as_the_pooled_one_is():
    backbone = random_clip(resolution=64)
    batch = fake_batch(backbone)
    image, text = image_tokens(backbone, batch.images), text_tokens(backbone, batch.tokens)
    assert image.tokens.shape == (8, 17, 16) and image.mask is None
    assert torch.allclose(image.tokens[:, 0], backbone.encode_image(batch.images), atol=1e-6)
    ends = batch.tokens.mask.sum(1) - 1
    assert torch.equal(text.read_at, ends) and torch.equal(text.mask, batch.tokens.mask)
    assert torch.allclose(text.pooled, backbone.encode_text(batch.tokens), atol=1e-6)
    assert torch.allclose(text.tokens[torch.arange(8), ends], text.pooled, atol=1e-6)


def test_captions_are_read_at_the_end_token():
    # The start token of a causal tower is equal for all captions; a head that reads it adds one vector to all of them.
    backbone, method = random_clip(), method_of(text_steps=1)
    model = opened(method, backbone)
    batch = fake_batch(backbone)
    with torch.no_grad():
        added = method.encode_text(model, batch.tokens) - backbone.encode_text(batch.tokens)
    assert added.std(0).mean() > 0.05 * added.abs().mean()
    same = batch.text_ids == 1  # two rows with one caption
    assert same.sum() == 2 and torch.allclose(added[same][0], added[same][1], atol=1e-6)


@pytest.mark.parametrize("kind", RANDOM)
def test_padding_is_not_seen(kind):
    backbone, method = RANDOM[kind](), method_of()
    model = opened(method, backbone)
    tokens = fake_batch(backbone).tokens
    short = tokens[tokens.mask.sum(1).argsort()[:3]]
    noisy = Tokens(torch.where(short.mask, short.ids, 7), short.mask)
    with torch.no_grad():
        whole = method.encode_text(model, short)
        assert torch.allclose(method.encode_text(model, short.trimmed()), whole, atol=1e-5)
        assert torch.allclose(method.encode_text(model, noisy), whole, atol=1e-5)


@pytest.mark.parametrize("kind", RANDOM)
def test_rows_do_not_mix_and_one_picture_is_enough(kind):
    backbone, method = RANDOM[kind](), method_of()
    model = opened(method, backbone)
    batch = fake_batch(backbone)
    with torch.no_grad():
        whole = method.encode_image(model, batch.images)
        alone = torch.cat([method.encode_image(model, image[None]) for image in batch.images])
    assert torch.allclose(alone, whole, atol=1e-5)


def test_the_filter_keeps_a_share_of_the_tokens_by_belief():
    backbone, method = random_clip(resolution=64), method_of(keep=0.8)
    model = built(method, backbone)
    tokens, prior = torch.randn(3, 17, 8), torch.randn(3, 1, 8)
    order = model.image_head.order(tokens, prior)
    scores = (tokens * prior).sum(-1)
    assert order.shape == (3, 14)  # 0.8 * 17
    assert torch.equal(order, scores.argsort(dim=1, descending=True)[:, :14])
    long = tokens * torch.linspace(1, 9, 17)[:, None]
    cosine = built(method_of(belief="cosine"), random_clip()).image_head
    assert torch.equal(cosine.order(long, prior), cosine.order(tokens, prior))
    assert not torch.equal(model.image_head.order(long, prior), order)


def test_the_original_keeps_40_of_50():
    model = built(method_of(bottleneck=None), random_clip())
    assert model.image_head.order(torch.randn(1, 50, 16), torch.randn(1, 1, 16)).shape == (1, 40)


def test_the_prior_guides_the_image_head_and_nothing_else():
    backbone, method = random_clip(), method_of()
    model = opened(method, backbone)
    batch = fake_batch(backbone)
    before = embed(method, model, batch)
    for parameter in model.prior.parameters():
        parameter.data.add_(0.1)
    after = embed(method, model, batch)
    assert not torch.allclose(after[0], before[0], atol=1e-3) and torch.equal(after[1], before[1])


# --- training ---


def test_the_prior_is_never_trained_and_its_statistics_stay():
    backbone, method = random_clip(), method_of()
    model = built(method, backbone)
    before = {n: t.clone() for n, t in model.prior.state_dict().items()}
    model.train()
    sum(method.loss(model, fake_batch(backbone)).values()).backward()
    assert all(torch.equal(t, before[n]) for n, t in model.prior.state_dict().items())
    assert all(p.grad is None for p in model.prior.parameters())


def test_dropout_acts_in_training_only():
    backbone, method = random_clip(), method_of(dropout=0.5)
    model = opened(method, backbone)
    batch = fake_batch(backbone)
    first, again = (embed(method, model, batch) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    model.train()
    first, again = (embed(method, model, batch) for _ in range(2))
    assert not torch.allclose(first[0], again[0]) and not torch.allclose(first[1], again[1])


@pytest.mark.parametrize("name", ["infonce", "multi_positive", "siglip", "hinge_hardest", "hmmc", "harma"])
def test_every_loss_can_stand_beside_affiliation(name):
    backbone, method = random_clip(), method_of(LossConfig(name=name))
    model = built(method, backbone)
    terms = method.loss(model, fake_batch(backbone))
    assert "affiliation" in terms and len(terms) > 1
    assert all(torch.isfinite(value) for value in terms.values())


def test_affiliation_needs_labels_and_a_weight():
    backbone, batch = random_clip(), fake_batch(random_clip())
    model = built(method_of(), backbone)
    assert list(method_of().loss(model, replace(batch, labels=None))) == ["infonce"]
    assert list(method_of(affiliation=0).loss(model, batch)) == ["infonce"]
    whole, half = (method_of(affiliation=w).loss(model, batch)["affiliation"].item() for w in (1.0, 0.5))
    assert half == pytest.approx(whole / 2, rel=1e-6)


# --- refusals ---


def test_heads_have_to_divide_the_width():
    assert "heads=8 does not divide the width 12" in method_of(bottleneck=12).refuse(random_clip())
    assert "width 20" in method_of(bottleneck=None).refuse(random_clip(embed_dim=20))
    assert method_of(bottleneck=None, heads=4).refuse(random_clip(embed_dim=20)) is None


def test_missing_prior_weights_are_an_error():
    with pytest.raises(BackboneError, match="was not found"):
        method_of(prior_weights="nowhere.pth").build(random_clip())


# --- the prior's output, computed once ---


def test_a_kept_prior_output_gives_the_same_embeddings_and_loss():
    backbone, method = random_clip(), method_of()
    model = opened(method, backbone)
    batch = fake_batch(backbone)
    kept = replace(batch, image_side=method.side_features(model, batch.images))
    assert kept.image_side.shape == (8, 512) and not kept.image_side.requires_grad
    model.prior = None  # not needed any more
    expected = opened(method, random_clip())
    for one, other in zip(embed(method, model, kept), embed(method, expected, batch), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert method.loss(model, kept)["infonce"].item() == pytest.approx(method.loss(expected, batch)["infonce"].item())
