"""What it costs a trial of several threads when something else runs on its cores, by how its threads wait for each other.

OpenMP's threads wait for each other by spinning before they sleep. Alone that saves the time of waking them; beside other
work they spin away the time in which the thread they wait for could run. The environment variable ``OMP_WAIT_POLICY=passive``
makes them sleep at once. This trains in processes of N threads each, one alone and two at the same time on the same N cores,
with and without it, in alternation, and prints steps per second of all processes together.

    python benchmarks/waiting_threads.py [--backbone ViT-B-32] [--batch 8] [--rounds 3] [--seconds 8]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from start_weights import start_weights

POLICIES = ("default", "passive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="per timing")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each process")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        train(asked)
        return
    rates: dict[tuple[str, int], list[float]] = {}
    for round_ in range(asked.rounds):
        for policy in POLICIES if round_ % 2 else reversed(POLICIES):  # neither always goes first
            for processes in (1, 2):
                rates.setdefault((policy, processes), []).append(together(policy, processes))
    print(
        f"{asked.backbone}, batch {asked.batch}, {asked.precision}, {asked.threads} threads a process; median steps/s of all"
    )
    for processes, words in ((1, "alone"), (2, "two at once")):
        default, passive = (rates[policy, processes] for policy in POLICIES)
        ratios = [new / old for new, old in zip(passive, default, strict=True)]
        print(
            f"{words:12} spinning {statistics.median(default):7.3f}   passive {statistics.median(passive):7.3f}   "
            f"ratio {statistics.median(ratios):5.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})"
        )


def together(policy: str, processes: int) -> float:
    """Steps per second of that many processes that train at the same time."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    if policy != "default":
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, env=environment, **pipes) for _ in range(processes)]
    for process in running:
        if process.stdout.readline().strip() != "ready":
            raise SystemExit("a process ended before it was ready; its message stands above")
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in running)


def train(asked: argparse.Namespace) -> None:
    """Say ``ready``, wait for a line, train for the asked seconds, print steps per second."""
    import torch

    from petlbench.harness.device import choose_device, tune_process
    from petlbench.methods.backbones.registry import load_backbone
    from petlbench.methods.base import Batch
    from petlbench.methods.full_finetune import FullFinetune

    torch.set_num_threads(asked.threads)
    tune_process(choose_device())
    backbone = load_backbone(asked.backbone, **start_weights(asked.backbone)).train()
    method = FullFinetune()
    words = ["many green trees stand around a grey square"] * asked.batch
    side = backbone.resolution
    each = torch.arange(asked.batch)
    batch = Batch(torch.randn(asked.batch, 3, side, side), backbone.tokenize(words), each, each)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=asked.precision == "bf16"):
            loss = sum(method.loss(backbone, batch).values())
        loss.backward()
        optimizer.step()

    step()
    print("ready", flush=True)
    sys.stdin.readline()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < asked.seconds:
        step()
        steps += 1
    print(steps / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
