"""Prompt methods: places and sizes of the prompts, and captions that move."""

import copy

import pytest
import torch
from built_models import built
from torch import nn

from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.base import Tokens
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.base import MethodError
from petlbench.methods.coop import Coop, CoopConfig
from petlbench.methods.layers import prompts as layer
from petlbench.methods.maple import Maple, MapleConfig
from petlbench.methods.recipe import LossConfig
from petlbench.methods.vl_prompt import VlPrompt
from petlbench.methods.vpt import Vpt, VptConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def far(a, b):
    """Largest difference, relative to the largest value."""
    return float(((a - b).abs().max() / b.abs().max()).detach())


# --- text: where prompts and words stand ---


def test_room_for_prompts_keeps_short_captions_whole_and_the_end_of_long_ones():
    ids = torch.tensor([[8, 1, 2, 9, 0, 0], [8, 1, 2, 3, 4, 9]])
    tokens = Tokens(ids, torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool())
    room = layer.with_room(tokens, 2, 7)
    assert room.ids.tolist() == [[8, 0, 0, 1, 2, 9, 0], [8, 0, 0, 1, 2, 3, 9]]
    assert room.mask.sum(1).tolist() == [6, 7]
    assert layer.with_room(tokens, 2, 9).ids.tolist() == [[8, 0, 0, 1, 2, 9, 0, 0], [8, 0, 0, 1, 2, 3, 4, 9]]
    assert ids[1, 5] == 9 and tokens.ids.tolist()[1] == [8, 1, 2, 3, 4, 9]  # the input is left alone


@pytest.mark.parametrize("positions", ["shifted", "kept"])
def test_prompts_of_words_say_what_the_words_say(positions):
    # Prompts that are the embeddings of words are those words, where the words move back as words would.
    backbone = random_clip(context_length=24)
    method = Coop(CoopConfig(tokens=3, words="a photo of", positions=positions))
    model = built(method, backbone)
    plain = backbone.tokenize(["bridge over water"])
    with torch.no_grad():
        prompted = method.encode_text(model, plain)
        spelled = backbone.encode_text(backbone.tokenize(["a photo of bridge over water"]))
    assert (far(prompted, spelled) < 1e-5) == (positions == "shifted")


def test_bert_prompts_are_seen_but_not_averaged():
    backbone = random_two_tower()
    tower = backbone.text
    tokens = backbone.tokenize(["many planes", "a bridge over the wide river"])
    prompts = torch.randn(2, 3, tower.width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pooled = layer.pooled_text(tower, tokens, prompts)
        # The same behind the class token: its blocks do not know the order; the mean is over class token and words.
        hidden = tower.embed(tokens)
        ones = torch.ones(2, 3, dtype=torch.bool)
        mask = torch.cat([tokens.mask[:, :1], ones, tokens.mask[:, 1:]], 1)
        x = torch.cat([hidden.x[:, :1], prompts[0].expand(2, -1, -1), hidden.x[:, 1:]], 1)
        x = tower.blocks[0](x, mask[:, None, None])
        x = torch.cat([x[:, :1], prompts[1].expand(2, -1, -1), x[:, 4:]], 1)
        x = tower.blocks[1](x, mask[:, None, None])
        own = torch.cat([x[:, :1], x[:, 4:]], 1) * tokens.mask[..., None]
        assert far(pooled, own.sum(1) / tokens.mask.sum(1, keepdim=True)) < 1e-5
        assert far(tower.pooled(tokens), pooled) > 1e-3


def test_auto_positions_shift_where_the_table_has_room():
    wide, narrow = random_clip(context_length=64), random_clip(context_length=63)
    assert layer.shifts(wide.text, 16, "auto") and not layer.shifts(narrow.text, 16, "auto")
    assert layer.shifts(narrow.text, 16, "shifted") and not layer.shifts(wide.text, 16, "kept")
    assert not layer.shifts(random_two_tower().text, 1, "shifted")
    refusal = str(Coop(CoopConfig(tokens=14, positions="shifted")).refuse(random_clip()))
    assert "14 prompts leave 2 of 16 text positions" in refusal and "method.coop.positions=kept" in refusal
    assert Coop(CoopConfig(tokens=13, positions="shifted")).refuse(random_clip()) is None
    assert Coop(CoopConfig(tokens=14)).refuse(random_clip()) is None


def test_words_that_are_too_few_are_refused():
    for backbone in (random_clip(), random_two_tower()):
        with pytest.raises(MethodError, match=r"4 prompts are to start from the words 'a photo', which are 2 tokens"):
            Coop(CoopConfig(tokens=4, words="a photo")).build(backbone)


@pytest.mark.parametrize("make", [random_clip, random_two_tower])
def test_first_set_starts_from_words(make):
    backbone = make()
    model = Maple().build(backbone)
    start = model.text_prompts[0]
    if make is random_clip:
        ids = backbone.tokenize(["a photo of a"]).ids[0, 1:3]
        assert torch.equal(start, backbone.text.root.token_embedding(ids))
    else:
        assert torch.equal(start, backbone.text.embed(backbone.tokenize(["a photo"])).x[0, 1:3])
    at_random = Maple(MapleConfig(tokens=5)).build(make())  # more than 4: official code starts at random
    assert float(at_random.text_prompts[0].detach().std()) == pytest.approx(0.02, rel=0.3)


# --- images ---


@pytest.mark.parametrize("make", [random_clip, random_two_tower])
def test_deep_prompts_replace_and_shallow_ones_go_on(make):
    backbone = make()
    tower, batch = backbone.image, fake_batch(make())
    assert batch.images is not None
    deep = torch.randn(2, 3, tower.width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = tower.embed(batch.images)
        kept = hidden.prefix
        x = torch.cat([hidden.x[:, :kept], deep[0].expand(8, -1, -1), hidden.x[:, kept:]], 1)
        x = tower.run_block(0, hidden.with_x(x)).x
        shallow = tower.run_block(1, hidden.with_x(x)).x
        x = torch.cat([x[:, :kept], deep[1].expand(8, -1, -1), x[:, kept + 3 :]], 1)
        replaced = tower.run_block(1, hidden.with_x(x)).x
        for sets, expected in ((deep, replaced), (deep[:1], shallow)):
            without = torch.cat([expected[:, :kept], expected[:, kept + 3 :]], 1)
            pooled = layer.pooled_image(tower, batch.images, sets)
            assert far(pooled, tower.pool(hidden.with_x(without))) < 1e-5
        assert far(tower.pooled(batch.images), pooled) > 1e-3


def test_visual_prompts_start_within_the_official_bound():
    backbone = random_clip(patch=16, width=32)
    bound = (6 / (3 * 16 * 16 + 32)) ** 0.5
    values = built(Vpt(), backbone).image_prompts.detach()
    assert values.shape == (2, 50, 32)
    assert 0.97 * bound < float(values.abs().max()) <= bound
    normal = built(Vpt(VptConfig(init="normal")), random_clip()).image_prompts.detach()
    assert float(normal.std()) == pytest.approx(0.02, rel=0.05)


def test_input_norm_is_the_towers_own():
    backbone = random_clip()
    nn.init.normal_(backbone.clip.visual.ln_pre.weight)
    images = fake_batch(backbone).images
    sets = torch.randn(1, 3, 32)
    with torch.no_grad():
        normed = layer.pooled_image(backbone.image, images, sets, input_norm=True)
        by_hand = layer.pooled_image(backbone.image, images, backbone.clip.visual.ln_pre(sets))
    assert torch.equal(normed, by_hand)


def test_maple_couples_the_towers():
    method = Maple(MapleConfig(depth=2))
    model = built(method, random_clip(blocks=3))
    images = fake_batch(model.backbone).images
    with torch.no_grad():
        first, second = model.image_prompts()
        coupling = model.couplings[1]
        assert (
            torch.equal(second, model.text_prompts[1] @ coupling.weight.T + coupling.bias)
            or far(second, model.text_prompts[1] @ coupling.weight.T + coupling.bias) < 1e-6
        )
        before = method.encode_image(model, images)
        model.text_prompts[1] += 1.0  # a text prompt moves the picture's embedding
        assert far(method.encode_image(model, images), before) > 1e-4
    assert first.shape == (2, 32)


def test_maple_depth_is_that_of_the_shallower_tower():
    backbone = random_clip(blocks=3, text_blocks=2)
    assert Maple(MapleConfig(depth="all")).build(backbone).text_prompts.shape[0] == 2


# --- all of them ---

METHODS = {
    "coop": Coop(CoopConfig(depth="all")),
    "vpt": Vpt(),
    "vl_prompt": VlPrompt(),
    "maple": Maple(),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_other_tower_gets_no_gradient_and_stays_as_it_is(name):
    method, backbone = METHODS[name], random_clip()
    batch = fake_batch(backbone)
    plain = copy.deepcopy(backbone)
    model = built(method, backbone)
    image, text = method.embed(model, batch)
    assert image.requires_grad == (name != "coop")
    assert text.requires_grad == (name != "vpt")
    with torch.no_grad():
        if name == "coop":
            assert torch.equal(image, plain.encode_image(batch.images))
        if name == "vpt":
            assert torch.equal(text, plain.encode_text(batch.tokens))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("make", [random_clip, random_two_tower])
def test_second_views_drop_words_and_patches_not_prompts(name, make):
    method = copy.copy(METHODS[name])
    method.loss_config = LossConfig(name="hmmc")
    backbone = make()
    model, batch = built(method, backbone), fake_batch(backbone)
    assert set(method.loss(model, batch)) == {"hinge", "hinge_image", "hinge_text"}
    with torch.no_grad(), backbone.second_view(0.5):
        one, other = method.embed(model, batch), method.embed(model, batch)
    assert all(far(a, b) > 1e-4 for a, b in zip(one, other, strict=True))
    # With everything that comes from the input dropped, what is left are the prompts.
    if name != "vpt":
        with torch.no_grad(), backbone.second_view(1 - 1e-6):
            empty = method.encode_text(model, batch.tokens)
        assert torch.isfinite(empty).all()


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_start(name):
    states = [built(METHODS[name], random_clip()).state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
