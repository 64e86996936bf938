"""What this machine can do: measured, because MFU and choices rest on it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure_gemm(precision: str, size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of a square matrix product in `precision` ('fp32', 'bf16') with this process's threads, median."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device).to(_DTYPES[precision]) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, repeats)


def measure_bandwidth(mebibytes: int = 256, repeats: int = 5) -> float:
    """Bytes/s of a large copy (read plus write), median: the memory's speed, beyond any cache."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.ones(mebibytes << 18, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / median_seconds(lambda: target.copy_(source), repeats)


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall time of `work`, after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times[1:])


def peak_memory_gib() -> float:
    """The most memory this process has held at once, in GiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def describe() -> dict[str, object]:
    """The machine in a few plain values, for reports."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
