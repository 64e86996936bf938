"""What a run folder holds, read once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziphius.ledger.folder import DONE, evaluations, finished_stages, read_json
from ziphius.reason.chart import reading
from ziphius.report.drawing import Point
from ziphius.train.metrics import read_metrics


@dataclass(frozen=True)
class Stage:
    """One finished stage: its metrics, a row a step, the evaluations made after it, and what it says of its data."""

    name: str
    kind: str
    rows: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    data: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run, and the same run without thinking where there is one (else `control` is empty)."""

    folder: Path
    summary: dict[str, Any]
    recipe: dict[str, Any]
    stages: list[Stage]
    control: list[Stage]


def read_run(folder: Path) -> Run:
    """Raises FileNotFoundError, in one line, where a run has not got so far as to have a summary."""
    if not (folder / "summary.json").exists():
        raise FileNotFoundError(f"{folder} has no summary.json: finish the run with `ziphius run` first")
    summary, recipe = (read_json(folder / name) or {} for name in ("summary.json", "recipe.json"))
    control = _read_stages(folder / "control") if summary.get("control") else []
    return Run(folder, summary, recipe, _read_stages(folder), control)


def along(stages: Sequence[Stage], key: str, by: str = "step") -> list[Point]:
    """A gauge over several stages, one after the other, `by` "step" or "seconds"."""
    points, before = [], 0.0
    for stage in stages:
        for row in stage.rows:
            value = reading(row, key) if stage.kind == "grpo" else row.get(key)
            if value is not None and math.isfinite(value):
                points.append((before + row[by], float(value)))
        before += length(stage, by)
    return points


def length(stage: Stage, by: str = "step") -> float:
    """Steps or seconds that a stage trained."""
    return float(stage.rows[-1][by]) if stage.rows else 0.0


def _read_stages(run: Path) -> list[Stage]:
    stages = []
    for folder in finished_stages(run):
        about, data = read_json(folder / DONE), read_json(folder / "data.json") or {}
        stages.append(Stage(about["name"], about["kind"], read_metrics(folder), evaluations(folder), data))
    return stages
