"""The gauges of a stage over its steps, and what a check finds in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from ziphius.model.config import Routing
from ziphius.reason.advice import Change

WINDOW = 8  # readings that make one judgement; what a run began with is its first window
ON_TOKENS = ("entropy", "clipped", "kl", "mismatch", "load_violation")  # say nothing where the loss had no tokens


@dataclass(frozen=True)
class Context:
    """What the rows cannot tell: `guess`, the accuracy of giving the commonest answer to everything; `worst_violation`,
    the load violation of a router that always picks the same experts (experts / experts per token − 1)."""

    guess: float = 0.1
    worst_violation: float | None = None

    @classmethod
    def of(cls, rule: Routing | None) -> Context:
        """What the network's routing tells."""
        return cls(worst_violation=None if rule is None else rule.experts / rule.top_k - 1)


@dataclass(frozen=True)
class Finding:
    """One illness at a step: what was seen, in numbers, and which settings mend it, in words and as changes."""

    name: str
    step: int
    severity: Literal["warning", "ill"]
    what: str
    mend: str
    changes: tuple[Change, ...] = ()

    def __str__(self) -> str:
        return f"step {self.step}: {self.name} ({self.severity}): {self.what} {self.mend}"


def reading(row: Mapping[str, Any], key: str) -> float | None:
    """A gauge's finite value in a row of metrics; None where that step has none to show."""
    value = row.get(key)
    idle = not row.get("entropy") and not row.get("mismatch")
    if not isinstance(value, (int, float)) or not math.isfinite(value) or (idle and key in ON_TOKENS):
        return None
    return value


class Chart:
    """The gauges over the steps: each one's finite values, where it was read."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], context: Context) -> None:
        self.context = context
        self.rows = rows
        self.step = int(rows[-1]["step"]) if rows else 0
        self.gauges: dict[str, list[float]] = {}
        for row in rows:
            for key in row:
                if (value := reading(row, key)) is not None:
                    self.gauges.setdefault(key, []).append(value)

    def window(self, key: str, end: int | None = None) -> list[float]:
        """The `WINDOW` readings of a gauge up to its reading `end`, its last by default; none where there are fewer."""
        values = self.gauges.get(key, [])[:end]
        return values[-WINDOW:] if len(values) >= WINDOW else []

    def now(self, key: str) -> float | None:
        """Mean over the last window."""
        return fmean(values) if (values := self.window(key)) else None

    def change(self, key: str) -> tuple[float, float] | None:
        """Means over the first window and the last; None while the two would overlap."""
        if len(self.gauges.get(key, [])) < 2 * WINDOW:
            return None
        return fmean(self.window(key, WINDOW)), fmean(self.window(key))

    def finding(self, name: str, ill: bool, what: str, mend: str, *changes: Change) -> Finding:
        return Finding(name, self.step, "ill" if ill else "warning", what, mend, changes)
