"""The backbone contract, the same tests on both kinds."""

import copy
import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from petlbench.methods.backbones.base import Hidden
from petlbench.methods.backbones.random_models import random_clip, random_two_tower

CAPTIONS = ["a port", "many planes are parked near a large terminal", "", "word " * 90]
MODELS = {"open_clip": random_clip, "two_tower": random_two_tower}
SIDES = list(itertools.product(MODELS, ["image", "text"]))


pytestmark = pytest.mark.usefixtures("one_thread")


def side(kind, modality, **options):
    """A random model, its tower, and a batch of three inputs."""
    model = MODELS[kind](**options)
    if modality == "image":
        generator = torch.Generator().manual_seed(0)
        return model, model.image, torch.randn(3, 3, model.resolution, model.resolution, generator=generator)
    return model, model.text, model.tokenize(CAPTIONS[:3])


def insert(hidden: Hidden, tokens: torch.Tensor) -> Hidden:
    """Put (n, W) tokens after the first position."""
    n = tokens.shape[0]
    rows = tokens.expand(hidden.x.shape[0], -1, -1)
    x = torch.cat([hidden.x[:, :1], rows, hidden.x[:, 1:]], 1)
    mask = hidden.mask
    if mask is not None:
        mask = torch.cat([mask[:, :1], mask.new_ones(mask.shape[0], n), mask[:, 1:]], 1)
    return replace(
        hidden,
        x=x,
        mask=mask,
        pool_at=None if hidden.pool_at is None else hidden.pool_at + n,
        prefix=hidden.prefix + n,
    )


class ZeroAdapter(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.shapes = []

    def forward(self, state):
        self.shapes.append(tuple(state.out.shape))
        return state.out + self.up(state.out)


@pytest.mark.parametrize(("kind", "modality"), SIDES)
class TestTower:
    def test_shapes(self, kind, modality):
        model, tower, inputs = side(kind, modality)
        hidden = tower.embed(inputs)
        assert hidden.x.shape[0] == 3
        assert hidden.x.shape[2] == tower.width
        assert tower.run(hidden).x.shape == hidden.x.shape
        assert tower.tokens(inputs).shape == hidden.x.shape
        assert tower.pooled(inputs).shape == (3, tower.pooled_width)
        assert tower.depth == len(tower.blocks) == 2
        assert tower.width % tower.heads == 0
        encoded = model.encode_image(inputs) if modality == "image" else model.encode_text(inputs)
        assert encoded.shape == (3, model.embed_dim)

    def test_run_in_parts_equals_run(self, kind, modality):
        _, tower, inputs = side(kind, modality)
        hidden = tower.embed(inputs)
        halves = tower.run(tower.run(hidden, 0, 1), 1)
        assert torch.equal(halves.x, tower.run(hidden).x)

    @torch.no_grad()
    def test_inserted_tokens_pass_through_and_matter(self, kind, modality):
        _, tower, inputs = side(kind, modality)
        plain = tower.pooled(inputs)
        for n in (1, 5):
            tokens = torch.randn(n, tower.width, generator=torch.Generator().manual_seed(n))
            out = tower.pool(tower.run(insert(tower.embed(inputs), tokens)))
            assert out.shape == plain.shape
            assert torch.isfinite(out).all()
            assert (out - plain).abs().max() > 1e-4

    @torch.no_grad()
    def test_a_masked_token_changes_nothing(self, kind, modality):
        _, tower, inputs = side(kind, modality)
        hidden = tower.embed(inputs)
        plain = tower.pool(tower.run(hidden))
        mask = torch.ones(hidden.x.shape[:2], dtype=torch.bool) if hidden.mask is None else hidden.mask
        junk = 9 * torch.ones(3, 1, tower.width)
        longer = replace(hidden, x=torch.cat([hidden.x, junk], 1), mask=torch.cat([mask, torch.zeros(3, 1).bool()], 1))
        states = tower.run(longer)
        if modality == "image":  # images carry no padding, so their mean is over all patches
            states = replace(states, x=states.x[:, :-1], mask=None)
        torch.testing.assert_close(tower.pool(states), plain, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("branch", ["attention", "mlp"])
    def test_attached_modules_see_the_branch_and_a_zero_one_changes_nothing(self, kind, modality, branch):
        _, tower, inputs = side(kind, modality)
        plain = tower.pooled(inputs)
        adapters = [ZeroAdapter(tower.width) for _ in range(tower.depth)]
        for index, adapter in enumerate(adapters):
            tower.attach(index, branch, adapter)
        torch.testing.assert_close(tower.pooled(inputs), plain, atol=1e-6, rtol=1e-6)
        shape = tuple(tower.embed(inputs).x.shape)
        assert all(adapter.shapes == [shape] for adapter in adapters)
        adapters[0].up.bias.data += torch.linspace(-1, 1, tower.width)
        assert (tower.pooled(inputs) - plain).abs().max() > 1e-3

    @torch.no_grad()
    @pytest.mark.parametrize("branch", ["attention", "mlp"])
    def test_a_silenced_branch_leaves_the_residual_stream(self, kind, modality, branch):
        """What an attached module returns is the whole contribution: zeros equal removing the branch."""
        _, tower, inputs = side(kind, modality)
        hidden = tower.embed(inputs)
        for name in ("attention", "mlp"):
            tower.attach(0, name, _Zero())
        out = tower.run_block(0, hidden).x
        expected = hidden.x
        if kind == "two_tower" and modality == "text":  # post-norm: two norms of a normed state are that state
            torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
        else:
            assert torch.equal(out, expected)

    @torch.no_grad()
    def test_attached_modules_are_given_the_stream_and_what_the_branch_reads(self, kind, modality):
        _, tower, inputs = side(kind, modality)
        hidden = tower.embed(inputs)
        seen = {}
        for name in ("attention", "mlp"):
            tower.attach(0, name, _Recorder(seen, name))
        after = tower.run_block(0, hidden).x
        assert seen["attention"].residual is hidden.x and seen["attention"].hidden is hidden
        post_norm = kind == "two_tower" and modality == "text"
        if post_norm:
            assert all(state.normed is state.residual for state in seen.values())
        else:
            torch.testing.assert_close(seen["mlp"].residual, hidden.x + seen["attention"].out)
            torch.testing.assert_close(after, seen["mlp"].residual + seen["mlp"].out)
            for state in seen.values():
                torch.testing.assert_close(
                    state.normed.mean(-1), torch.zeros(state.normed.shape[:2]), atol=1e-4, rtol=0
                )

    @torch.no_grad()
    def test_attached_modules_act_in_order_and_may_be_shared(self, kind, modality):
        model, tower, inputs = side(kind, modality)
        shared = ZeroAdapter(tower.width)
        for index in range(tower.depth):
            tower.attach(index, "mlp", shared)
            tower.attach(index, "mlp", _Zero())
        tower.pooled(inputs)
        assert len(shared.shapes) == tower.depth
        names = [name for name, _ in model.named_parameters() if "attached" in name]
        assert len(names) == len(list(shared.parameters()))

    @torch.no_grad()
    def test_the_second_view_drops_embedded_tokens_and_leaves_no_trace(self, kind, modality):
        model, tower, inputs = side(kind, modality)
        plain = tower.embed(inputs).x
        with model.second_view(0.5):
            elements = tower.embed(inputs).x
        with model.second_view(0.5, "token"):
            tokens = tower.embed(inputs).x
        assert torch.equal(tower.embed(inputs).x, plain)
        for changed in (elements, tokens):
            kept = changed != 0
            assert 0.2 < kept.float().mean() < 0.8
            torch.testing.assert_close(changed[kept], 2 * plain[kept])
        whole = (tokens != 0).any(-1)
        assert torch.equal((tokens != 0) | (plain == 0), whole[..., None].expand_as(plain) | (plain == 0))

    @pytest.mark.parametrize("branch", ["attention", "mlp"])
    def test_linears_name_weights_of_their_block(self, kind, modality, branch):
        model, tower, _ = side(kind, modality)
        modules = dict(model.named_modules())
        for index in range(tower.depth):
            names = tower.linears(index, branch)
            inside = {id(module) for module in tower.blocks[index].modules()}
            assert names
            assert all(id(modules[name]) in inside for name in names)
        counted = sum(p.numel() for name in tower.linears(0, branch) for p in modules[name].parameters())
        width = tower.width
        assert counted == (4 * (width * width + width) if branch == "attention" else 8 * width * width + 5 * width)

    def test_blocks_are_live(self, kind, modality):
        _, tower, inputs = side(kind, modality)
        first = tower.pooled(inputs)
        tower.blocks[0] = tower.blocks[1]
        assert not torch.allclose(tower.pooled(inputs), first)

    def test_a_deep_copy_is_independent(self, kind, modality):
        model, _, inputs = side(kind, modality)
        twin = copy.deepcopy(model)
        encode = "encode_image" if modality == "image" else "encode_text"
        before = getattr(model, encode)(inputs)
        assert torch.equal(getattr(twin, encode)(inputs), before)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(0.5)
        assert torch.equal(getattr(model, encode)(inputs), before)
        assert not torch.allclose(getattr(twin, encode)(inputs), before)

    def test_gradients_flow_after_inference(self, kind, modality):
        """Anything cached while evaluating must not break the next training step."""
        _, tower, inputs = side(kind, modality)
        with torch.inference_mode():
            tower.pooled(inputs)
        tower.pooled(inputs).sum().backward()
        assert all(p.grad is not None for p in tower.blocks[0].parameters() if p.requires_grad and p.ndim > 1)


class _Zero(nn.Module):
    def forward(self, state):
        return torch.zeros_like(state.out)


class _Recorder(nn.Module):
    def __init__(self, seen, name):
        super().__init__()
        self.seen, self.name = seen, name

    def forward(self, state):
        self.seen[self.name] = state
        return state.out


@pytest.mark.parametrize("kind", MODELS)
class TestEncoder:
    def test_tokens(self, kind):
        model = MODELS[kind]()
        tokens = model.tokenize(CAPTIONS)
        assert tokens.ids.shape == tokens.mask.shape == (4, 16)
        assert tokens.mask.sum(1).tolist() == [4, 10, 2, 16]
        ends = tokens.ids[torch.arange(4), tokens.mask.sum(1) - 1]
        assert len(set(ends.tolist())) == 1
        assert len(model.tokenize([])) == 0

    @torch.no_grad()
    def test_trimmed_text_equals_full_text(self, kind):
        model = MODELS[kind]()
        tokens = model.tokenize(CAPTIONS[:3])
        assert model.trims_text
        assert tokens.trimmed().ids.shape[1] == 10
        torch.testing.assert_close(model.encode_text(tokens.trimmed()), model.encode_text(tokens), atol=1e-5, rtol=1e-5)

    def test_the_seed_decides(self, kind):
        one, same, other = MODELS[kind](seed=1), MODELS[kind](seed=1), MODELS[kind](seed=2)
        assert one.provenance.sha256 == same.provenance.sha256 != other.provenance.sha256
        for a, b in zip(one.parameters(), same.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_building_leaves_the_global_generator_alone(self, kind):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        MODELS[kind](seed=3)
        assert torch.equal(torch.rand(3), expected)

    def test_parameters_are_named_once(self, kind):
        model = MODELS[kind]()
        owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        assert set(owners.values()) == {1}
        assert model.logit_scale.item() == pytest.approx(2.6592600)
        assert set(model.new_parameters()) <= {name for name, _ in model.named_parameters()}
        assert bool(list(model.new_parameters())) != model.aligned


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5), st.sampled_from(sorted(MODELS)))
def test_any_caption_tokenises_within_bounds(captions, kind):
    model = _cached(kind)
    tokens = model.tokenize(captions)
    lengths = tokens.mask.sum(1)
    assert (lengths >= 2).all()
    assert (lengths <= 16).all()
    assert (tokens.mask.int().diff(dim=1) <= 0).all(), "padding is at the end"
    assert (tokens.ids[~tokens.mask] == 0).all()
    assert (tokens.ids >= 0).all()
    assert (tokens.ids < 512).all()
    assert torch.equal(tokens.ids.argmax(1), lengths - 1), "the end token is the highest id"


_models: dict = {}


def _cached(kind):
    return _models.setdefault(kind, MODELS[kind]())
