"""ViLT as a backbone: scores, towers, the cheap last block, counts and names."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from petlbench.methods.backbones.base import BRANCHES, PairEncoder, Tokens
from petlbench.methods.backbones.random_models import random_vilt
from petlbench.methods.backbones.shapes import untouched, vilt_shape_only
from petlbench.methods.backbones.vilt_tower import TEXT_EPS, TRUNK_EPS

pytestmark = pytest.mark.usefixtures("one_thread")

CAPTIONS = ["a port", "many planes are parked near a large terminal", "", "word " * 90]


def pictures(model, count=4, side=None):
    side = model.resolution if side is None else side
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def inputs(**options):
    """A random model, pictures and captions of differing lengths."""
    model = random_vilt(**options)
    return model, pictures(model), model.tokenize(CAPTIONS)


def transformers_own(model):
    """The class of transformers with the same weights; its norms after the word embeddings have another epsilon."""
    from transformers import ViltForImageAndTextRetrieval

    own = ViltForImageAndTextRetrieval(model.vilt.config).eval()
    own.load_state_dict(model.state_dict())
    own.vilt.embeddings.text_embeddings.LayerNorm.eps = TEXT_EPS
    return own


def own_scores(own, images, tokens):
    mask = torch.ones(images[:, 0].shape, dtype=torch.int64)
    found = own(input_ids=tokens.ids, attention_mask=tokens.mask.long(), pixel_values=images, pixel_mask=mask)
    return found.logits[:, 0]


# --- scores ---


@torch.no_grad()
@pytest.mark.parametrize("side", [48, 80], ids=["own grid", "other grid"])
@pytest.mark.parametrize("trim", [False, True], ids=["padded", "trimmed"])
def test_scores_equal_those_of_transformers(side, trim):
    model, _, tokens = inputs()
    images = pictures(model, side=side)
    tokens = tokens[:3].trimmed() if trim else tokens
    images = images[: len(tokens)]
    found = model.score_pairs(images, tokens)
    assert found.std() > 0.05
    torch.testing.assert_close(found, own_scores(transformers_own(model), images, tokens), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_scores_of_b32_shape_equal_those_of_transformers():
    """Grid, patch, heads and context as published; two narrow blocks."""
    model = random_vilt(blocks=2, width=64, resolution=384, patch=32, context_length=40)
    assert (model.grid, model.patches, model.resolution) == ((12, 12), 144, 384)
    images, tokens = pictures(model, 2), model.tokenize(CAPTIONS[:2])
    torch.testing.assert_close(
        model.score_pairs(images, tokens), own_scores(transformers_own(model), images, tokens), atol=1e-5, rtol=1e-5
    )


def test_the_constants_are_those_of_vilts_own_code():
    model = random_vilt()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    text = norms.pop("vilt.embeddings.text_embeddings.LayerNorm")
    assert text.eps == TEXT_EPS == 1e-12 and {norm.eps for norm in norms.values()} == {TRUNK_EPS} == {1e-6}
    rates = {module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.1, 0.0} and model.vilt.config.attention_probs_dropout_prob == 0
    assert model.provenance.mean == model.provenance.std == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_padding_changes_nothing_and_needs_no_mask_where_there_is_none():
    model, images, tokens = inputs()
    noisy = Tokens(torch.where(tokens.mask, tokens.ids, 7), tokens.mask)
    expected = model.score_pairs(images, tokens)
    torch.testing.assert_close(model.score_pairs(images, noisy), expected, atol=1e-5, rtol=1e-5)
    assert model.trims_text
    for row in range(len(tokens)):
        words = tokens[row : row + 1].trimmed()
        hidden = model.join(model.embed_text(words), None, model.embed_image(images[row : row + 1]))
        assert hidden.mask is None
        torch.testing.assert_close(model.head(model.joint.run(hidden)), expected[row : row + 1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_score_depends_on_its_own_pair_alone_and_on_both_sides():
    model, images, tokens = inputs()
    together = model.score_pairs(images, tokens)
    alone = torch.cat([model.score_pairs(images[i : i + 1], tokens[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.score_pairs(images, tokens), together)
    assert (model.score_pairs(images.flip(0), tokens) - together).abs().min() > 1e-4
    assert (model.score_pairs(images, tokens[torch.tensor([1, 0, 3, 2])]) - together).abs().min() > 1e-4


@torch.no_grad()
def test_patches_stand_in_raster_order_after_the_class_token():
    model = random_vilt()
    images = pictures(model, 1)
    changed = images.clone()
    changed[:, :, 16:32, 32:48] += 1.0  # second row, third column
    moved = (model.embed_image(changed) - model.embed_image(images)).abs().amax(-1)[0]
    assert (moved > 1e-3).nonzero().flatten().tolist() == [1 + 1 * 3 + 2]
    assert moved.shape == (1 + model.patches,)


@torch.no_grad()
def test_both_sides_carry_their_modality_type():
    model, images, tokens = inputs()
    image, text = model.embed_image(images), model.embed_text(tokens)
    with torch.no_grad():
        model.vilt.embeddings.token_type_embeddings.weight += torch.tensor([[3.0], [5.0]])
    torch.testing.assert_close(model.embed_text(tokens) - text, torch.full_like(text, 3.0))
    torch.testing.assert_close(model.embed_image(images) - image, torch.full_like(image, 5.0))


def test_dropout_acts_in_training_only():
    model, images, tokens = inputs()
    assert torch.equal(model.score_pairs(images, tokens), model.score_pairs(images, tokens))
    model.train()
    assert not torch.equal(model.score_pairs(images, tokens), model.score_pairs(images, tokens))


# --- the cheap last block ---


class PerToken(nn.Module):
    """Reads everything that is local to a token."""

    per_token = True

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(width)
        self.linear = nn.Linear(3 * width, width)
        self.lengths = []

    def forward(self, state):
        self.lengths.append(state.out.shape[1])
        assert state.hidden.x.shape == state.out.shape == state.normed.shape == state.residual.shape
        return state.out + self.linear(torch.cat([state.out, state.residual, state.normed], -1))


class Mixing(nn.Module):
    """Adds the mean over the tokens, which needs them all."""

    def forward(self, state):
        return state.out + state.normed.mean(1, keepdim=True)


def with_prefix(hidden, count):
    """``count`` tokens inserted before the words."""
    rows = torch.randn(count, hidden.x.shape[2], generator=torch.Generator().manual_seed(1))
    x = torch.cat([rows.expand(hidden.x.shape[0], -1, -1), hidden.x], 1)
    mask = torch.cat([hidden.mask.new_ones(len(x), count), hidden.mask], 1)
    return replace(hidden, x=x, mask=mask, prefix=count)


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("module", [None, PerToken, Mixing])
def test_run_pooled_equals_run_forward_and_backward(prefix, module):
    model, images, tokens = inputs()
    if module is not None:
        for index, kind in itertools.product(range(model.joint.depth), BRANCHES):
            model.joint.attach(index, kind, module(model.width) if module is PerToken else module())
    gradients = []
    for run in (model.joint.run, model.joint.run_pooled):
        hidden = with_prefix(model.joint.embed((images, tokens)), prefix)
        out = run(hidden)
        score = model.head(out)
        gradients.append((score, *torch.autograd.grad(score.square().sum(), list(model.parameters()))))
    assert (out.x.shape, out.prefix, out.mask) == ((4, 1, model.width), 0, None)
    names = ["score", *(name for name, _ in model.named_parameters())]
    for name, whole, pooled in zip(names, *gradients, strict=True):
        torch.testing.assert_close(pooled, whole, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_run_pooled_computes_the_last_block_for_one_token():
    model, images, tokens = inputs()
    adapters = [PerToken(model.width) for _ in range(model.joint.depth)]
    for index, adapter in enumerate(adapters):
        model.joint.attach(index, "mlp", adapter)
    model.score_pairs(images, tokens)
    length = tokens.ids.shape[1] + 1 + model.patches
    assert [adapter.lengths for adapter in adapters] == [[length], [length], [1]]
    undeclared = Mixing()
    model.joint.attach(2, "mlp", undeclared)
    model.score_pairs(images, tokens)
    assert adapters[2].lengths == [1, length]


@torch.no_grad()
def test_run_pooled_in_parts():
    model, images, tokens = inputs()
    tower = model.joint
    hidden = tower.embed((images, tokens))
    expected = model.head(tower.run(hidden))
    torch.testing.assert_close(model.head(tower.run_pooled(tower.run(hidden, 0, 2), 2)), expected)
    cut = tower.run(hidden, 0, 2)
    torch.testing.assert_close(tower.run_pooled(hidden, stop=2).x, cut.x[:, :1])
    assert torch.equal(tower.run_pooled(hidden, 1, 1).x, hidden.x[:, :1])


# --- the tower ---


@torch.no_grad()
def test_the_tower_gives_what_transformers_gives():
    model, images, tokens = inputs()
    own = transformers_own(model).vilt
    found = own(
        input_ids=tokens.ids, attention_mask=tokens.mask.long(), pixel_values=images, pixel_mask=torch.ones(4, 48, 48)
    )
    words = tokens.ids.shape[1]
    states = model.joint.tokens((images, tokens))
    torch.testing.assert_close(
        states[:, :words][tokens.mask], found.last_hidden_state[:, :words][tokens.mask], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(model.joint.pooled((images, tokens)), found.pooler_output, atol=1e-5, rtol=1e-5)
    assert model.joint.pooled_width == model.joint.width == model.width == 32 and model.joint.heads == model.heads == 2


@torch.no_grad()
@pytest.mark.parametrize("kind", BRANCHES)
def test_attached_modules_become_part_of_the_block(kind):
    model, images, tokens = inputs()
    plain = model.score_pairs(images, tokens)
    adapter = PerToken(model.width)
    for parameter in adapter.parameters():
        parameter.zero_()
    model.joint.attach(1, kind, adapter)
    torch.testing.assert_close(model.score_pairs(images, tokens), plain, atol=1e-6, rtol=1e-6)
    adapter.linear.bias += torch.linspace(-1, 1, model.width)
    assert (model.score_pairs(images, tokens) - plain).abs().max() > 1e-4
    assert f"vilt.encoder.layer.1.attached_{kind}.0.linear.weight" in dict(model.named_parameters())


@pytest.mark.parametrize("kind", BRANCHES)
def test_linears_name_weights_of_their_block(kind):
    model = random_vilt()
    modules = dict(model.named_modules())
    for index, block in enumerate(model.joint.blocks):
        inside = {id(module) for module in block.modules()}
        names = model.joint.linears(index, kind)
        assert all(id(modules[name]) in inside and isinstance(modules[name], nn.Linear) for name in names)
    counted = sum(p.numel() for name in model.joint.linears(0, kind) for p in modules[name].parameters())
    assert counted == (4 * (32 * 32 + 32) if kind == "attention" else 8 * 32 * 32 + 5 * 32)


@torch.no_grad()
def test_replaced_linears_are_read():
    """Low-rank methods replace the named modules; every one of them must be called, in the last block too."""
    model, images, tokens = inputs()
    plain = model.score_pairs(images, tokens)
    for index, kind in itertools.product(range(model.joint.depth), BRANCHES):
        for name in model.joint.linears(index, kind):
            changed = untouched(model)
            module = changed.get_submodule(name)
            changed.set_submodule(name, nn.Linear(module.in_features, module.out_features))
            assert (changed.score_pairs(images, tokens) - plain).abs().max() > 1e-6, name


@torch.no_grad()
def test_blocks_are_live_and_a_deep_copy_is_independent():
    model, images, tokens = inputs()
    plain = model.score_pairs(images, tokens)
    twin = copy.deepcopy(model)
    del twin.vilt.encoder.layer[2:]
    assert twin.joint.depth == 2
    assert not torch.allclose(twin.score_pairs(images, tokens), plain)
    assert torch.equal(model.score_pairs(images, tokens), plain)
    assert untouched(model).tokenizer is model.tokenizer


# --- head, counts, names ---


def test_the_ranking_head_starts_from_the_match_row():
    model = random_vilt()
    weight, bias = model.itm_head
    assert (weight.shape, bias.shape) == ((2, 32), (2,))
    assert torch.equal(model.rank_output.weight, weight[1:]) and torch.equal(model.rank_output.bias, bias[1:])
    with torch.no_grad():
        model.rank_output.weight += 1
    assert not torch.equal(model.rank_output.weight, model.itm_head[0][1:])  # a copy, no view
    assert not any("itm" in name for name, _ in model.named_parameters()) and not list(model.new_parameters())


def test_counts_of_b32():
    def counted(module):
        return sum(parameter.numel() for parameter in module.parameters())

    model = vilt_shape_only()
    assert isinstance(model, PairEncoder) and next(model.parameters()).is_meta
    assert counted(model) == 111_595_777
    assert counted(vilt_shape_only(blocks=6)) == 69_068_545
    parts = model.vilt.embeddings
    assert counted(parts.text_embeddings) == 23_474_688
    assert counted(parts.patch_embeddings) == 2_360_064
    assert (parts.position_embeddings.numel(), parts.cls_token.numel()) == (111_360, 768)
    assert counted(parts.token_type_embeddings) == 1_536
    assert [counted(block) for block in model.joint.blocks] == [7_087_872] * 12
    assert (counted(model.vilt.layernorm), counted(model.vilt.pooler), counted(model.rank_output)) == (
        1_536,
        590_592,
        769,
    )
