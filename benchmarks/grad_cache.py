"""What GradCache saves and costs: peak memory and time of a step in pieces against the step in one.

Each way runs in a process of its own, with the same weights and the same batch; the peak of resident memory (of allocated
memory on a GPU) is read after the steps, less what the process held before the first. Prints both, and the ratios.

    python benchmarks/grad_cache.py [--backbone ViT-B-32] [--method lora] [--batch 32] [--grad-cache 8]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from typing import Any

from start_weights import start_weights

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="ViT-B-32")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--grad-cache", type=int, default=8, help="pairs that go through the model at once")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = {}
    for name, size in (("in one", None), ("in pieces", asked.grad_cache)):
        with context.Pool(1) as pool:
            found[name] = pool.apply(measure, (vars(asked), size))
    one, cut = found["in one"], found["in pieces"]
    ratios = {key: cut[key] / one[key] for key in ("bytes", "seconds")}
    apart = max(abs(a - b) for a, b in zip(one["losses"], cut["losses"], strict=True))
    if asked.json:
        print(json.dumps({**vars(asked), **found, "ratios": ratios, "losses_apart": apart}))
        return
    print(
        f"{asked.method} on {asked.backbone}, batch {asked.batch}, pieces of {asked.grad_cache}, {asked.precision}, "
        f"{one['device']}, {asked.threads} threads"
    )
    for name, value in found.items():
        print(f"{name:10} {value['bytes'] / GIB:8.3f} GiB for the steps, {value['seconds']:8.3f} s per step")
    print(f"ratio      {ratios['bytes']:8.3f}     of the memory,    {ratios['seconds']:8.3f} of the time")
    print(f"largest difference of the losses over {asked.steps + 1} steps: {apart:.1e}")


def measure(asked: dict[str, Any], size: int | None) -> dict[str, Any]:
    """Memory, seconds per step and losses of one way."""
    import torch

    from petlbench.harness import audit
    from petlbench.harness.device import choose_device, device_name, peak_memory, reset_peak_memory
    from petlbench.harness.engine import Engine
    from petlbench.harness.spec import EngineConfig
    from petlbench.methods import registry
    from petlbench.methods.backbones.registry import load_backbone
    from petlbench.methods.base import Batch
    from petlbench.methods.recipe import Recipe

    torch.set_num_threads(asked["threads"])
    device = choose_device()
    backbone = load_backbone(asked["backbone"], **start_weights(asked["backbone"])).to(device)
    method = registry.load(registry.discover()[asked["method"]])()
    torch.manual_seed(0)
    model = method.build(backbone).to(device).train()
    names = set(method.trainable(model)) | set(backbone.new_parameters())
    trainable = [n for n, _ in model.named_parameters() if n in names]
    audit.freeze_all_but(model, trainable, method.name)
    total = asked["steps"] + 1
    recipe = Recipe(batch_size=asked["batch"], precision=asked["precision"], lr=1e-5, warmup=0.0, grad_cache=size)
    engine = Engine(model, method, trainable, set(), recipe, EngineConfig(), total, total, device)
    rows = torch.arange(asked["batch"])
    draw = torch.Generator().manual_seed(1)
    side = backbone.resolution
    images = torch.randn(asked["batch"], 3, side, side, generator=draw).to(device)
    tokens = backbone.tokenize([f"scene number {row} seen from above" for row in rows.tolist()]).to(device)
    batch = Batch(images, tokens, rows.to(device), rows.to(device))
    reset_peak_memory(device)
    before = peak_memory(device)[0]
    losses, times = [], []
    for _ in range(total):
        began = time.perf_counter()
        losses.append(engine.step(batch)["loss"])
        times.append(time.perf_counter() - began)
    used = peak_memory(device)[0] - before
    engine.close()
    return {"bytes": used, "seconds": statistics.median(times[1:]), "losses": losses, "device": device_name(device)}


if __name__ == "__main__":
    main()
