import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ziphius.cost.energy import Counter, EnergyMeter, find_counters


class Register:
    """A counter that a test moves by hand."""

    def __init__(self, value=0.0):
        self.value = value

    def __call__(self):
        return self.value


def test_joules_between_start_and_stop():
    cpu, gpu = Register(100.0), Register(5000.0)
    with EnergyMeter([Counter("cpu", cpu), Counter("gpu", gpu)]) as meter:
        cpu.value += 1.6e6
        meter.poll()
        cpu.value += 1.0e6
        gpu.value += 1.0e6
    assert meter.kwh == pytest.approx(1.0)


def test_a_register_that_starts_again():
    register = Register(250.0)
    with EnergyMeter([Counter("cpu", register, wraps_at=262.0)]) as meter:
        register.value = 8.0
    assert meter.joules == pytest.approx(20.0)


def test_a_register_that_a_driver_reset_counts_nothing_backwards():
    register = Register(250.0)
    with EnergyMeter([Counter("gpu", register)]) as meter:
        register.value = 8.0
    assert meter.joules == 0.0


def test_a_machine_without_counters_has_no_figure(tmp_path):
    assert find_counters(tmp_path / "none", SimpleNamespace(nvmlInit=_refuse, NVMLError=RuntimeError)) == []
    with EnergyMeter([]) as meter:
        pass
    assert meter.kwh is None


def _refuse():
    raise RuntimeError("no driver")


def zone(root, name, label, microjoules, reads=0o644):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "energy_uj").chmod(reads)


def test_packages_and_memory_are_counted_and_cores_not_twice(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 3_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 2_000_000)
    zone(tmp_path, "intel-rapl:0:1", "dram", 500_000)
    zone(tmp_path, "intel-rapl:1", "psys", 9_000_000)
    counters = find_counters(tmp_path, SimpleNamespace(nvmlInit=_refuse, NVMLError=RuntimeError))
    assert [counter.name for counter in counters] == ["rapl intel-rapl:0 package-0", "rapl intel-rapl:0:1 dram"]
    assert [counter.read() for counter in counters] == [3.0, 0.5]
    assert counters[0].wraps_at == pytest.approx(262143.32885)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_counters_that_only_root_may_read_are_left_out(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 3_000_000, reads=0)
    assert find_counters(tmp_path, SimpleNamespace(nvmlInit=_refuse, NVMLError=RuntimeError)) == []


def test_gpus():
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 7000 * (handle + 1),
    )
    counters = find_counters(Path("/nowhere"), nvml)
    assert [(counter.name, counter.read()) for counter in counters] == [("nvml gpu 0", 7.0), ("nvml gpu 1", 14.0)]
