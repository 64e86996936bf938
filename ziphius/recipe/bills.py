"""What work is billed beside the stages' own results: the devices, the energy, the time that was lost or given up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ziphius.cost.energy import EnergyMeter
from ziphius.cost.ledger import ABANDONED, LedgerRow, append_row, read_ledger
from ziphius.disk.write import write_text
from ziphius.train.distributed import World
from ziphius.train.metrics import read_metrics
from ziphius.train.state import saved_progress

_ENERGY, _LOST = "energy.json", "lost_seconds.json"


def bill(world: World, name: str, kind: str, seconds: float, tokens: int = 0) -> LedgerRow:
    """A row for this run's devices: its GPUs, one a process, or the machine's CPU as one device."""
    row = LedgerRow(name, kind, seconds, tokens)
    if torch.cuda.is_available():
        row.device, row.devices = torch.cuda.get_device_name(), world.size
    return row


@contextmanager
def measured_energy(folder: Path, world: World) -> Iterator[EnergyMeter]:
    """Count a stage's energy; what was counted before it was stopped waits in its folder for the next start."""
    with EnergyMeter(None if world.is_main else []) as meter:
        try:
            yield meter
        except BaseException:
            meter.poll()
            if meter.kwh is not None:
                _write_number(folder / _ENERGY, (_read_number(folder / _ENERGY) or 0.0) + meter.kwh)
            raise


def stage_energy(folder: Path, meter: EnergyMeter, resumed: bool) -> float | None:
    """Energy over all starts of a stage, in kWh; None where one of them was killed before it could write its own."""
    earlier = _read_number(folder / _ENERGY)
    if meter.kwh is None or (resumed and earlier is None):
        return None
    return meter.kwh + (earlier or 0.0)


def lost_seconds(folder: Path) -> float:
    """Training time that kills threw away: what was logged after the last saved state, added up over all starts."""
    lost = _read_number(folder / _LOST) or 0.0
    if rows := read_metrics(folder):
        progress = saved_progress(folder / "state")
        lost += max(0.0, rows[-1]["seconds"] - (progress["seconds"] if progress else 0.0))
        _write_number(folder / _LOST, lost)
    return lost


def book_abandoned(run: Path, stage: Path, dollars_per_hour: float, world: World) -> None:
    """What a stage that is about to go has taken, finished or not, into the run's list of abandoned work."""
    rows = read_ledger(stage / "ledger.jsonl")
    if not rows:
        metrics = read_metrics(stage)
        seconds = (_read_number(stage / _LOST) or 0.0) + (metrics[-1]["seconds"] if metrics else 0.0)
        rows = [bill(world, stage.name.partition("-")[2], "abandoned", seconds)] if seconds else []
    for row in rows:
        row.kind, row.name = "abandoned", f"{row.name} (replaced)"
        append_row(run / ABANDONED, row.priced(dollars_per_hour))


def _read_number(path: Path) -> float | None:
    return float(json.loads(path.read_text())) if path.exists() else None


def _write_number(path: Path, value: float) -> None:
    write_text(path, json.dumps(value))
