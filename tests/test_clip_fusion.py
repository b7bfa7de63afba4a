"""The fusion head: its layers against PyTorch's, where it starts, what it reads, what it trains, and that it learns."""

import copy

import pytest
import torch
from built_models import disturb
from pydantic import ValidationError
from torch import nn

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.methods import losses
from petlbench.methods.backbones.base import Tokens
from petlbench.methods.backbones.random_models import random_clip, random_swin_bert, random_two_tower
from petlbench.methods.backbones.shapes import shape_only
from petlbench.methods.base import Batch, count, names_in
from petlbench.methods.clip_fusion import ClipFusion, ClipFusionConfig
from petlbench.methods.layers.fusion_head import FusionHead
from petlbench.methods.pair import ranking

RANDOM = {"open_clip": random_clip, "two_tower": random_two_tower, "swin_bert": random_swin_bert}
SMALL = {"width": 16, "heads": 2}
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def fusion(**options):
    return ClipFusion(ClipFusionConfig(**{**SMALL, **options}))


def built(method, backbone, seed=0):
    torch.manual_seed(seed)
    model = method.build(backbone)
    trained = {*method.trainable(model), *names_in(model, backbone, backbone.new_parameters())}
    audit.freeze_all_but(model, trained, "clip_fusion")
    return model.eval()


def crossed(method, model, images, tokens):
    """(N, U) scores of every picture with every caption."""
    image = method.prepare_image(model, method.image_states(model, images))
    text = method.prepare_text(model, method.text_states(model, tokens))
    rows, columns = len(images), len(tokens)
    image = {name: value.repeat_interleave(columns, 0) for name, value in image.items()}
    text = {name: torch.cat([value] * rows) for name, value in text.items()}
    return method.score(model, image, text).view(rows, columns)


def scaled_cosines(backbone, images, tokens):
    unit = nn.functional.normalize
    image, text = unit(backbone.encode_image(images), dim=-1), unit(backbone.encode_text(tokens), dim=-1)
    return backbone.logit_scale.exp() * image @ text.T


# --- sizes ---


@pytest.fixture(scope="module")
def vit_b_32():
    return shape_only()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1_909_249),
        ({"layers": 1}, 1_119_489),
        ({"width": 384, "heads": 6}, 4_043_521),
        ({"width": 512, "heads": 8}, 6_964_225),
    ],
)
def test_sizes_on_vit_b_32(vit_b_32, options, expected):
    method = ClipFusion(ClipFusionConfig(**options))
    assert method.expected_trainable(vit_b_32) == expected
    model = method.build(vit_b_32)
    assert count(model, method.trainable(model)) == expected
    assert expected in {v.trainable for v in ClipFusion.variants.values() if v.method == options}


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("layers", [1, 3])
def test_the_closed_form_holds_on_every_kind(kind, layers):
    method, backbone = fusion(layers=layers), RANDOM[kind]()
    model = method.build(backbone)
    assert count(model, method.trainable(model)) == method.expected_trainable(backbone)


# --- the head against PyTorch's own layers ---


def pytorch_score(head, image, text, mask, heads):
    """The same head from ``nn.TransformerEncoderLayer``, every layer computed for every token."""
    rows, width = len(image), head.cls.shape[-1]
    x = torch.cat(
        [head.cls.expand(rows, 1, -1), head.text_in(text) + head.types[0], head.image_in(image) + head.types[1]], 1
    )
    hidden = torch.cat([torch.zeros(rows, 1).bool(), ~mask, torch.zeros(image.shape[:2]).bool()], 1)
    for layer in head.layers:
        theirs = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        theirs.load_state_dict(
            {
                "self_attn.in_proj_weight": layer.qkv.weight,
                "self_attn.in_proj_bias": layer.qkv.bias,
                **{f"self_attn.out_proj.{k}": v for k, v in layer.out.state_dict().items()},
                **{f"linear1.{k}": v for k, v in layer.fc1.state_dict().items()},
                **{f"linear2.{k}": v for k, v in layer.fc2.state_dict().items()},
                **{f"norm1.{k}": v for k, v in layer.norm_1.state_dict().items()},
                **{f"norm2.{k}": v for k, v in layer.norm_2.state_dict().items()},
            }
        )
        x = theirs(x, src_key_padding_mask=hidden)
    return head.rank_output(head.norm(x[:, 0])).squeeze(-1)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_the_class_token_alone_gets_what_all_tokens_would_give_it(layers, padded):
    torch.manual_seed(0)
    head = disturb(FusionHead(12, 10, 16, layers, 4, 0.0, zero_output=True))
    image, text = torch.randn(3, 5, 12), torch.randn(3, 7, 10)
    mask = torch.arange(7) < torch.tensor([7, 4 if padded else 7, 2 if padded else 7])[:, None]
    found = head(head.image_tokens(image), {**head.text_tokens(text), "mask": mask})
    torch.testing.assert_close(found, pytorch_score(head, image, text, mask, 4), atol=1e-5, rtol=1e-5)


# --- where it starts, and what it reads ---


@pytest.mark.parametrize("kind", RANDOM)
def test_it_starts_as_the_dual_encoder(kind):
    backbone = RANDOM[kind]()
    batch, method = fake_batch(backbone), fusion()
    with torch.no_grad():
        expected = scaled_cosines(backbone, batch.images, batch.tokens)
        found = crossed(method, built(method, backbone), batch.images, batch.tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    different = slice(0, 6)  # the captions behind have a string twice
    assert torch.equal(found[:, different].argsort(dim=1), expected[:, different].argsort(dim=1))


def test_it_promises_that_start_only_with_the_residual():
    backbone = random_clip()
    method, batch = fusion(residual=False), fake_batch(backbone)
    assert fusion().identity_start and not method.identity_start
    model = built(method, backbone)
    scores = crossed(method, model, batch.images, batch.tokens)
    assert scores.unique().numel() > 1, "the head itself tells pairs apart"
    assert "embedding" not in method.prepare_image(model, method.image_states(model, batch.images))


@pytest.mark.parametrize("kind", RANDOM)
def test_a_score_depends_on_its_own_pair_and_on_no_padding(kind):
    backbone = RANDOM[kind]()
    batch, method = fake_batch(backbone), fusion()
    model = disturb(built(method, backbone))
    with torch.no_grad():
        all_pairs = crossed(method, model, batch.images, batch.tokens)
        for row in range(3):
            alone = batch.tokens[row : row + 1].trimmed()
            assert alone.ids.shape[1] < batch.tokens.ids.shape[1]
            score = method.score_pairs(model, batch.images[row : row + 1], alone)
            torch.testing.assert_close(score, all_pairs[row, row : row + 1], atol=1e-4, rtol=1e-5)


def test_both_sides_reach_the_head():
    """Without the residual, another patch or another word changes the score; a masked word does not."""
    torch.manual_seed(0)
    head = disturb(FusionHead(12, 10, 16, 2, 2, 0.0, zero_output=False))
    image, text, mask = torch.randn(1, 5, 12), torch.randn(1, 7, 10), (torch.arange(7) < 5)[None]

    def score(image, text):
        return head(head.image_tokens(image), {**head.text_tokens(text), "mask": mask})

    patch, word, padding = image.clone(), text.clone(), text.clone()
    patch[0, 3] += 1
    word[0, 3] += 1
    padding[0, 6] += 1
    before = score(image, text)
    assert (score(patch, text) - before).abs() > 1e-3 and (score(image, word) - before).abs() > 1e-3
    assert torch.equal(score(image, padding), before)


# --- training ---


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_reach_everything_that_is_trained(kind, layers):
    """Once the output layer has left zero; the frozen towers get none, and a constant in every score ranks nothing."""
    backbone = RANDOM[kind]()
    method = fusion(layers=layers)
    model = disturb(built(method, backbone)).train()
    sum(method.loss(model, fake_batch(backbone)).values()).backward()
    for name, parameter in model.named_parameters():
        if name == "head.rank_output.bias":
            assert parameter.grad is not None and parameter.grad.abs().max() < 1e-5
        elif parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("kind", ["two_tower", "swin_bert"])
def test_towers_say_in_training_what_is_kept_of_them(kind):
    backbone = RANDOM[kind]()
    method, batch = fusion(), fake_batch(backbone)
    model = built(method, backbone)
    quiet = method.image_states(model, batch.images), method.text_states(model, batch.tokens)
    model.train()
    for before, after in zip(
        quiet, (method.image_states(model, batch.images), method.text_states(model, batch.tokens)), strict=True
    ):
        assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.head.training
    if kind == "two_tower":
        assert model.backbone.image_head.training and not model.backbone.vision.training
    model.eval()
    assert not any(module.training for module in model.modules())


def test_the_contrastive_loss_is_there_where_joining_heads_train():
    aligned, new = random_clip(), random_two_tower()
    assert set(fusion().loss(built(fusion(), aligned), fake_batch(aligned))) == {"ranking", "head"}
    batch, method = fake_batch(new), fusion(contrastive_weight=0.5)
    model = built(method, new)
    found = method.loss(model, batch)
    logits = scaled_cosines(new, batch.images, batch.tokens)
    expected = losses.infonce(logits, losses.same_pair(batch.image_ids, batch.text_ids))
    torch.testing.assert_close(found["contrastive"], 0.5 * expected, atol=1e-5, rtol=1e-5)
    assert set(fusion(contrastive_weight=0).loss(model, batch)) == {"ranking", "head"}


def test_the_ranking_losses_are_those_of_the_score_and_of_the_head_alone():
    backbone = random_clip()
    method, batch = fusion(head_weight=0.25), fake_batch(backbone)
    model = disturb(built(method, backbone))
    each = len(batch.candidates) // len(batch)
    pictures = batch.images.repeat_interleave(each, 0)
    scores, alone = (
        m.score_pairs(model, pictures, batch.candidates).view(-1, each) for m in (method, fusion(residual=False))
    )
    found = method.loss(model, batch)
    torch.testing.assert_close(found["ranking"], ranking(scores), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["head"], 0.25 * ranking(alone), atol=1e-5, rtol=1e-5)
    assert (found["head"] - 0.25 * found["ranking"]).abs() > 1e-3
    assert set(fusion(head_weight=0).loss(model, batch)) == {"ranking"}
    only = fusion(residual=False).loss(model, batch)
    torch.testing.assert_close(only["ranking"], ranking(alone), atol=1e-5, rtol=1e-5)
    assert set(only) == {"ranking"}


def test_scores_stay_fp32_under_autocast():
    backbone = random_clip()
    method, batch = fusion(), fake_batch(backbone)
    model = disturb(built(method, backbone))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = method.score_pairs(model, batch.images, batch.tokens)
    exact = method.score_pairs(model, batch.images, batch.tokens)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


COLOURS = {"red": (2.0, -1.0, -1.0), "green": (-1.0, 2.0, -1.0), "blue": (-1.0, -1.0, 2.0), "white": (2.0, 2.0, 2.0)}


def coloured(backbone, seed, rows=16):
    """Pictures of one noisy colour each, with its word first among the candidates and the other three behind it."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(COLOURS), (rows,), generator=generator)
    noise = torch.randn(rows, 3, backbone.resolution, backbone.resolution, generator=generator)
    images = torch.tensor(list(COLOURS.values()))[which][:, :, None, None] + 0.5 * noise
    tokens = backbone.tokenize([f"a {name} field" for name in COLOURS])
    order = torch.stack(
        [torch.cat([which[i : i + 1], torch.arange(4)[torch.arange(4) != which[i]]]) for i in range(rows)]
    )
    return Batch(
        images, tokens[which], torch.arange(rows), which, candidates=tokens[order.flatten()], candidate_ids=order
    )


def test_it_learns_what_a_frozen_random_encoder_cannot_tell():
    backbone, method = random_clip(), fusion()
    model = built(method, backbone).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    fresh = coloured(backbone, seed=999, rows=64)
    before = method.loss(model, fresh)["ranking"].item()
    for step in range(40):
        optimizer.zero_grad()
        method.loss(model, coloured(backbone, step))["ranking"].backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        scores = method.candidate_scores(model, *method.prepared(model, fresh))
    assert ranking(scores).item() < 0.3 * before
    assert (scores.argmax(1) == 0).float().mean() > 0.9, "pictures that it has not seen"


# --- refusals ---


def test_refusals_say_what_to_do():
    method = fusion(residual=False)
    assert method.refuse(random_clip()) is None
    for make in (random_two_tower, random_swin_bert):
        assert "method.clip_fusion.residual=true" in method.refuse(make())
        assert fusion().refuse(make()) is None
    other = copy.copy(random_clip())
    other.provenance = other.provenance.model_copy(update={"kind": "vilt"})
    assert "open_clip, two_tower, swin_bert" in fusion().refuse(other)
    with pytest.raises(ValidationError, match="heads=5 does not divide width=16"):
        ClipFusionConfig(width=16, heads=5)


def test_states_have_the_tokens_of_the_towers():
    backbone = random_clip()
    method, batch = fusion(), fake_batch(backbone)
    model = built(method, backbone)
    image, text = method.image_states(model, batch.images), method.text_states(model, batch.tokens)
    torch.testing.assert_close(image["tokens"][:, 0], image["pooled"])  # CLIP pools its class token
    at_end = batch.tokens.mask.sum(1) - 1
    torch.testing.assert_close(text["tokens"][torch.arange(len(batch)), at_end], text["pooled"])
    assert isinstance(batch.tokens, Tokens) and torch.equal(text["mask"], batch.tokens.mask)
