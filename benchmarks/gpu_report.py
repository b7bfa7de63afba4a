"""What ``benchmarks/gpu.py`` measured, as one JSON file and one page."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GIB = 2**30
REFERENCE = "full_finetune"
PEAKS = (
    (r"\bH200\b", 989.0),
    (r"\bH100 PCIe\b", 756.0),
    (r"\bH100\b", 989.0),
    (r"\bA100\b", 312.0),
    (r"\bA40\b", 149.7),
    (r"\bA10\b", 125.0),
    (r"\bL40S\b", 362.0),
    (r"\bL4\b", 121.0),
    (r"\bRTX 4090\b", 165.2),
)
"""Dense bf16 TFLOPS with fp32 sums, from NVIDIA's data sheets (half of the figure with sparsity), by name of the card."""


@dataclass(frozen=True)
class Cost:
    """What a process measured of one method.

    Attributes:
        step_s: Median seconds of a step.
        samples_per_s: Pairs by the seconds of all steps.
        peak_allocated: Bytes of tensors at the peak (GPU), or resident (CPU).
        peak_reserved: Bytes that torch's allocator held; 0 on a CPU.
        overhead: Bytes of the card beside them, context and libraries.
        flops: Of a forward and a backward pass, where counted.
    """

    step_s: float
    samples_per_s: float
    peak_allocated: int
    peak_reserved: int
    overhead: int
    flops: int | None = None


def peak_tflops(card: str) -> float | None:
    """The card's peak, or None where its name is not known."""
    return next((peak for pattern, peak in PEAKS if re.search(pattern, card, re.IGNORECASE)), None)


def report(
    card: dict[str, Any],
    setting: dict[str, Any],
    costs: dict[str, Cost],
    refused: dict[str, str],
    packs: list[dict[str, Any]],
    made: list[dict[str, Any]],
    peak: float | None,
    peak_from: str,
) -> dict[str, Any]:
    """Everything measured, and what follows from it, as the JSON file holds it."""
    reference = costs.get(REFERENCE)
    methods = {}
    for name, cost in costs.items():
        ratio = {"speed_vs_full": cost.samples_per_s / reference.samples_per_s} if reference else {}
        ratio |= {"memory_vs_full": cost.peak_allocated / reference.peak_allocated} if reference else {}
        methods[name] = {**asdict(cost), **ratio}
    utilisation = None
    if reference and reference.flops:
        achieved = reference.flops / reference.step_s / 1e12
        utilisation = {"flops_per_step": reference.flops, "step_s": reference.step_s, "achieved_tflops": achieved}
        utilisation |= {"peak_tflops": peak, "peak_from": peak_from, "mfu": achieved / peak if peak else None}
    return {
        "card": card,
        "setting": setting,
        "methods": methods,
        "refused": refused,
        "utilisation": utilisation,
        "packing": packs,
        "runs": made,
    }


def markdown(found: dict[str, Any]) -> str:
    """The report for people."""
    card, setting = found["card"], found["setting"]
    lines = [
        f"# {card['device']}",
        "",
        f"{setting['backbone']} with random weights, batch {setting['batch']}, bf16 autocast, {setting['steps']} timed steps "
        f"per method, torch {setting['torch']}; {card['capacity'] / GIB:.1f} GiB. Made by `benchmarks/gpu.py`, whose head says "
        "what is measured.",
        "",
    ]
    if card["kind"] != "cuda_reserved":
        lines += [
            "**No GPU**: memory is that of the whole process, and these figures only show that the script works.",
            "",
        ]
    lines += [
        "| method | samples/s | of full fine-tuning | ms per step | peak memory, GiB | of full fine-tuning |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, cost in found["methods"].items():
        speed, memory = (f"{cost[k]:.2f}" if k in cost else "–" for k in ("speed_vs_full", "memory_vs_full"))
        lines.append(
            f"| {name} | {cost['samples_per_s']:,.1f} | {speed} | {1000 * cost['step_s']:.1f} | "
            f"{cost['peak_allocated'] / GIB:.2f} | {memory} |"
        )
    lines += [f"\nLeft out: {name}: {reason}" for name, reason in found["refused"].items()]
    if used := found["utilisation"]:
        share = (
            f"{100 * used['mfu']:.1f} % of {used['peak_tflops']:g} ({used['peak_from']})"
            if used["mfu"]
            else "peak unknown"
        )
        lines += [
            "",
            f"Full fine-tuning: {used['flops_per_step'] / 1e12:.3g} TFLOP per step, {used['achieved_tflops']:.3g} TFLOP/s: "
            f"model FLOP utilisation {share}.",
        ]
    if found["packing"]:
        lines += [
            "",
            "| trials on the GPU | method | samples/s together | of one alone |",
            "| ---: | --- | ---: | ---: |",
        ]
        for row in found["packing"]:
            told = row.get("error")
            figures = f"{told} | " if told else f"{row['samples_per_s']:,.1f} | {row['vs_alone']:.2f}"
            lines.append(f"| {row['trials']} | {row['method']} | {figures} |")
    for row in found["runs"]:
        failed = "; ".join(f"{name}: {error}" for name, error in row["failed"].items()) or "none"
        parts = ", ".join(f"{name} {part:g}" for name, part in row["parts"].items() if part) or "none"
        lines += [
            "",
            f"`benchmark run` of {len(row['asked'])} methods with --gpus-per-trial {row['gpus_per_trial']}: "
            f"{row['seconds']:.0f} s; failed: {failed}; GPUs per trial: {parts}.",
        ]
    return "\n".join(lines) + "\n"


def write(found: dict[str, Any], folder: Path) -> Path:
    """Both files, named by the card."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^a-z0-9]+", "-", found["card"]["device"].lower()).strip("-") + ".json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    return path
