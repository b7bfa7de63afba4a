"""What a training step of every method costs, as a ratio to full fine-tuning of the same backbone in the same run.

Methods that score pairs are measured with their own number of false captions; on ``--backbone vilt-b32`` the ratio is to
full fine-tuning of ViLT, with the same batch and false captions. What a trial keeps of frozen towers and side networks,
where no augmentation changes the pictures, counts as computed.

Each timing alternates with one of full fine-tuning, so that a slow minute of the machine hits both. Forward (with the
loss), backward and optimiser step are timed apart; on a CPU in processor time of one thread, which neighbours disturb
little. Memory is the peak during three steps in a process of its own, less what that process held before the backbone
was loaded. The loss is InfoNCE everywhere: HMMC would run the towers twice under any method.

    python benchmarks/step_cost.py [METHOD ...] [--backbone ViT-B-32] [--batch 8] [--rounds 3] [--out FILE.json]

``--out`` writes the figures that the tables of methods show (results/step_cost.json in the repository); methods that
are not measured in a run keep their figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from start_weights import start_weights
from torch import nn

from petlbench.harness.audit import freeze_all_but
from petlbench.harness.device import choose_device, device_name, peak_memory, reset_peak_memory, tune_process
from petlbench.methods import registry
from petlbench.methods.backbones.base import Backbone, DualEncoder
from petlbench.methods.backbones.registry import load_backbone
from petlbench.methods.base import Batch, Method
from petlbench.methods.pair import PairMethod

REFERENCES = {"vilt": "vilt_full"}
"""What full fine-tuning is called on a kind of backbone, where it is not ``full_finetune``."""
PARTS = ("forward", "backward", "update")
CAPTION = "many planes are parked next to a long building in an airport"


@dataclass
class Cost:
    """One method's ratios to full fine-tuning; seconds and bytes of both sides beside them."""

    step: float
    forward: float
    backward: float
    memory: float | None
    step_s: float
    reference_step_s: float
    memory_bytes: int | None = None


class Loop:
    """A plain training loop of one method, timed part by part."""

    def __init__(self, name: str, asked: argparse.Namespace):
        self.device = choose_device()
        torch.manual_seed(0)
        cls = registry.load(registry.discover()[name])
        backbone = backbone_of(asked).to(self.device)
        self.method = cls()
        if reason := self.method.refuse(backbone):
            raise SystemExit(f"{name} on {asked.backbone}: {reason}")
        self.model = self.method.build(backbone).to(self.device).train()
        names = set(self.method.trainable(self.model)) | set(backbone.new_parameters())
        freeze_all_but(self.model, names, name)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        self.batch = batch_of(backbone, self.method, self.model, asked.batch, self.device)

    def step(self) -> dict[str, float]:
        """Seconds of each part of one step."""
        spent: dict[str, float] = {}
        self.optimizer.zero_grad(set_to_none=True)
        with self._timed(spent, "forward"):
            loss = torch.stack(list(self.method.loss(self.model, self.batch).values())).sum()
        with self._timed(spent, "backward"):
            loss.backward()
        with self._timed(spent, "update"):
            self.optimizer.step()
        return spent

    @contextmanager
    def _timed(self, spent: dict[str, float], part: str) -> Iterator[None]:
        on_gpu = self.device.type == "cuda"
        clock = time.perf_counter if on_gpu else time.process_time
        began = clock()
        yield
        if on_gpu:
            torch.cuda.synchronize()
        spent[part] = clock() - began


def backbone_of(asked: argparse.Namespace) -> Backbone:
    """The asked backbone with random weights where the real ones would be a download; costs do not depend on them."""
    backbone = load_backbone(asked.backbone, **start_weights(asked.backbone))
    backbone.provenance = backbone.provenance.model_copy(update={"aligned": True})
    return backbone


def batch_of(backbone: Backbone, method: Method, model: nn.Module, rows: int, device: torch.device) -> Batch:
    """Random pictures and one caption of usual length; cached features or states where a trial would use them."""
    side = backbone.resolution
    images = torch.randn(rows, 3, side, side, device=device)
    tokens = backbone.tokenize([CAPTION] * rows)
    tokens = (tokens.trimmed() if backbone.trims_text else tokens).to(device)
    ids = torch.arange(rows, device=device)
    if isinstance(method, PairMethod):
        each = 1 + method.config.false_captions
        candidates = tokens[ids.repeat_interleave(each)]
        batch = Batch(images, tokens, ids, ids, candidates=candidates, candidate_ids=ids[:, None].expand(rows, each))
        if not method.keeps_states:
            return batch
        with torch.no_grad():
            states = method.image_states(model, images), method.text_states(model, candidates)
        return replace(batch, images=None, candidates=None, image_states=states[0], candidate_states=states[1])
    if not method.head_only:
        with torch.no_grad():
            return Batch(images, tokens, ids, ids, image_side=method.side_features(model, images))
    assert isinstance(backbone, DualEncoder)
    with torch.no_grad():
        pooled = backbone.image.pooled(images), backbone.text.pooled(tokens)
    return Batch(None, None, ids, ids, image_pooled=pooled[0], text_pooled=pooled[1])


def fits(name: str, kind: str) -> bool:
    """Whether a method sits on backbones of a kind."""
    return kind in registry.load(registry.discover()[name]).kinds


def time_against_reference(name: str, asked: argparse.Namespace, reference: Loop) -> Cost:
    """Median ratios over alternating steps, after one warm-up step of each."""
    loop = Loop(name, asked)
    ours, theirs = [], []
    for round_ in range(asked.rounds + 1):
        pair = [(loop, ours), (reference, theirs)]
        for side, kept in pair if round_ % 2 else reversed(pair):
            kept.append(side.step())
    ours, theirs = ours[1:], theirs[1:]

    def ratio(parts: tuple[str, ...]) -> float:
        return statistics.median(
            sum(a[p] for p in parts) / sum(b[p] for p in parts) for a, b in zip(ours, theirs, strict=True)
        )

    def seconds(steps: list[dict[str, float]]) -> float:
        return statistics.median(sum(s.values()) for s in steps)

    return Cost(ratio(PARTS), ratio(("forward",)), ratio(("backward",)), None, seconds(ours), seconds(theirs))


def peak_of(name: str, asked: argparse.Namespace) -> int:
    """Peak bytes of three steps in a fresh process."""
    options = ["--backbone", asked.backbone, "--batch", str(asked.batch), "--threads", str(asked.threads)]
    command = [sys.executable, str(Path(__file__).resolve()), name, "--only-memory", *options]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(name: str, asked: argparse.Namespace) -> None:
    """What the child process does."""
    device = choose_device()
    reset_peak_memory(device)
    before = peak_memory(device)[0]
    loop = Loop(name, asked)
    reset_peak_memory(device)  # building is not training
    for _ in range(3):
        loop.step()
    print(peak_memory(device)[0] - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="default: all that train")
    parser.add_argument("--backbone", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only-memory", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    tune_process(choose_device())
    if asked.only_memory:
        print_peak(asked.methods[0], asked)
        return

    known = registry.discover()
    kind = backbone_of(asked).provenance.kind
    full = REFERENCES.get(kind, "full_finetune")
    names = [n for n in registry.resolve(asked.methods or ["all-methods"], known) if n != full]
    names = [n for n in names if registry.load(known[n]).trains and (asked.methods or fits(n, kind))]
    reference = Loop(full, asked)
    reference_memory = None if asked.no_memory else peak_of(full, asked)
    print(f"{asked.backbone}, batch {asked.batch}, fp32, {asked.threads} threads, {device_name(choose_device())}")
    print(f"{'method':<22}{'step':>8}{'forward':>9}{'backward':>10}{'memory':>9}   (full fine-tuning = 1)")
    found = {full: Cost(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, reference_memory)}
    for name in names:
        cost = time_against_reference(name, asked, reference)
        if reference_memory:
            cost.memory_bytes = peak_of(name, asked)
            cost.memory = cost.memory_bytes / reference_memory
        found[name] = cost
        memory = "-" if cost.memory is None else f"{cost.memory:.2f}"
        print(f"{name:<22}{cost.step:>8.2f}{cost.forward:>9.2f}{cost.backward:>10.2f}{memory:>9}", flush=True)
    seconds = statistics.median(c.reference_step_s for c in found.values() if c.reference_step_s)
    found[full].step_s = found[full].reference_step_s = seconds
    print(f"full fine-tuning: {seconds:.2f} s per step")
    if asked.out:
        write(asked, found)


def write(asked: argparse.Namespace, found: dict[str, Cost]) -> None:
    """Merge the figures into a file that the tables of methods read."""
    kept = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.exists() else {"settings": {}, "methods": {}}
    setting = {
        "batch": asked.batch,
        "rounds": asked.rounds,
        "threads": asked.threads,
        "precision": "fp32",
        "device": device_name(choose_device()),
        "torch": torch.__version__,
    }
    methods = {
        name: {k: None if v is None else round(v, 4) for k, v in asdict(cost).items()} for name, cost in found.items()
    }
    merged = dict(sorted({**kept["methods"], **methods}.items()))
    settings = {**kept["settings"], asked.backbone: setting}
    asked.out.write_text(json.dumps({"settings": settings, "methods": merged}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
