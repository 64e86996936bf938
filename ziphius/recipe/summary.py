"""What a run leaves behind in `summary.json`: sizes, bills, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ziphius.checkpoint.folder import load_config
from ziphius.cost.flops import count_parameters
from ziphius.cost.ledger import read_abandoned, read_rows
from ziphius.ledger.folder import evaluations, finished_stages
from ziphius.reason.chart import reading
from ziphius.recipe.schema import Recipe
from ziphius.train.metrics import read_metrics


def summarise(recipe: Recipe, run: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """The contents of `summary.json` from what the stages wrote."""
    trained = [folder for folder in finished_stages(run) if (folder / "config.json").exists()]
    summary: dict[str, Any] = {"name": recipe.name, "seed": recipe.seed}
    if trained:
        counts = count_parameters(load_config(trained[-1]))
        summary["parameters"] = {"total": counts.total + counts.mtp_total, "active": counts.active}
    if recipe.model.from_ is not None:
        kind = recipe.model.config(0).model_type
        summary["start"] = {"folder": str(recipe.model.start()), "model_type": kind}
    thinking = _summarise_stages(run)
    summary |= thinking
    summary["total_seconds"] = sum(stage["seconds"] for stage in thinking["stages"])
    summary["control"] = _summarise_stages(run / "control") if (run / "control" / "stages").is_dir() else None
    rl = [row for folder in finished_stages(run, "grpo") for row in read_metrics(folder)]
    if rl:
        seen = [value for row in rl if (value := reading(row, "mismatch")) is not None]
        summary["mismatch"] = sum(seen) / max(len(seen), 1)
    if trained and (rows := read_metrics(trained[-1])):
        summary["load_violation"] = rows[-1]["load_violation"]
    summary["price"] = recipe.price.model_dump()
    summary["machine"] = machine
    return summary


def _summarise_stages(run: Path) -> dict[str, Any]:
    rows, abandoned = read_rows(run), read_abandoned(run)
    keys = ("name", "kind", "seconds", "tokens", "device_hours", "dollars", "steps", "mfu", "gate", "energy_kwh")
    found = [entry for folder in finished_stages(run) for entry in evaluations(folder)]
    without_examples = [{key: value for key, value in entry.items() if key != "examples"} for entry in found]
    bills = {"stages": rows} | ({"abandoned": abandoned} if abandoned else {})
    shown = {name: [{key: getattr(row, key) for key in keys} for row in part] for name, part in bills.items()}
    return shown | {"evaluations": without_examples}
