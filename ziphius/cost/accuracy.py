"""How far off the planner is: every published row predicted, with naive rules and leave-one-out beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from typing import Any

from ziphius.cost.data import Data, DataError
from ziphius.cost.published import KINDS, NODE, SHIPPED, Outcome, PublishedTrain, Setting, outcome, train_seconds
from ziphius.cost.quantity import short
from ziphius.cost.step import PYTORCH
from ziphius.cost.train_screen import spread

FACTORS = (0.0, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
PACES = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1)


@dataclass(frozen=True)
class Summary:
    """Statistics of some rows: the median and the largest |log ratio|, the share inside, the widest interval."""

    rows: int
    median_log_error: float
    largest_factor: float
    inside: float
    widest: float
    naive_median_log_error: float | None


@dataclass(frozen=True)
class Accuracy:
    """All outcomes; `left_out` is a fitted row's ratio once its constants are set from the other rows alone."""

    outcomes: list[Outcome]
    left_out: dict[str, float]
    failed: dict[str, str]

    @property
    def judged(self) -> list[Outcome]:
        """Rows that count: no bounds, none from memory."""
        return [o for o in self.outcomes if not o.row.bound and o.row.confidence != "memory"]


def accuracy(data: Data, own_only: bool = False, leave_out: bool = True) -> Accuracy:
    """Predict every published row; with `own_only` only those of the user's files."""
    outcomes, failed = [], {}
    for table, kind in KINDS.items():
        for row in data.rows(table, kind, extra_only=own_only):
            try:
                outcomes.append(outcome(row, data))
            except (ValueError, DataError) as error:
                failed[row.name] = str(error)
    fitted = [o.row for o in outcomes if isinstance(o.row, PublishedTrain) and o.row.fitted]
    return Accuracy(outcomes, leave_one_out(fitted, data) if leave_out else {}, failed)


def leave_one_out(rows: Sequence[PublishedTrain], data: Data) -> dict[str, float]:
    """Ratio of each row after its constants were set again from the others (least mean |log ratio| on a grid)."""
    errors = {row.name: _errors(row, data) for row in rows}
    kinds = {row.name: _kind(row, data) for row in rows}
    grid = [Setting(*values) for values in product(PACES, FACTORS, FACTORS, FACTORS)]
    found = {name: [errors[name][_relevant(setting, kinds[name])] for setting in grid] for name in errors}
    totals = [sum(abs(of_row[number]) for of_row in found.values()) for number in range(len(grid))]
    ratios = {}
    for row in rows:
        own = found[row.name]
        best = min(range(len(grid)), key=lambda number: totals[number] - abs(own[number]))
        ratios[row.name] = math.exp(own[best])
    return ratios


def _errors(row: PublishedTrain, data: Data) -> dict[Setting, float]:
    """Log ratio of `row` under every setting that matters to it."""
    shipped, kind = outcome(row, data), _kind(row, data)
    speed = math.log(shipped.ratio) * (-1 if shipped.unit == "GPU-hours" else 1)
    seconds = train_seconds(row, data, SHIPPED)
    settings = {_relevant(Setting(pace, factor, factor, factor), kind) for pace, factor in product(PACES, FACTORS)}
    return {setting: speed + math.log(seconds / train_seconds(row, data, setting)) for setting in settings}


def _kind(row: PublishedTrain, data: Data) -> str:
    """Which of the fitted constants, beside the pace of kernels, matters to a row."""
    if row.stack in PYTORCH:
        return "framework"
    if row.stack == "deepseek" or not data.shape(row.model).experts:
        return ""
    return "launches_rack" if data.accelerator(row.gpu).nvlink_domain > NODE else "launches"


def _relevant(setting: Setting, kind: str) -> Setting:
    own = {kind: getattr(setting, kind)} if kind else {}
    return Setting(sustained=setting.sustained, **own)


def summarise(outcomes: Sequence[Outcome], ratios: dict[str, float] | None = None) -> Summary | None:
    """Statistics of `outcomes`; with `ratios` those stand in for the outcomes' own. None without rows."""
    if not outcomes:
        return None
    errors = [abs(math.log((ratios or {}).get(o.row.name, o.ratio))) for o in outcomes]
    naive = [abs(math.log(o.naive / o.published)) for o in outcomes if o.naive is not None]
    return Summary(
        rows=len(outcomes),
        median_log_error=median(errors),
        largest_factor=math.exp(max(errors)),
        inside=sum(o.inside for o in outcomes) / len(outcomes),
        widest=max(o.predicted.high / o.predicted.low for o in outcomes),
        naive_median_log_error=median(naive) if naive else None,
    )


def accuracy_json(found: Accuracy) -> dict[str, Any]:
    """The form of `ziphius plan accuracy --json`."""
    rows = [
        {
            "name": o.row.name, "group": o.row.group, "unit": o.unit, "predicted": o.predicted.as_dict(),
            "published": o.published, "ratio": o.ratio, "inside": o.inside, "naive": o.naive,
            "left_out_ratio": found.left_out.get(o.row.name), "fitted": list(o.row.fitted), "layout": o.row.layout,
            "confidence": o.row.confidence, "bound": o.row.bound, "source": o.row.source,
        }
        for o in found.outcomes
    ]  # fmt: skip
    parts = {name: summarise(part) for name, part in groups(found).items()}
    parts["leave one out"] = summarise([o for o in found.judged if o.row.name in found.left_out], found.left_out)
    return {
        "rows": rows,
        "summary": {name: asdict(part) for name, part in parts.items() if part is not None},
        "failed": found.failed,
    }


def groups(found: Accuracy) -> dict[str, list[Outcome]]:
    """The judged rows: all, those that helped to set a constant, and the others."""
    return {
        "all": found.judged,
        "in-sample": [o for o in found.judged if o.row.fitted],
        "out of sample": [o for o in found.judged if not o.row.fitted],
    }


def show_accuracy(found: Accuracy) -> None:
    """Print every row, then the statistics."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="Predicted against published", title_justify="left")
    for heading in ("result", "unit", "predicted (80%)", "published", "ratio", "inside", "left out", "naive"):
        table.add_column(heading, justify="left" if heading in ("result", "unit") else "right")
    for o in found.outcomes:
        left, naive = found.left_out.get(o.row.name), o.naive
        marks = ("*" if o.row.fitted else "") + (" (a bound)" if o.row.bound else "")
        table.add_row(
            o.row.name + marks, o.unit, spread(o.predicted), short(o.published), f"{o.ratio:.2f}",
            "yes" if o.inside else "no", f"{left:.2f}" if left else "", f"{naive / o.published:.2f}" if naive else "",
        )  # fmt: skip
    console.print(table)
    console.print(
        "* helped to set a constant (published.toml names which). Left out: the ratio once the constants are set from "
        "the other rows. Naive: 40% of the BF16 peak on 6·N·D; serving: DeepSeek's fleet by memory bandwidth."
    )
    parts = {name: summarise(part) for name, part in groups(found).items()}
    parts["leave one out"] = summarise([o for o in found.judged if o.row.name in found.left_out], found.left_out)
    sums = Table(title="How far off", title_justify="left")
    for heading in ("rows", "n", "median |log|", "largest factor", "inside", "widest interval", "naive median"):
        sums.add_column(heading, justify="left" if heading == "rows" else "right")
    for name, part in parts.items():
        if part is not None:
            rule = f"{part.naive_median_log_error:.1%}" if part.naive_median_log_error is not None else ""
            sums.add_row(
                name, str(part.rows), f"{part.median_log_error:.1%}", f"{part.largest_factor:.2f}×",
                f"{part.inside:.0%}", f"{part.widest:.2f}×", rule,
            )  # fmt: skip
    console.print(sums)
    for name, why in found.failed.items():
        console.print(f"{name}: {why}", style="red")
