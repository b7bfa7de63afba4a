"""Batches in pieces: the gradient of the whole, whatever the loss, the method and what is random."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from worker_cases import CPU, LOSSES, PAIRS, Case, batches, built

from petlbench.harness.distributed.shard import cannot_split, indivisible, micro_size, rows_of
from petlbench.harness.engine import Engine, TrainingError
from petlbench.harness.grad_cache import RandomState, judge, surrogate
from petlbench.harness.spec import EngineConfig
from petlbench.methods import registry
from petlbench.methods.base import Batch, Method
from petlbench.methods.recipe import Recipe

METHODS = sorted(name for name, source in registry.discover().items() if registry.load(source).trains)
SMALL = {
    "cup": {"tokens": 2, "cluster_width": 16},
    "harma": {"bottleneck": 16, "mini_bottleneck": 8},
    "pir_clip": {"prior_layers": (1, 1, 1, 1), "prior_width": 8},
    "pir_petl": {"prior": "resnet18"},
}


def gradients(method, model, trainable, batch):
    """Of one plain backward pass."""
    named = dict(model.named_parameters())
    total = torch.stack(list(method.loss(model, batch).values())).sum()
    return dict(
        zip(trainable, torch.autograd.grad(total, [named[n] for n in trainable], allow_unused=True), strict=True)
    )


def in_pieces(method, model, trainable, batch, size, states=None):
    """Of the three parts of GradCache, on pieces of ``size`` rows."""
    named = {n: p for n, p in model.named_parameters() if n in set(trainable)}
    pieces = [(i, min(i + size, len(batch))) for i in range(0, len(batch), size)]
    states = [] if states is None else states
    with torch.no_grad():
        views = []
        for cut in pieces:
            states.append(RandomState.of(CPU))
            views.append(method.views(model, rows_of(batch, *cut)))
    judged = judge(method, model, batch, [torch.cat(v) for v in zip(*views, strict=True)], named)
    model.zero_grad()
    for state, (start, stop) in zip(states, pieces, strict=True):
        state.restore()
        again = method.views(model, rows_of(batch, start, stop))
        mine = [g[start:stop] for g in judged.of_views]
        # In this sum over pieces the temperature's gradient would count once per piece.
        shared = {n: g / len(pieces) for n, g in judged.of_parameters.items()}
        surrogate(model, again, mine, 1.0, shared).backward()
    return {n: p.grad for n, p in named.items()}, judged.parts


def close(found, expected, tolerance=1e-6):
    biggest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    assert biggest > 1e-4, "the comparison means nothing where nothing has a gradient"
    for name, value in expected.items():
        got = found[name]
        if value is None or got is None:
            assert (value is None or not value.any()) and (got is None or not got.any()), name
        else:
            torch.testing.assert_close(
                got, value, atol=tolerance * max(1.0, biggest), rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_pieces_give_the_gradient_of_the_whole_batch(loss, size):
    case = Case(loss={"name": loss, "view_dropout": 0.0, "mask_duplicates": True})
    method, backbone, model, trainable = built(case)
    (batch,) = batches(backbone, 1)
    expected = gradients(method, model, trainable, batch)
    found, parts = in_pieces(method, model, trainable, batch, size)
    close(found, expected)
    for name, value in method.loss(model, batch).items():
        assert float(parts[name]) == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_cut_in_pieces(name):
    """That is, no row of a method's views looks at another row."""
    cls = registry.load(registry.discover()[name])
    case = Case(name, options=SMALL.get(name, {}))
    assert cannot_split(cls, Recipe(grad_cache=3), 2) is None
    method, backbone, model, trainable = built(case)
    (batch,) = batches(backbone, 1)
    torch.manual_seed(0)
    state = RandomState.of(CPU)
    found, _ = in_pieces(method, model, trainable, batch, 3)
    state.restore()
    close(found, gradients(method, model, trainable, batch))


def test_dropout_is_repeated_so_that_the_gradient_is_of_one_draw():
    case = Case(loss={"name": "hmmc", "view_dropout": 0.3})
    method, backbone, model, trainable = built(case)
    model = nn.Sequential(model).train()[0]
    (batch,) = batches(backbone, 1)
    states: list[RandomState] = []
    torch.manual_seed(3)
    found, _ = in_pieces(method, model, trainable, batch, 4, states)
    # The same draws in one graph: each piece from its own state, the loss on all of them at once.
    views = []
    for state, start in zip(states, range(0, PAIRS, 4), strict=True):
        state.restore()
        views.append(method.views(model, rows_of(batch, start, start + 4)))
    total = torch.stack(
        list(method.compare(model, batch, *(torch.cat(v) for v in zip(*views, strict=True))).values())
    ).sum()
    named = dict(model.named_parameters())
    whole = torch.autograd.grad(total, [named[n] for n in trainable], allow_unused=True)
    close(found, dict(zip(trainable, whole, strict=True)))


def test_another_draw_in_the_second_pass_would_be_another_gradient():
    case = Case(loss={"name": "hmmc", "view_dropout": 0.3})
    method, backbone, model, trainable = built(case)
    (batch,) = batches(backbone, 1)
    torch.manual_seed(3)
    right, _ = in_pieces(method, model, trainable, batch, 4)
    torch.manual_seed(4)
    other, _ = in_pieces(method, model, trainable, batch, 4)
    with pytest.raises(AssertionError):
        close(other, right)


def steps(case, engine_config=None, data=None, method=None):
    made, backbone, model, trainable = built(case)
    data = batches(backbone) if data is None else data
    rows = len(data[0])
    config = EngineConfig.model_validate(engine_config or {})
    engine = Engine(model, method or made, trainable, set(), case.recipe, config, 3, 3, CPU, rows=rows)
    losses = [engine.step(batch) for batch in data]
    found = engine.trained_tensors()
    engine.close(whole=True)
    return found, losses


@pytest.mark.parametrize("cut", [{"accumulate": 2}, {"grad_cache": 3}, {"grad_cache": 100}])
def test_an_engine_in_pieces_steps_as_in_one(cut):
    plain, said = steps(Case(train={"clip_norm": 0.5, "weight_decay": 0.1}))
    found, told = steps(Case(train={"clip_norm": 0.5, "weight_decay": 0.1, **cut}))
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
    for one, other in zip(said, told, strict=True):
        assert other == pytest.approx(one, rel=1e-5)


def test_bf16_in_pieces_gives_the_losses_of_one_piece():
    _, said = steps(Case(train={"precision": "bf16", "lr": 1e-4}))
    _, told = steps(Case(train={"precision": "bf16", "lr": 1e-4, "accumulate": 2}))
    assert told[0] == pytest.approx(said[0], rel=2e-2)


def test_a_loss_that_is_not_finite_stops_before_the_update():
    case = Case(train={"accumulate": 2})
    method, backbone, model, trainable = built(case)
    engine = Engine(model, method, trainable, set(), case.recipe, EngineConfig(), 3, 3, CPU)
    before = engine.trained_tensors()
    (batch,) = batches(backbone, 1)
    batch.images[PAIRS - 1, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"step 1 .*train\.lr"):
        engine.step(batch)
    assert all(torch.equal(before[k], v) for k, v in engine.trained_tensors().items())
    engine.close()


class ByRow(Method):
    """Each pair by itself: the squared distance of its embeddings."""

    title = "By row"
    splits_by_row = True

    def build(self, backbone):
        return backbone

    def trainable(self, model):
        return [n for n, _ in model.named_parameters()]

    def loss(self, model, batch):
        image, text = (nn.functional.normalize(v, dim=-1) for v in self.embed(model, batch))
        return {"distance": (image - text).square().sum(1).mean()}


@pytest.mark.parametrize("cut", [{"accumulate": 2}, {"grad_cache": 3}])
def test_a_mean_over_rows_is_accumulated_without_a_second_pass(cut, monkeypatch):
    passes = []
    monkeypatch.setattr(ByRow, "loss", _counted(ByRow.loss, passes))
    plain, said = steps(Case(), method=ByRow())
    passes.clear()
    found, told = steps(Case(train=cut), method=ByRow())
    pieces = math.ceil(PAIRS / micro_size(Recipe(**cut), PAIRS))
    assert len(passes) == pieces * len(told)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
    assert [line["loss"] for line in told] == pytest.approx([line["loss"] for line in said], rel=1e-5)


def _counted(loss, passes):
    def counted(self, model, batch):
        passes.append(len(batch))
        return loss(self, model, batch)

    return counted


class OwnLoss(Method):
    """Compares rows in a loss of its own."""

    title = "Own loss"

    def build(self, backbone):
        return backbone

    def trainable(self, model):
        return []

    def loss(self, model, batch):
        image, text = self.embed(model, batch)
        return {"gap": (image.mean(0) - text.mean(0)).abs().sum()}


def test_a_loss_of_its_own_is_refused_with_the_way_out():
    assert cannot_split(OwnLoss, Recipe(), 1) is None
    for recipe, workers in ((Recipe(), 2), (Recipe(accumulate=2), 1), (Recipe(grad_cache=4), 1)):
        assert "views() and compare()" in cannot_split(OwnLoss, recipe, workers)
    assert cannot_split(ByRow, Recipe(grad_cache=4), 2) is None


def test_batches_that_cannot_be_divided_are_told_before_anything_runs():
    assert indivisible(Recipe(batch_size=128), 10_000, 4) is None
    said = indivisible(Recipe(batch_size=128, accumulate=3), 10_000, 2)
    assert "128 pairs" in said and "2 workers x train.accumulate=3" in said and "such as 126" in said
    assert "an epoch has only 30" in indivisible(Recipe(batch_size=128), 30, 4)
    assert indivisible(Recipe(batch_size=128, grad_cache=50), 10_000, 2) is None


def test_rows_of_a_batch_take_their_candidates_along():
    @dataclasses.dataclass(frozen=True)
    class Wider(Batch):
        candidates: torch.Tensor | None = None
        states: dict | None = None

    ids = torch.arange(4)
    batch = Wider(None, None, ids, ids, candidates=torch.arange(12), states={"a": torch.arange(8)})
    part = rows_of(batch, 1, 3)
    assert part.image_ids.tolist() == [1, 2]
    assert part.candidates.tolist() == [3, 4, 5, 6, 7, 8]
    assert part.states["a"].tolist() == [2, 3, 4, 5]
    assert part.images is None


def test_specs_that_do_not_use_the_new_settings_keep_their_identity():
    assert {"accumulate", "grad_cache"}.isdisjoint(Recipe().model_dump(mode="json"))
    assert EngineConfig().model_dump(mode="json") == {"zero_stage": 0}
    assert Recipe(accumulate=2).model_dump(mode="json")["accumulate"] == 2
    assert Recipe(grad_cache=8).model_dump(mode="json")["grad_cache"] == 8
    for recipe in (Recipe(accumulate=2), Recipe(grad_cache=8), Recipe()):
        assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_the_two_ways_to_cut_exclude_each_other():
    with pytest.raises(ValueError, match="give one"):
        Recipe(accumulate=2, grad_cache=8)
    with pytest.raises(ValueError, match="offload: cpu needs zero_stage"):
        EngineConfig(offload="cpu")
