"""Several processes against one: the same weights after the same steps, whatever the loss and the ZeRO stage."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_trials import small_plan, small_trial, tiny_backbone  # noqa: F401 (a fixture)
from test_grad_cache import close
from worker_cases import CASES, PAIRS, RESUMED, WORKERS, Case, batches, built, engine_of, trained

from petlbench.harness import engine as engine_module
from petlbench.harness.checkpoint import Checkpoints
from petlbench.harness.distributed import shard
from petlbench.harness.distributed.deepspeed_setup import free_port
from petlbench.harness.distributed.world import ALONE, World
from petlbench.harness.engine import TrainingError
from petlbench.harness.experiment import ExperimentError
from petlbench.harness.grad_cache import judge, same_chance

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """A folder with what two gloo workers made of all cases."""
    out = tmp_path_factory.mktemp("workers")
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = []
    for rank in range(WORKERS):
        log = (out / f"{rank}.log").open("w")
        command = [sys.executable, str(HERE / "worker_cases.py"), str(rank), str(port), str(out), ",".join(CASES)]
        running.append((subprocess.Popen(command, stdout=log, stderr=log, env=environment), log))
    codes = []
    for process, log in running:
        codes.append(process.wait(timeout=1800))
        log.close()
    for rank, code in enumerate(codes):
        assert code == 0, f"worker {rank}:\n{(out / f'{rank}.log').read_text()[-3000:]}"
    return out


@pytest.fixture(scope="module")
def alone():
    """What one process makes of a case, in one piece and without ZeRO."""
    found = {}

    def of(case):
        train = {key: value for key, value in case.train.items() if key not in ("accumulate", "grad_cache")}
        case = replace(case, engine={}, train=train)
        if (key := repr(case)) not in found:
            found[key] = trained(case)
        return found[key]

    return of


@pytest.fixture
def drawn_alike(monkeypatch):
    """One process draws in the loss what workers would draw there."""
    plain = engine_module.DividedStep._judged

    def judged(self, model, batch, views, step):
        with same_chance(self.seed * 1_000_003 + step, self.device):
            return plain(self, model, batch, views, step)

    monkeypatch.setattr(engine_module.DividedStep, "_judged", judged)
    monkeypatch.setattr(engine_module.DividedStep, "divided", True)


@pytest.mark.parametrize("name", [name for name in CASES if name != "cup"])
def test_two_workers_step_as_one(workers, alone, name):
    compare(workers, name, alone(CASES[name]))


def test_two_workers_step_as_one_where_the_loss_draws(workers, drawn_alike):
    compare(workers, "cup", trained(CASES["cup"]))


def compare(folder, name, expected):
    weights, losses, _ = expected
    start = {n: p.detach() for n, p in built(CASES[name])[2].named_parameters()}
    moved = max(float((start[n] - value).abs().max()) for n, value in weights.items())
    assert moved > 1e-3, "the comparison means nothing where nothing moves"
    for rank in range(WORKERS):
        found = load_file(folder / f"{name}.{rank}.safetensors")
        assert found["whole"], "the model is not what it was before DeepSpeed had it"
        for key, value in weights.items():
            torch.testing.assert_close(found[key], value, atol=1e-6 * max(1.0, moved), rtol=1e-5)
        for index, line in enumerate(losses):
            for key, value in line.items():
                assert float(found[f"loss.{index}.{key}"]) == pytest.approx(value, rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("name", RESUMED)
def test_workers_that_resume_end_as_if_they_had_not_stopped(workers, name):
    for rank in range(WORKERS):
        assert load_file(workers / f"resumed-{name}.{rank}.safetensors")["same"]


def test_without_zero_the_number_of_workers_may_change_between_runs(workers, alone):
    engine, data = engine_of(CASES["zero0"])
    progress, _ = Checkpoints(workers / "checkpoint-zero0").restore(engine)
    assert (progress.epoch, progress.workers) == (1, 2)
    for batch in data[1:]:
        engine.step(batch)
    for name, value in alone(CASES["zero0"])[0].items():
        torch.testing.assert_close(engine.trained_tensors()[name], value, atol=1e-6, rtol=1e-5)
    engine.close()


def test_with_zero_another_number_of_workers_is_refused(workers):
    engine, _ = engine_of(CASES["zero1"])
    with pytest.raises(TrainingError, match=r"written by 2 workers.*this run has 1.*workers_per_trial=2"):
        Checkpoints(workers / "checkpoint-zero1").restore(engine)
    engine.close()


def averaged(way):
    """Gradients that two workers would have after averaging, where each takes its own by ``way``; and the true ones."""
    method, backbone, model, trainable = built(Case())
    (batch,) = batches(backbone, 1)
    named = {n: p for n, p in model.named_parameters() if n in set(trainable)}
    views = method.views(model, batch)
    total = torch.stack(list(method.compare(model, batch, *views).values())).sum()
    values = list(named.values())
    true = dict(zip(named, torch.autograd.grad(total, values, allow_unused=True), strict=True))
    each = []
    for rank in range(WORKERS):
        cut = (rank * PAIRS // WORKERS, (rank + 1) * PAIRS // WORKERS)
        total = way(method, model, batch, method.views(model, batch), cut)
        each.append(torch.autograd.grad(total, values, allow_unused=True))
    mean = {n: sum(g[i] for g in each) / WORKERS for i, n in enumerate(named) if each[0][i] is not None}
    return mean, {n: true[n] for n in mean}


def own_rows_with_graph(view, cut):
    return torch.cat([view[: cut[0]].detach(), view[cut[0] : cut[1]], view[cut[1] :].detach()])


def naive_gather(method, model, batch, views, cut):
    """The loss of all rows; the gradient of the own ones only, as in HarMA's code."""
    mine = [own_rows_with_graph(view, cut) for view in views]
    return torch.stack(list(method.compare(model, batch, *mine).values())).sum()


def no_gather(method, model, batch, views, cut):
    """The loss of the own rows."""
    own = shard.rows_of(batch, *cut)
    return torch.stack(list(method.compare(model, own, *(v[slice(*cut)] for v in views)).values())).sum()


def counted_again(method, model, batch, views, cut):
    """Gradients summed over processes where they are averaged afterwards: W times too much."""
    return WORKERS * torch.stack(list(method.compare(model, batch, *views).values())).sum()


def ours(method, model, batch, views, cut):
    """What :class:`DividedStep` does."""
    named = dict(model.named_parameters())
    said = judge(method, model, batch, views, named)
    through = sum(WORKERS * (v[slice(*cut)] * g[slice(*cut)]).sum() for v, g in zip(views, said.of_views, strict=True))
    return through + sum((named[n] * g).sum() for n, g in said.of_parameters.items())


@pytest.mark.parametrize("way", [naive_gather, no_gather, counted_again])
def test_what_is_often_done_would_fail_the_comparison(way):
    with pytest.raises(AssertionError, match="not close"):
        close(*averaged(way))


def test_what_is_done_here_passes_it():
    close(*averaged(ours))


def test_own_rows_only_loses_the_towers_share_but_not_the_temperatures():
    mean, true = averaged(naive_gather)
    for name, value in true.items():
        factor = 1 if name == "clip.logit_scale" else 1 / WORKERS
        torch.testing.assert_close(mean[name], factor * value, atol=1e-6, rtol=1e-4)


def test_rows_are_dealt_in_blocks_and_drawn_for_the_whole_batch():
    rows = np.arange(8)
    asked = []

    def make(some):
        asked.append(some.tolist())
        return shard_batch(some)

    second = World(rank=1, size=2)
    assert shard.own_rows(make, rows, drawn=False, world=second).image_ids.tolist() == [4, 5, 6, 7]
    assert shard.own_rows(make, rows, drawn=True, world=second).image_ids.tolist() == [4, 5, 6, 7]
    assert shard.own_rows(make, rows, drawn=True, world=ALONE).image_ids.tolist() == list(range(8))
    assert asked == [[4, 5, 6, 7], list(range(8)), list(range(8))]
    with pytest.raises(ValueError, match="7 pairs cannot be divided among 2"):
        shard.share(7, second)


def shard_batch(rows):
    from petlbench.methods.base import Batch

    ids = torch.from_numpy(rows)
    return Batch(None, None, ids, ids)


def test_the_plan_refuses_a_batch_that_workers_cannot_share(tmp_path):
    with pytest.raises(
        ExperimentError, match=r"full_finetune/scenes.*16 pairs cannot be divided by 3 workers.*such as 15"
    ):
        small_plan(tmp_path, "resources.workers_per_trial=3")


def test_the_plan_leaves_out_what_cannot_be_divided_and_says_why(tmp_path):
    plugin = tmp_path / "own_loss.py"
    plugin.write_text(OWN_LOSS)
    sets = ("resources.workers_per_trial=2",)
    plan = small_plan(tmp_path, *sets, methods=["own_loss", "lora"], plugins=[str(plugin)])
    assert [p.trial.spec.method.name for p in plan.planned] == ["lora"]
    ((label, reason),) = plan.refused
    assert label.startswith("own_loss/") and "views() and compare()" in reason


OWN_LOSS = '''
"""A loss of its own."""
from petlbench.methods.base import Method


class OwnLoss(Method):
    title = "Own loss"

    def build(self, backbone):
        return backbone

    def trainable(self, model):
        return [n for n, _ in model.named_parameters()]

    def loss(self, model, batch):
        image, text = self.embed(model, batch)
        return {"gap": (image.mean(0) - text.mean(0)).square().sum()}
'''


def test_the_number_of_workers_is_no_part_of_the_identity(tmp_path):
    one = small_trial(tmp_path)
    two = small_trial(tmp_path, "resources.workers_per_trial=2")
    assert one.spec.spec_id == two.spec.spec_id
