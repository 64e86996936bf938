"""Energy as the machine's own counters count it: RAPL for processors and memory, NVML for NVIDIA GPUs. No torch.

A counter counts all that runs on the machine, other people's work included. A machine without counters (most virtual
ones) has no figure: nothing is estimated here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6
_POLL_SECONDS = 30.0  # RAPL counters wrap after about 260 kJ: 20 minutes at 200 W


@dataclass(frozen=True)
class Counter:
    """A register that counts joules upwards; `wraps_at` is where it starts again from 0 (None: never)."""

    name: str
    read: Callable[[], float]
    wraps_at: float | None = None


def find_counters(powercap: Path = POWERCAP, nvml: ModuleType | None = None) -> list[Counter]:
    """Every counter that this process may read; `nvml` is the module pynvml where it is installed."""
    return [*_rapl(powercap), *_nvml(nvml or _import_nvml())]


class EnergyMeter:
    """Joules between `start()` and `stop()`; use it as a context manager. `kwh` is None without counters."""

    def __init__(self, counters: Sequence[Counter] | None = None) -> None:
        self.counters = list(find_counters() if counters is None else counters)
        self.joules = 0.0
        self._last: list[float] = []
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def kwh(self) -> float | None:
        return self.joules / JOULES_PER_KWH if self.counters else None

    def __enter__(self) -> EnergyMeter:
        if self.counters:
            self._last = [counter.read() for counter in self.counters]
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._done.set()
            self._thread.join()
            self.poll()

    def poll(self) -> None:
        """Add what the counters have counted since the last look."""
        for index, counter in enumerate(self.counters):
            now = counter.read()
            step = now - self._last[index]
            if step < 0 and counter.wraps_at is not None:
                step += counter.wraps_at
            self.joules += max(step, 0.0)
            self._last[index] = now

    def _watch(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self.poll()


def _rapl(powercap: Path) -> list[Counter]:
    """Packages and their DRAM (Linux powercap documentation). Cores and uncore are parts of the package."""
    counters = []
    for zone in sorted(powercap.glob("intel-rapl:*")):  # AMD processors stand under the same name
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith(("package", "dram")):
                continue
            wraps_at = float((zone / "max_energy_range_uj").read_text()) / 1e6
            read = _file_reader(zone / "energy_uj")
            read()
        except (OSError, ValueError):  # since 2020 kernels let root alone read it (CVE-2020-8694)
            continue
        counters.append(Counter(f"rapl {zone.name} {name}", read, wraps_at))
    return counters


def _file_reader(path: Path) -> Callable[[], float]:
    return lambda: float(path.read_text()) / 1e6


def _import_nvml() -> ModuleType | None:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _nvml(nvml: ModuleType | None) -> list[Counter]:
    """One counter a GPU (nvmlDeviceGetTotalEnergyConsumption, millijoules; Volta and later)."""
    if nvml is None:
        return []
    counters = []
    try:
        nvml.nvmlInit()
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            read = _gpu_reader(nvml, handle)
            read()
            counters.append(Counter(f"nvml gpu {index}", read))
    except nvml.NVMLError:  # no driver, or a GPU that does not count
        pass
    return counters


def _gpu_reader(nvml: ModuleType, handle: object) -> Callable[[], float]:
    return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
