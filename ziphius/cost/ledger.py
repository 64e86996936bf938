"""What a run took and cost, one row a stage, in the form of the V3 report's Table 1. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass
class LedgerRow:
    """One stage's bill. Device-hours count the machine as one device; `dollars` = device_hours × the stated rate.

    `mfu`: model FLOPs (causal attention, without input embedding, with MTP) per second of the whole stage over the
    machine's measured GEMM peak in the stage's precision. `lost_seconds`: work that a kill threw away.
    """

    name: str
    kind: str
    seconds: float
    tokens: int = 0
    device_hours: float = 0.0
    dollars: float = 0.0
    steps: int = 0
    skipped: int = 0
    model_flops: float = 0.0
    mfu: float | None = None
    peak_memory_gib: float = 0.0
    lost_seconds: float = 0.0
    gate: float | None = None

    def priced(self, dollars_per_hour: float) -> LedgerRow:
        """The row with its device-hours and dollars filled in from the seconds, lost ones included."""
        self.device_hours = (self.seconds + self.lost_seconds) / 3600
        self.dollars = self.device_hours * dollars_per_hour
        return self


def append_row(path: Path, row: LedgerRow) -> None:
    """Add `row` to a `ledger.jsonl`."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read_rows(run: Path) -> list[LedgerRow]:
    """All rows of a run's stages in order. Raises ValueError where `run` is no run folder."""
    if not (run / "stages").is_dir():
        raise ValueError(f"{run}: no run folder (it has no stages/); give the folder that `ziphius run` wrote")
    rows = []
    for ledger in sorted((run / "stages").glob("*/ledger.jsonl")):
        rows += [LedgerRow(**json.loads(line)) for line in ledger.read_text().splitlines()]
    return rows
