"""Learning rates and batch sizes over a run."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Schedule(BaseModel):
    """Learning rate as a fraction of its peak.

    - `constant`: warm-up, then flat.
    - `cosine`: warm-up, then a cosine to `floor` at the last step.
    - `wsd`: warm-up, flat, then a straight line to `floor` over the last `decay` of the steps
      (warm-up–stable–decay, Hu et al. 2024, arXiv 2404.06395). A stage that ends early by its gate decays from there.
    - `deepseek_v3`: warm-up, flat until `constant_until`, cosine to `floor` until `cosine_until`, then the two-step
      tail: `floor` until `tail_until`, `last` to the end (V3 §4.2: 10T, 14.3T and 14.633T of 14.8T tokens;
      2.2e-4, 2.2e-5 and 7.3e-6).

    `warmup_steps` left out: a tenth of the steps, at most 20.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Literal["constant", "cosine", "wsd", "deepseek_v3"] = "wsd"
    warmup_steps: int | None = Field(None, ge=0)
    floor: float = Field(0.1, ge=0, le=1)
    decay: float = Field(0.2, gt=0, le=1)
    constant_until: float = Field(10 / 14.8, ge=0, le=1)
    cosine_until: float = Field(14.3 / 14.8, ge=0, le=1)
    tail_until: float = Field(14.633 / 14.8, ge=0, le=1)
    last: float = Field(7.3e-6 / 2.2e-4, ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> Schedule:
        if not self.constant_until <= self.cosine_until <= self.tail_until:
            raise ValueError("constant_until, cosine_until and tail_until must rise in this order")
        return self

    def warmup(self, steps: int) -> int:
        """Length of the warm-up of a run of `steps`."""
        return min(20, steps // 10) if self.warmup_steps is None else self.warmup_steps

    def decay_steps(self, steps: int) -> int:
        """Length of `wsd`'s decay when the run was planned for `steps`."""
        return max(1, round(self.decay * steps)) if self.kind == "wsd" else 0

    def factor(self, step: int, steps: int, decay_from: int | None = None) -> float:
        """Fraction of the peak for step `step` (0-based) of `steps`; `decay_from`: where `wsd` began its decay."""
        warmup = self.warmup(steps)
        if step < warmup:
            return (step + 1) / warmup
        match self.kind:
            case "constant":
                return 1.0
            case "cosine":
                span = max(1, steps - warmup)
                return _cosine(self.floor, (step + 1 - warmup) / span)
            case "wsd":
                length = self.decay_steps(steps)
                start = steps - length if decay_from is None else decay_from
                return 1.0 - (1.0 - self.floor) * min(1.0, max(0.0, (step + 1 - start) / length))
        done = step / steps
        if done < self.constant_until:
            return 1.0
        if done < self.cosine_until:
            return _cosine(self.floor, (done - self.constant_until) / (self.cosine_until - self.constant_until))
        return self.floor if done < self.tail_until else self.last


def _cosine(floor: float, progress: float) -> float:
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def batch_rows(step: int, rows: int, first_rows: int | None, warmup_steps: int) -> int:
    """Rows of step `step`: a straight line from `first_rows` to `rows` over `warmup_steps` (V3 §4.2: 3072 to 15360)."""
    if first_rows is None or step >= warmup_steps:
        return rows
    return round(first_rows + (rows - first_rows) * step / warmup_steps)
