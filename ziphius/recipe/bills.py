"""What a stage is billed for beside its time: the devices and the energy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ziphius.cost.energy import EnergyMeter
from ziphius.cost.ledger import LedgerRow
from ziphius.ledger.folder import read_json, write_json
from ziphius.train.place import Place

_ENERGY = "energy.json"


def bill(place: Place, name: str, kind: str, seconds: float, tokens: int = 0) -> LedgerRow:
    """A row for this run's devices: its GPUs, one a process, or the machine's CPU as one device."""
    device, devices = devices_of(place)
    return LedgerRow(name, kind, seconds, tokens, device, devices)


def devices_of(place: Place) -> tuple[str, int]:
    """What a run is billed for, and how many of it."""
    return place.device_name, place.size if place.on_gpu else 1


@contextmanager
def measured_energy(folder: Path, place: Place) -> Iterator[EnergyMeter]:
    """Count a stage's energy; what was counted before it was stopped waits in its folder for the next start."""
    with EnergyMeter(None if place.is_main else []) as meter:
        try:
            yield meter
        except BaseException:
            meter.poll()
            if meter.kwh is not None:
                write_json(folder / _ENERGY, (read_json(folder / _ENERGY) or 0.0) + meter.kwh)
            raise


def stage_energy(folder: Path, meter: EnergyMeter, resumed: bool) -> float | None:
    """Energy over all starts of a stage, in kWh; None where one of them was killed before it could write its own."""
    earlier = read_json(folder / _ENERGY)
    if meter.kwh is None or (resumed and earlier is None):
        return None
    return meter.kwh + (earlier or 0.0)
