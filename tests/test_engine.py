"""The DeepSpeed engine against a plain PyTorch loop, its checkpoints, and its refusals."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from petlbench.harness import audit
from petlbench.harness.engine import Engine, TrainingError, learning_rate_factor, parameter_groups
from petlbench.harness.spec import EngineConfig
from petlbench.methods import registry
from petlbench.methods.backbones.base import Tokens
from petlbench.methods.backbones.random_models import random_clip
from petlbench.methods.base import Batch
from petlbench.methods.recipe import PE_RSITR_TRAIN, Recipe

CPU = torch.device("cpu")
STEPS = 4


def batches(backbone, count=STEPS, size=6):
    draw = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        words = [f"scene {index} number {row}" for row in range(size)]
        tokens: Tokens = backbone.tokenize(words)
        images = torch.randn(size, 3, backbone.resolution, backbone.resolution, generator=draw)
        made.append(Batch(images, tokens, torch.arange(size), torch.arange(size)))
    return made


def built(name="full_finetune"):
    method = registry.load(registry.discover()[name])()
    backbone = random_clip(seed=3)
    model = method.build(backbone)
    trainable = [n for n, _ in model.named_parameters() if n in set(method.trainable(model))]
    audit.freeze_all_but(model, trainable, name)
    return method, backbone, model, trainable


def engine_for(method, model, trainable, recipe, zero=0, total=STEPS):
    return Engine(model, method, trainable, set(), recipe, EngineConfig(zero_stage=zero), total, total, CPU)


def plain_steps(method, model, trainable, recipe, data):
    groups = parameter_groups(model, trainable, set(), recipe)
    parameters = [p for g in groups for p in g["params"]]
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.betas[0])
    else:
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(recipe, STEPS, STEPS))
    for batch in data:
        optimizer.zero_grad()
        sum(method.loss(model, batch).values()).backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        schedule.step()


# Adam divides rounding noise by itself where a gradient is zero in exact arithmetic (the key bias of attention), so the
# partitioned stages, which sum in another order, are compared under SGD.
@pytest.mark.parametrize(("zero", "optimizer"), [(0, "adamw"), (0, "sgd"), (1, "sgd"), (2, "sgd")])
@pytest.mark.parametrize("name", ["full_finetune", "lora"])
def test_steps_equal_a_plain_loop(zero, optimizer, name):
    method, backbone, model, trainable = built(name)
    reference = copy.deepcopy(model)
    recipe = Recipe(
        optimizer=optimizer,
        lr=3e-3 if optimizer == "adamw" else 0.3,
        weight_decay=0.1,
        clip_norm=0.05,
        warmup=0.5,
        batch_size=6,
    )
    data = batches(backbone)
    plain_steps(method, reference, trainable, recipe, data)
    engine = engine_for(method, model, trainable, recipe, zero)
    for batch in data:
        engine.step(batch)
    found, expected = dict(model.named_parameters()), dict(reference.named_parameters())
    moved = 0.0
    start = dict(built(name)[2].named_parameters())
    for key in trainable:
        torch.testing.assert_close(found[key], expected[key], atol=2e-6, rtol=1e-4)
        moved = max(moved, float((found[key] - start[key]).abs().max().detach()))
    assert moved > 1e-3, "the comparison means nothing where nothing moves"
    engine.close()


def test_bf16_keeps_fp32_weights_frozen_and_trained():
    method, backbone, model, trainable = built("lora")
    engine = engine_for(method, model, trainable, Recipe(precision="bf16", batch_size=6, warmup=0))
    losses = [engine.step(batch)["loss"] for batch in batches(backbone)]
    assert all(math.isfinite(v) for v in losses)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    engine.close()


def test_loss_that_is_not_finite_stops_before_the_update():
    method, backbone, model, trainable = built()
    engine = engine_for(method, model, trainable, Recipe(batch_size=6))
    before = engine.trained_tensors()
    (batch,) = batches(backbone, count=1)
    batch.images[0, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"step 1 .*train\.lr"):
        engine.step(batch)
    after = engine.trained_tensors()
    assert all(torch.equal(before[k], after[k]) for k in before)
    engine.close()


def test_checkpoint_holds_trained_tensors_only(tmp_path: Path):
    method, backbone, model, trainable = built("lora")
    engine = engine_for(method, model, trainable, Recipe(batch_size=6))
    engine.step(batches(backbone, 1)[0])
    engine.save(tmp_path)
    (file,) = (tmp_path / "engine").glob("*model_states.pt")
    saved = torch.load(file, weights_only=True)["module"]
    assert {key.removeprefix("model.") for key in saved} == set(trainable)
    engine.close()


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_restored_engine_goes_on_exactly(tmp_path: Path, zero):
    recipe = Recipe(lr=3e-3, batch_size=6, warmup=0.5)
    method, backbone, model, trainable = built()
    data = batches(backbone)
    engine = engine_for(method, model, trainable, recipe, zero)
    for batch in data[:2]:
        engine.step(batch)
    engine.save(tmp_path)
    for batch in data[2:]:
        engine.step(batch)
    expected = engine.trained_tensors()
    engine.close()

    method, _, model, trainable = built()
    again = engine_for(method, model, trainable, recipe, zero)
    again.restore(tmp_path)
    for batch in data[2:]:
        again.step(batch)
    found = again.trained_tensors()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=0, rtol=0)
    again.close()


def test_a_restored_engine_keeps_its_own_buffers(tmp_path: Path):
    def with_statistics(value):
        method, backbone, model, trainable = built("lora")
        model.register_buffer("statistics", torch.full((3,), value))
        return batches(backbone, 1)[0], model, trainable, engine_for(method, model, trainable, Recipe(batch_size=6))

    batch, _, _, engine = with_statistics(1.0)
    engine.step(batch)
    engine.save(tmp_path)
    engine.close()

    # Another machine computes the same statistics to other last digits.
    _, model, trainable, again = with_statistics(1.0 + 1e-6)
    before = audit.frozen_hash(model, set(trainable))
    again.restore(tmp_path)
    assert audit.frozen_hash(model, set(trainable)) == before
    again.close()


class _Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_malicious_checkpoint_is_not_executed(tmp_path: Path):
    method, _, model, trainable = built()
    engine = engine_for(method, model, trainable, Recipe(batch_size=6))
    engine.save(tmp_path / "ok")
    (file,) = (tmp_path / "ok" / "engine").glob("*model_states.pt")
    marker = tmp_path / "executed"
    torch.save({"module": _Evil(marker)}, file)
    with pytest.raises(TrainingError, match="cannot be restored"):
        engine.restore(tmp_path / "ok")
    assert not marker.exists()
    engine.close()


def test_truncated_checkpoint_is_refused(tmp_path: Path):
    method, _, model, trainable = built()
    engine = engine_for(method, model, trainable, Recipe(batch_size=6))
    engine.save(tmp_path)
    (file,) = (tmp_path / "engine").glob("*model_states.pt")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(TrainingError, match="cannot be restored"):
        engine.restore(tmp_path)
    engine.close()


def test_parameter_groups_split_new_heads_and_decay():
    _, _, model, trainable = built()
    heads = {"clip.text_projection", "clip.visual.proj"}
    recipe = Recipe(lr=1e-4, new_lr=1e-2, weight_decay=0.3)
    groups = parameter_groups(model, trainable, heads, recipe)
    names = {id(p): n for n, p in model.named_parameters()}
    seen = set()
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            assert group["lr"] == (1e-2 if name in heads else 1e-4)
            assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0.0), name
    assert seen == set(trainable)


def test_learning_rate_factor():
    cosine = learning_rate_factor(Recipe(warmup=0.2, schedule="cosine"), 10, 5)
    assert [round(cosine(s), 4) for s in (0, 1, 2, 6, 10)] == [0.5, 1.0, 1.0, 0.5, 0.0]
    constant = learning_rate_factor(Recipe(warmup=0, schedule="constant"), 10, 5)
    assert {constant(s) for s in range(10)} == {1.0}
    step = learning_rate_factor(Recipe(warmup=0, schedule="step", step_factor=0.7, milestones=(3, 5)), 30, 5)
    assert [round(step(s), 4) for s in (0, 9, 10, 19, 20)] == [1.0, 1.0, 0.7, 0.7, 0.49]
    linear = learning_rate_factor(Recipe(warmup=0.2, schedule="linear", lr=1.0, final_lr=0.1), 10, 5)
    assert [round(linear(s), 4) for s in (0, 2, 6, 10, 12)] == [0.5, 1.0, 0.55, 0.1, 0.1]
    assert learning_rate_factor(Recipe(warmup=0, lr=1.0, final_lr=0.2), 10, 5)(10) == pytest.approx(0.2)


def test_the_pe_rsitr_recipe_lowers_its_rate_once_from_the_start_of_epoch_20():
    factor = learning_rate_factor(Recipe.model_validate(PE_RSITR_TRAIN), 30 * 7, 7)
    assert {factor(s) for s in range(19 * 7)} == {1.0}
    assert {factor(s) for s in range(19 * 7, 30 * 7)} == {0.7}


def test_a_step_schedule_without_milestones_is_refused():
    with pytest.raises(ValueError, match="needs milestones"):
        Recipe(schedule="step")


@pytest.mark.parametrize(
    ("decay", "decayed"),
    [("matrices", {"weight"}), ("not_bias", {"weight", "scale"}), ("all", {"weight", "bias", "scale"})],
)
def test_weight_decay_acts_on_what_was_asked(decay, decayed):
    model = torch.nn.Linear(2, 2)
    model.scale = torch.nn.Parameter(torch.ones(()))
    groups = parameter_groups(model, ["weight", "bias", "scale"], set(), Recipe(weight_decay=0.3, decay=decay))
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert found == decayed
