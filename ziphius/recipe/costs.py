"""A run's ledger on the screen: the table of costs in the V3 report's form, and the bills behind it. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ziphius.cost.ledger import (
    LEFT_OUT,
    MFU_BASIS,
    Column,
    LedgerRow,
    left_out,
    like_with_like,
    read_abandoned,
    read_rows,
    table_of_costs,
)
from ziphius.cost.quantity import short
from ziphius.ledger.folder import read_json

_HEADINGS = {  # narrow
    "pre-training": "pretrain", "fine-tuning": "SFT", "reinforcement": "RL", "evaluation": "eval", "start-up": "start",
    "lost or redone": "lost",
}  # fmt: skip
_UNITS = (("h", 1.0), ("min", 1 / 60), ("s", 1 / 3600))  # with their length in hours


def show_cost(run: Path, as_json: bool, rate: float | None = None) -> None:
    """The table of costs of a run and its bills, and those of its control where there is one.

    `rate` (dollars an hour of the machine) takes the place of the recipe's. Raises ValueError for other folders.
    """
    price = (read_json(run / "recipe.json") or {}).get("price")
    if rate is not None:
        price = {"dollars_per_hour": rate, "what": "the rate given with --rate"}
    parts = {"run": run} | ({"control": run / "control"} if (run / "control" / "stages").is_dir() else {})
    if as_json:
        print(json.dumps(_as_json(parts, price, rate), indent=1))
        return
    console = Console()
    for name, folder in parts.items():
        rows = _rows(folder, rate)
        title = run.name if name == "run" else f"{run.name}: the control, trained without thinking"
        _table_of_costs(console, title, rows, _plan(run), price)
        _bills(console, rows)


def show_ledger(console: Console, run: Path, price: dict[str, Any] | None) -> None:
    """The table of costs alone, as it ends a run."""
    _table_of_costs(console, run.name, _rows(run, None), _plan(run), price)


def _rows(run: Path, rate: float | None) -> list[LedgerRow]:
    rows = [*read_rows(run), *read_abandoned(run)]
    return rows if rate is None else [row.priced(rate) for row in rows]


def _plan(run: Path) -> list[dict[str, Any]]:
    return read_json(run / "plan.json") or []


def _as_json(parts: dict[str, Path], price: Any, rate: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"price": price, "mfu_basis": MFU_BASIS}
    plan = _plan(parts["run"])
    for name, folder in parts.items():
        rows = _rows(folder, rate)
        columns = table_of_costs(rows, plan)
        bills = [asdict(row) for row in rows]
        table = {column.name: column.as_dict() for column in columns}
        table["total"]["ratio"] = like_with_like(columns)
        found |= {"stages": bills, "table": table, "share_left_out": left_out(columns)} if name == "run" else {}
        if name == "control":
            found["control"] = bills
    return {"control": []} | found


def _table_of_costs(
    console: Console, title: str, rows: Sequence[LedgerRow], plan: Sequence[dict[str, Any]], price: Any
) -> None:
    columns = [c for c in table_of_costs(rows, plan) if c.seconds or c.planned_device_hours or c.name == "total"]
    table = Table(title=f"Training costs of {title}", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("")
    for column in columns:
        table.add_column(_HEADINGS.get(column.name, column.name), justify="right")
    devices = " and ".join(sorted({row.device for row in rows})).replace("cpu", "CPU")
    unit, hours = next((u for u in _UNITS if columns[-1].device_hours >= 2 * u[1]), _UNITS[-1])
    table.add_row(f"{devices} {unit}", *[_amount(c.device_hours / hours) for c in columns])
    table.add_row("USD", *[f"${c.dollars:,.4f}" if c.dollars < 1 else f"${c.dollars:,.2f}" for c in columns])
    table.add_row("tokens", *[short(c.tokens) if c.tokens else "" for c in columns])
    if any(c.energy_kwh is not None for c in columns):
        table.add_row("kWh", *["" if c.energy_kwh is None else f"{c.energy_kwh:.4f}" for c in columns])
    if any(c.planned_device_hours for c in columns):
        table.add_section()
        planned = [c.planned_device_hours for c in columns]
        table.add_row("planned", *["" if value is None else _amount(value / hours) for value in planned])
        ratios = [*[c.ratio for c in columns[:-1]], like_with_like(columns)]
        table.add_row("÷ planned", *["" if ratio is None else f"{ratio:.2f}" for ratio in ratios])
    console.print(table)
    console.print(_reading(columns, price), highlight=False)


def _reading(columns: Sequence[Column], price: Any) -> str:
    """The table in words."""
    rate = price["dollars_per_hour"] if price else 0
    what = f" ({price['what']})" if rate and price["what"] else ""
    lines = [f"At ${rate}/h{what}." if rate else "The recipe states no rate; give one with --rate."]
    unseen = ", ".join(c.name for c in columns[:-1] if c.name in LEFT_OUT and c.seconds)
    if unseen:
        lines.append(f"A table of training costs shows {1 - left_out(columns):.0%} of this; it leaves out {unseen}.")
    if all(c.energy_kwh is None for c in columns):
        lines.append("No energy: the machine has no counter that may be read (RAPL, NVML).")
    if like_with_like(columns) is not None:
        lines.append("Ratios compare what was planned and has run; a gate may end a stage before its plan.")
    return " ".join(lines)


def _bills(console: Console, rows: Sequence[LedgerRow]) -> None:
    table = Table(title="Bills", box=SIMPLE_HEAD)
    for heading in ("what", "seconds", "tokens", "device-h", "dollars", "MFU", "GiB"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.seconds:.1f}",
            short(row.tokens) if row.tokens else "",
            f"{row.device_hours:.4f}",
            f"{row.dollars:.4f}",
            "" if row.mfu is None else f"{row.mfu:.1%}",
            f"{row.peak_memory_gib:.2f}" if row.peak_memory_gib else "",
        )
    console.print(table)
    if any(row.mfu for row in rows):
        console.print(f"MFU: {MFU_BASIS}.", highlight=False)


def _amount(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
