"""What a run took and cost, row by row, and as the V3 report's table of costs prints it. Imports no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ziphius.disk.write import write_text
from ziphius.ledger.clock import WAITING, last_start, time_spent
from ziphius.ledger.folder import (
    DONE,
    KEPT_EVALUATIONS,
    SETTINGS,
    evaluation_key,
    kept_stages,
    present_stages,
    read_evaluation,
    read_json,
    stage_key,
)

_NOTHING = 0.1  # seconds between two clocks that are no work
MFU_BASIS = "causal model FLOPs with MTP, over the measured GEMM peak of the stage's precision, for the whole stage"

# The columns of the table: the V3 report's first, then the work that such tables leave out. A kind that stands in no
# column gets one of its own.
REPORTED = {"pre-training": ("pretrain",), "fine-tuning": ("sft",), "reinforcement": ("grpo",)}
LEFT_OUT = {
    "data": ("tokenizer", "data"),
    "evaluation": ("evaluation",),
    "start-up": ("startup",),
    "lost or redone": ("lost", "abandoned"),
}


@dataclass
class LedgerRow:
    """One bill: a stage, its evaluation, the making of its data, or work that was lost.

    `kind` is the stage's own (tokenizer, pretrain, sft, grpo) or `data` (reading, cutting, packing text), `evaluation`,
    `startup` (loading, choosing, writing: all that is none of the others), `lost` (thrown away by a kill, done again)
    or `abandoned` (done with other settings than the present ones).
    `device_hours` count `devices` devices of the kind `device`; the CPU of a machine is one. `dollars` = hours × the
    machine's rate. `mfu` has the basis `MFU_BASIS`; `energy_kwh` is the machine's counters', None where it has none.
    """

    name: str
    kind: str
    seconds: float
    tokens: int = 0
    device: str = "cpu"
    devices: int = 1
    device_hours: float = 0.0
    dollars: float = 0.0
    steps: int = 0
    skipped: int = 0
    model_flops: float = 0.0
    mfu: float | None = None
    peak_memory_gib: float = 0.0
    energy_kwh: float | None = None
    gate: float | None = None

    def priced(self, dollars_per_hour: float) -> LedgerRow:
        """The row with its device-hours and dollars filled in from the seconds and the machine's rate."""
        self.device_hours = self.seconds / 3600 * self.devices
        self.dollars = self.seconds / 3600 * dollars_per_hour
        return self

    def without_data(self, seconds: float) -> list[LedgerRow]:
        """The row less `seconds` that went into making its batches, and a row of kind `data` that holds them."""
        seconds = min(seconds, self.seconds)
        share = seconds / self.seconds if self.seconds else 0.0
        energy = self.energy_kwh
        data = LedgerRow(f"data of {self.name}", "data", seconds, device=self.device, devices=self.devices)
        data.energy_kwh = None if energy is None else energy * share
        work = replace(
            self, seconds=self.seconds - seconds, energy_kwh=None if energy is None else energy * (1 - share)
        )
        return [work, data]


def write_rows(path: Path, rows: Iterable[LedgerRow]) -> None:
    """Write a `ledger.jsonl` whole: a stage's bills stand in it together or not at all."""
    write_text(path, "".join(json.dumps(asdict(row)) + "\n" for row in rows))


def read_rows(run: Path) -> list[LedgerRow]:
    """The bills of a run's present stages in order; what was lost on the way, or is not finished; the time between.

    Together with `read_abandoned` they add up to the time that all starts of the run held the machine. Raises
    ValueError where `run` is no run folder.
    """
    spent, rows = time_spent(run), []
    for stage in present_stages(run):
        rows += _stage_rows(stage, spent)
    return _on_the_machine(run, [*rows, *_left(WAITING, "startup", spent.pop(WAITING, 0.0))])


def read_abandoned(run: Path) -> list[LedgerRow]:
    """Rows of work with other settings than the present ones, kept or cleaned away; [] where there was none."""
    spent, rows = time_spent(run), []
    for stage in present_stages(run):
        _stage_rows(stage, spent)
    for stage in kept_stages(run):
        rows += _stage_rows(stage, spent)
    spent.pop(WAITING, 0.0)
    rows += [row for what, seconds in spent.items() for row in _left(_named(what), "abandoned", seconds)]
    for row in rows:
        row.kind, row.name = "abandoned", f"{row.name} (other settings)"
    return _on_the_machine(run, rows)


def _stage_rows(stage: Path, spent: Counter[str]) -> list[LedgerRow]:
    """The bills of one stage and its evaluation; takes their time out of what was `spent`."""
    about = read_json(stage / DONE)
    key = stage_key(stage)
    worked = spent.pop(key, 0.0)
    if about is None:
        return _left(f"{stage.name.partition('-')[2]} (unfinished)", _kind(stage), worked)
    rows = read_ledger(stage / "ledger.jsonl")
    rows += _left(f"lost in {about['name']}", "lost", worked - sum(row.seconds for row in rows))
    asked = read_evaluation(stage)
    if asked is not None:
        bill = LedgerRow(**asked["bill"])
        lost = spent.pop(evaluation_key(stage, asked["of"]["print"]), 0.0) - bill.seconds
        return [*rows, bill, *_left(f"lost in {bill.name}", "lost", lost)]
    kept = {path.stem for path in (stage / KEPT_EVALUATIONS).glob("*.json")}
    for what in [what for what in spent if what.startswith(f"{key}/") and what.partition("/")[2] not in kept]:
        rows += _left(f"evaluate {about['name']} (unfinished)", "evaluation", spent.pop(what))
    return rows


def _named(key: str) -> str:
    stage, _, evaluation = key.partition("/")
    return ("evaluate " if evaluation else "") + stage.partition(":")[0].partition("-")[2]


def _left(name: str, kind: str, seconds: float) -> list[LedgerRow]:
    return [LedgerRow(name, kind, seconds)] if seconds > _NOTHING else []


def _kind(stage: Path) -> str:
    of = read_json(stage / SETTINGS)
    return of["settings"]["stage"]["kind"] if of else "abandoned"


def _on_the_machine(run: Path, rows: list[LedgerRow]) -> list[LedgerRow]:
    """Devices and dollars of the rows that nobody booked, which are those of the run's last start."""
    machine = last_start(run)
    for row in rows:
        if machine and not row.device_hours:
            row.device, row.devices = machine["device"], machine["devices"]
            row.priced(machine["dollars_per_hour"])
    return rows


def read_ledger(path: Path) -> list[LedgerRow]:
    """The rows of one file, [] where it is missing. Raises ValueError naming a line that is no row."""
    rows: list[LedgerRow] = []
    if not path.exists():
        return rows
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rows.append(LedgerRow(**json.loads(line)))
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}:{number}: no row of a ledger as this version writes them; `ziphius run` on a new folder does"
            ) from None
    return rows


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass
class Column:
    """A column of the table: what its rows took, and what the plan said before the run (None: it said nothing)."""

    name: str
    seconds: float = 0.0
    device_hours: float = 0.0
    dollars: float = 0.0
    tokens: int = 0
    energy_kwh: float | None = None
    planned_device_hours: float | None = None
    kinds: tuple[str, ...] = field(default=(), repr=False)

    @property
    def ratio(self) -> float | None:
        """Actual over planned device-hours."""
        return self.device_hours / self.planned_device_hours if self.planned_device_hours else None

    def add(self, row: LedgerRow) -> None:
        self.seconds += row.seconds
        self.device_hours += row.device_hours
        self.dollars += row.dollars
        self.tokens += row.tokens
        if row.energy_kwh is not None:
            self.energy_kwh = (self.energy_kwh or 0.0) + row.energy_kwh

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "kinds"} | {"ratio": self.ratio}


def table_of_costs(rows: Sequence[LedgerRow], plan: Iterable[dict[str, Any]] = ()) -> list[Column]:
    """The rows by column, in the order of V3's Table 1 (arXiv 2412.19437), then what it leaves out, then the total.

    `plan` is a run's `plan.json`: {name, kind, seconds} a row. Columns that nothing was spent on are left out, but for
    lost work, whose 0 is worth a word. The total's ratio compares only columns that were planned and that have run.
    """
    known = REPORTED | LEFT_OUT
    strangers = {row.kind: (row.kind,) for row in rows if all(row.kind not in kinds for kinds in known.values())}
    columns = [Column(name, kinds=kinds) for name, kinds in (REPORTED | strangers | LEFT_OUT).items()]
    machine_devices = max((row.devices for row in rows), default=1)
    ran = {row.name for row in rows}
    for column in columns:
        for row in rows:
            if row.kind in column.kinds:
                column.add(row)
        planned = [p["seconds"] for p in plan if p["kind"] in column.kinds and p["seconds"] and p["name"] in ran]
        if planned:
            column.planned_device_hours = sum(planned) / 3600 * machine_devices
    columns = [column for column in columns if column.seconds or column.name == "lost or redone"]
    total = Column("total")
    for row in rows:
        total.add(row)
    return [*columns, total]


def like_with_like(columns: Sequence[Column]) -> float | None:
    """Actual over planned device-hours of all planned columns together."""
    planned = [column for column in columns if column.planned_device_hours]
    if not planned:
        return None
    return sum(c.device_hours for c in planned) / sum(c.planned_device_hours or 0.0 for c in planned)


def left_out(columns: Sequence[Column]) -> float:
    """Share of the device-hours that a table such as V3's would not show."""
    total = columns[-1].device_hours
    return sum(c.device_hours for c in columns[:-1] if c.name in LEFT_OUT) / total if total else 0.0
