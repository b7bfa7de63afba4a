"""The benchmark for GPUs, where there is none: that every part of it works, and that its report follows from what is measured."""

import importlib
import json
import subprocess
import sys

import pytest
from support import ROOT

GIB = 2**30


@pytest.fixture(scope="module")
def gpu():
    """The script and its report as modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("gpu")


@pytest.fixture(scope="module")
def report(gpu):
    return importlib.import_module("gpu_report")


def test_speed_memory_and_utilisation_follow_from_what_was_measured(report, tmp_path):
    costs = {
        "full_finetune": report.Cost(0.5, 200.0, 40 * GIB, 42 * GIB, GIB, flops=10**14),
        "lora": report.Cost(0.25, 400.0, 10 * GIB, 11 * GIB, GIB),
    }
    card = {"device": "NVIDIA H200", "capacity": 139 * GIB, "kind": "cuda_reserved"}
    setting = {"backbone": "ViT-B-32", "batch": 100, "steps": 5, "torch": "2"}
    packs = [{"trials": 2, "method": "lora", "samples_per_s": 600.0, "vs_alone": 1.5}, {"trials": 4, "method": "lora"}]
    packs[1]["error"] = "out of memory"
    made = [{"gpus_per_trial": "auto", "seconds": 61.0, "parts": {"lora": 0.25}, "failed": {}, "asked": ["lora"]}]
    peak = report.peak_tflops(card["device"])
    found = report.report(card, setting, costs, {"vpt": "refused"}, packs, made, peak, "data sheet")
    assert (found["methods"]["lora"]["speed_vs_full"], found["methods"]["lora"]["memory_vs_full"]) == (2.0, 0.25)
    assert found["utilisation"]["achieved_tflops"] == 200.0
    assert found["utilisation"]["mfu"] == pytest.approx(200 / 989)
    path = report.write(found, tmp_path)
    assert path.name == "nvidia-h200.json" and json.loads(path.read_text()) == found
    page = path.with_suffix(".md").read_text()
    assert "| lora | 400.0 | 2.00 | 250.0 | 10.00 | 0.25 |" in page
    assert "model FLOP utilisation 20.2 % of 989 (data sheet)" in page
    assert "| 2 | lora | 600.0 | 1.50 |" in page and "| 4 | lora | out of memory |" in page
    assert "Left out: vpt: refused" in page and "GPUs per trial: lora 0.25" in page
    assert "No GPU" not in page and report.peak_tflops("Some other card") is None


def test_a_method_is_measured_and_its_operations_counted(gpu, one_thread):
    asked = gpu.parse(["--tiny"])
    assert asked.methods == ["full_finetune", "lora"]
    whole, packed = gpu.measure("full_finetune", asked), gpu.measure("lora", asked, part=0.5)
    assert whole.step_s > 0 and whole.samples_per_s > 0 and whole.peak_allocated > 0
    assert packed.flops is None
    # A matrix product takes three of its kind, forward and backward, of two operations each per weight and row.
    from petlbench.methods.backbones.registry import load_backbone

    backbone = load_backbone("tiny-clip")
    blocks = "clip.visual.transformer.resblocks."
    weights = sum(p.numel() for n, p in backbone.named_parameters() if n.startswith(blocks) and p.ndim == 2)
    assert weights > 0 and whole.flops > 6 * asked.batch * 64 * weights, "64 patches"


def test_a_method_that_scores_pairs_gets_candidates(gpu, one_thread):
    assert gpu.measure("clip_fusion", gpu.parse(["--tiny"])).step_s > 0


@pytest.mark.slow
def test_the_command_writes_its_report(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--tiny", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert set(found["methods"]) == {"full_finetune", "lora"} and not found["refused"]
    (pack,) = found["packing"]
    assert pack["trials"] == 2 and pack["samples_per_s"] > 0
    (run,) = found["runs"]
    assert run["failed"] == {} and set(run["parts"]) == {"full_finetune", "lora"}
    assert "**No GPU**" in path.with_suffix(".md").read_text()
