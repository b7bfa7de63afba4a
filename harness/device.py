"""The device of a trial and how its memory is measured."""

from __future__ import annotations

import ctypes
import gc
import os
import random
from pathlib import Path

import numpy as np
import psutil
import torch


def choose_device() -> torch.device:
    """The GPU that Ray gave this process, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def tune_process(device: torch.device) -> None:
    """Settings of this process that make training on a CPU faster; nothing on a GPU.

    The backward pass of torch's fused attention is slower than the plain one at the towers' short sequences: a step under
    bf16 takes 1.2 (ViT-S/14, 65 tokens) to 1.5 times (tiny-clip) as long with it; under fp32 the two are equal. And glibc
    hands large tensors back to the system at once, so that every step pays for the same pages again: full fine-tuning of
    ViT-B/32 at batch 8 takes 1.2 times as long as with the memory kept.
    """
    if device.type != "cpu":
        return
    torch.backends.cuda.enable_flash_sdp(False)  # despite its name the switch governs the CPU kernel too
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


def limit_memory(device: torch.device, part: float, reserve: int) -> None:
    """Hold this process to its part of a GPU that others share, so that none can starve them; nothing on a CPU.

    Args:
        device: Where the model lies.
        part: Part of the card, 1 for a whole one.
        reserve: Bytes of the part that torch's allocator must leave to the CUDA context and libraries.
    """
    if device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(device).total_memory
    # Always set: a worker process runs one trial after the other.
    allowed = part - reserve / total if 0 < part < 1 else 1.0
    if allowed <= 0:
        raise RuntimeError(
            f"{part:g} of {device_name(device)} ({total / 2**30:.1f} GiB) is less than resources.gpu_reserve_gib="
            f"{reserve / 2**30:g}; raise resources.gpus_per_trial or lower the reserve"
        )
    torch.cuda.set_per_process_memory_fraction(allowed, device)


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: fall through to the generic name
    return os.uname().machine if hasattr(os, "uname") else "cpu"


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (CPU and GPU)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring peaks anew: what an earlier trial of this worker left behind is given back first."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc keeps freed memory, which would count as resident
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="ascii"
        )  # Linux: reset the high-water mark of this process
    except OSError:
        pass  # not Linux or not permitted: the mark then covers the whole life of the process


def peak_memory(device: torch.device) -> tuple[int, int]:
    """Peak bytes (allocated, reserved) on a GPU; (resident, 0) of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024, 0
    except OSError:
        pass  # not Linux: the present size is the best that is known
    return psutil.Process().memory_info().rss, 0
