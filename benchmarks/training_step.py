"""What the harness costs on a training step: ours against a plain PyTorch loop, in one process, in alternation.

Both train the same method from the same weights with the same optimiser, schedule and clipping. Ours includes all that a
trial does per step: gathering pictures from the memory-mapped cache, normalising them, DeepSpeed's engine, the check that
the loss is finite, the learning-rate schedule. The plain loop gets ready float batches and does forward, backward,
clipping and step. Prints seconds per step and the ratio, pair by pair.

    python benchmarks/training_step.py [--backbone ViT-B-32] [--method lora] [--batch 8] [--rounds 10]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from itertools import islice

import torch
from start_weights import start_weights
from torch import nn

from petlbench.datasets.readers.scenes import read_scenes
from petlbench.harness import audit
from petlbench.harness.data import SplitData, training_batches
from petlbench.harness.device import choose_device, tune_process
from petlbench.harness.engine import Engine, learning_rate_factor, parameter_groups
from petlbench.harness.spec import EngineConfig
from petlbench.methods import registry
from petlbench.methods.backbones.registry import load_backbone
from petlbench.methods.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="ViT-B-32")
    parser.add_argument("--pretrained", default="random", help="tag of the weights; random needs no download")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10, help="pairs of (ours, plain) timings")
    parser.add_argument("--steps", type=int, default=3, help="steps per timing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = choose_device()
    tune_process(device)  # both sides run with the settings of a trial
    recipe = Recipe(batch_size=asked.batch, precision=asked.precision, lr=1e-5, warmup=0.0)
    total = (asked.rounds + 1) * asked.steps

    backbone = load_backbone(asked.backbone, **start_weights(asked.backbone, asked.pretrained)).to(device)
    pairs = asked.batch * total
    splits = read_scenes({"train": max(60, pairs // 5 + 1), "val": 30, "test": 30})
    data = SplitData.open(splits["train"], backbone)

    method = registry.load(registry.discover()[asked.method])()
    model = method.build(backbone)
    names = set(method.trainable(model)) | set(backbone.new_parameters())
    trainable = [n for n, _ in model.named_parameters() if n in names]
    audit.freeze_all_but(model, trainable, method.name)
    plain_model = copy.deepcopy(model)

    engine = Engine(model, method, trainable, set(), recipe, EngineConfig(), total, total, device)
    ours = training_batches(data, backbone, recipe, 0, 1, device)
    groups = parameter_groups(plain_model, trainable, set(), recipe)
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(recipe, total, total))
    ready = list(islice(training_batches(data, backbone, recipe, 0, 1, device), total))

    def step_ours(index: int) -> float:
        return engine.step(next(ours))["loss"]

    def step_plain(index: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = sum(method.loss(plain_model, ready[index]).values())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        schedule.step()
        return float(loss.detach())

    model.train()
    plain_model.train()
    ratios, times, losses = [], {"ours": [], "plain": []}, {"ours": [], "plain": []}
    for round_ in range(asked.rounds + 1):  # the first round warms up
        order = [("ours", step_ours), ("plain", step_plain)]
        spent = {}
        for name, step in order if round_ % 2 else reversed(order):  # neither side always goes first
            began = time.perf_counter()
            for index in range(asked.steps):
                losses[name].append(step(round_ * asked.steps + index))
            spent[name] = (time.perf_counter() - began) / asked.steps
        if round_:
            ratios.append(spent["ours"] / spent["plain"])
            for name, value in spent.items():
                times[name].append(value)
    apart = max(abs(a - b) for a, b in zip(losses["ours"], losses["plain"], strict=True))
    print(
        f"{asked.method} on {asked.backbone}, batch {asked.batch}, {asked.precision}, {asked.threads} threads, {device}"
    )
    print(f"plain PyTorch loop  {statistics.median(times['plain']) * 1e3:9.1f} ms per step (median of {asked.rounds})")
    print(f"petlbench           {statistics.median(times['ours']) * 1e3:9.1f} ms per step")
    print(f"ratio               {statistics.median(ratios):9.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})")
    print(f"largest difference of the losses over {total} steps: {apart:.2e}")
    engine.close()


if __name__ == "__main__":
    main()
