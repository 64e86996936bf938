"""What this machine, or a device of it, can do: measured, because MFU and choices rest on it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from ziphius.train.place import Place

_GEMM = {"cpu": 1024, "cuda": 8192}  # sizes at which a product shows the device's peak and not its start


def measure_gemm(precision: str, place: Place, size: int | None = None, repeats: int = 5) -> float:
    """FLOP/s of a square matrix product in `precision` ('fp32', 'bf16') on this process's device, median."""
    size = size or _GEMM.get(place.device.type, _GEMM["cpu"])
    dtype = place.computing(precision).dtype
    a, b = (torch.randn(size, size, device=place.device).to(dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, repeats, place)


def measure_bandwidth(place: Place, mebibytes: int = 256, repeats: int = 5) -> float:
    """Bytes/s of a large copy (read plus write), median: the memory's speed, beyond any cache."""
    source = torch.ones(mebibytes << 18, device=place.device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / median_seconds(lambda: target.copy_(source), repeats, place)


def median_seconds(work: Callable[[], object], repeats: int, place: Place) -> float:
    """Median wall time of `work` on the device of `place`, after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        place.wait()
        began = time.perf_counter()
        work()
        place.wait()
        times.append(time.perf_counter() - began)
    return median(times[1:])


def describe(place: Place) -> dict[str, object]:
    """The machine in a few plain values, for reports; `gpu` is the card that does the work, if one does."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "device": place.device.type,
        "gpu": place.device_name if place.on_gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
