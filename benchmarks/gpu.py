"""What a GPU makes of the methods: speed, memory, utilisation, and what packing several trials on it brings; one command.

    python benchmarks/gpu.py [METHOD ...] [--backbone ViT-B-32] [--batch 256] [--steps 20] [--peak-tflops 989]

Every method trains a few steps in a process of its own, through the harness's engine (DeepSpeed, bf16 autocast), on ready
batches: random weights of true shape, random pictures, one caption of usual length, InfoNCE. So this is the model's share of
a step; ``benchmarks/training_step.py`` says what the harness adds. Then 2, 4, ... processes train one method on the same GPU
at once, each held to its part of the memory, which is what ``--gpus-per-trial 0.5`` does. At last ``benchmark run`` trains all
the methods for an epoch on rendered scenes, one on the GPU at a time and then packed by ``--gpus-per-trial auto``.

Model FLOP utilisation is that of full fine-tuning: the operations of a forward and a backward pass as PyTorch counts them
(two per multiply-add; matrix products, convolutions and attention only) by the median time of a step, over the card's peak
for dense bf16 products. The peak is the vendor's figure for known cards, else give ``--peak-tflops``.

Writes ``results/hardware/CARD.json`` and ``CARD.md``. Without a GPU it works too, to be tested; its figures then mean little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_report import GIB, REFERENCE, Cost, peak_tflops, report, write
from start_weights import start_weights


def measure(name: str, asked: argparse.Namespace, part: float = 1.0, ready: Any = None) -> Cost:
    """Train one method in this process.

    Args:
        name: Of the method.
        asked: Backbone, batch, steps.
        part: Part of the GPU's memory that this process may use.
        ready: Called after the first steps and before those that are timed.
    """
    import torch

    from petlbench.harness.device import choose_device, limit_memory, peak_memory, reset_peak_memory, tune_process

    device = choose_device()
    limit_memory(device, part, GIB)
    tune_process(device)
    engine, batch = _engine(name, asked, device)
    reset_peak_memory(device)
    for _ in range(3):  # the optimiser's state and the fastest kernels are found
        engine.step(batch)
    _wait(device)
    if ready is not None:
        ready()
    times = []
    for _ in range(asked.steps):
        began = time.perf_counter()
        engine.step(batch)
        _wait(device)
        times.append(time.perf_counter() - began)
    allocated, reserved = peak_memory(device)
    overhead = 0
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        overhead = max(0, total - free - torch.cuda.memory_reserved(device))
    flops = _flops(name, asked, device) if name == REFERENCE and part == 1 else None
    return Cost(statistics.median(times), asked.batch * len(times) / sum(times), allocated, reserved, overhead, flops)


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _built(name: str, asked: argparse.Namespace, device: Any) -> tuple[Any, Any, list[str], Any]:
    """Method, model, names of what is trained, batch."""
    import torch
    from step_cost import backbone_of, batch_of

    from petlbench.harness.audit import freeze_all_but
    from petlbench.methods import registry

    torch.manual_seed(0)
    backbone = backbone_of(asked).to(device)
    method = registry.load(registry.discover()[name])()
    if reason := method.refuse(backbone):
        raise SystemExit(f"{name} on {asked.backbone}: {reason}")
    model = method.build(backbone).to(device).train()
    names = set(method.trainable(model)) | set(backbone.new_parameters())
    trainable = [n for n, _ in model.named_parameters() if n in names]
    freeze_all_but(model, trainable, name)
    return method, model, trainable, batch_of(backbone, method, model, asked.batch, device)


def _engine(name: str, asked: argparse.Namespace, device: Any) -> tuple[Any, Any]:
    from petlbench.harness.engine import Engine
    from petlbench.harness.spec import EngineConfig
    from petlbench.methods.recipe import Recipe

    method, model, trainable, batch = _built(name, asked, device)
    recipe = Recipe(batch_size=asked.batch, precision="bf16", lr=1e-6, warmup=0.0)
    steps = asked.steps + 3
    return Engine(model, method, trainable, set(), recipe, EngineConfig(), steps, steps, device), batch


def _flops(name: str, asked: argparse.Namespace, device: Any) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    method, model, _, batch = _built(name, asked, device)
    with FlopCounterMode(display=False) as counter, torch.autocast(device.type, torch.bfloat16):
        loss = torch.stack(list(method.loss(model, batch).values())).sum()
        loss.backward()
    return int(counter.get_total_flops())


def alone(name: str, asked: argparse.Namespace) -> Cost:
    """:func:`measure` in a process of its own."""
    return packed(name, 1, asked)[0]


def packed(name: str, processes: int, asked: argparse.Namespace) -> list[Cost]:
    """The same in several processes that share the GPU and start their timed steps together.

    Raises:
        RuntimeError: A process failed; with its last words.
    """
    command = [sys.executable, str(Path(__file__).resolve()), name, "--child", str(1 / processes)]
    command += ["--backbone", asked.backbone, "--batch", str(asked.batch), "--steps", str(asked.steps)]
    running = []
    try:
        for _ in range(processes):
            errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed below, with its process)
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
            )
            running.append((child, errors))
        for child, errors in running:
            _line(child, errors, name, processes)  # READY
        for child, _ in running:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        return [Cost(**json.loads(_line(child, errors, name, processes))) for child, errors in running]
    finally:
        for child, errors in running:
            child.kill()
            child.wait()
            errors.close()


def _line(child: Any, errors: Any, name: str, processes: int) -> str:
    """The next line of a child that begins with our mark; libraries may print others."""
    for line in child.stdout:
        if line.startswith("gpu.py:"):
            return str(line.removeprefix("gpu.py:").strip())
    errors.seek(0)
    last = (errors.read().strip().splitlines() or ["no message"])[-1]
    raise RuntimeError(f"{name}, {processes} at once: {last}")


def _child(asked: argparse.Namespace) -> None:
    def ready() -> None:
        print("gpu.py:READY", flush=True)
        sys.stdin.readline()

    cost = measure(asked.methods[0], asked, asked.child, ready)
    print("gpu.py:" + json.dumps(asdict(cost)), flush=True)


def runs(names: list[str], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """``benchmark run`` over the methods, one on the GPU at a time and packed: seconds and what became of the trials."""
    from petlbench.harness.record_files import find_records, read_record

    found = []
    sets = [f"backbone.{asked.backbone}.{key}={value}" for key, value in start_weights(asked.backbone).items()]
    sets += [f"dataset.scenes.{split}={n}" for split, n in (("train", asked.scenes), ("val", 30), ("test", 30))]
    sets += ["train.epochs=1", f"train.batch_size={min(asked.batch, asked.scenes)}", "train.precision=bf16"]
    for share in asked.shares:
        with tempfile.TemporaryDirectory(prefix="petlbench-gpu-") as results:
            command = [sys.executable, "-m", "petlbench", "run", *names, "-b", asked.backbone, "-d", "scenes"]
            command += ["--seed", "0", "--results", results, *(word for s in sets for word in ("--set", s))]
            command += ["--gpus-per-trial", share] if share else []
            began = time.perf_counter()
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            seconds = time.perf_counter() - began
            records = [read_record(path) for path in find_records(Path(results))]
        shares = {r.method.name: r.cost.gpu_share for r in records if r.cost is not None}
        failed = {r.method.name: r.error.type for r in records if r.error is not None}
        if done.returncode and not failed:
            failed["the command"] = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        found.append(
            {
                "gpus_per_trial": share or "default",
                "seconds": seconds,
                "parts": shares,
                "failed": failed,
                "asked": names,
            }
        )
        print(
            f"benchmark run, --gpus-per-trial {share or '(default)'}: {seconds:.0f} s, {len(failed)} failed", flush=True
        )
    return found


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="default: all that train on the backbone")
    parser.add_argument("--backbone", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="timed steps per method")
    parser.add_argument("--pack", default="lora", metavar="METHOD", help="the method that is packed")
    parser.add_argument("--together", type=int, nargs="*", default=[2, 4, 8], help="processes on the GPU at once")
    parser.add_argument("--shares", nargs="*", default=["1", "auto"], help="--gpus-per-trial of each benchmark run")
    parser.add_argument("--scenes", type=int, default=1024, help="training pictures of these runs")
    parser.add_argument("--no-run", action="store_true", help="leave `benchmark run` out")
    parser.add_argument("--peak-tflops", type=float, help="dense bf16 peak of the card")
    parser.add_argument("--out", type=Path, default=Path("results/hardware"))
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that everything works")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.tiny:
        asked.backbone, asked.batch, asked.steps, asked.together, asked.scenes = "tiny-clip", 8, 2, [2], 48
        asked.methods = asked.methods or [REFERENCE, "lora"]
    return asked


def main() -> None:
    asked = parse()
    if asked.child is not None:
        _child(asked)
        return

    import torch

    from petlbench.harness.probe import card_here
    from petlbench.methods import registry

    card = card_here()
    known = registry.discover()
    names = [n for n in registry.resolve(asked.methods or ["all-methods"], known) if registry.load(known[n]).trains]
    names.sort(key=lambda name: name != REFERENCE)
    costs: dict[str, Cost] = {}
    refused = {}
    for name in names:
        try:
            costs[name] = alone(name, asked)
        except RuntimeError as error:  # refused, or out of memory: said in the report, and the others go on
            refused[name] = str(error)
            print(f"{name}: left out: {error}", flush=True)
            continue
        print(
            f"{name}: {costs[name].samples_per_s:.1f} samples/s, {costs[name].peak_allocated / GIB:.2f} GiB", flush=True
        )
    packs: list[dict[str, Any]] = []
    single = costs.get(asked.pack)
    for count in asked.together if single else []:
        row: dict[str, Any] = {"trials": count, "method": asked.pack}
        try:
            rate = sum(cost.samples_per_s for cost in packed(asked.pack, count, asked))
            row |= {"samples_per_s": rate, "vs_alone": rate / single.samples_per_s}
        except RuntimeError as error:
            row["error"] = str(error)
        packs.append(row)
        print(f"packed: {row}", flush=True)
    if card.kind != "cuda_reserved":
        asked.shares = [share for share in asked.shares if share == "auto"] or [""]  # there is no GPU to ask for
    made = [] if asked.no_run else runs(list(costs), asked)
    peak = asked.peak_tflops or peak_tflops(card.device)
    peak_from = "given" if asked.peak_tflops else "data sheet"
    setting = {k: getattr(asked, k) for k in ("backbone", "batch", "steps")}
    setting |= {"precision": "bf16", "torch": torch.__version__, "cuda": torch.version.cuda}
    path = write(report(asdict(card), setting, costs, refused, packs, made, peak, peak_from), asked.out)
    print(f"written: {path} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
