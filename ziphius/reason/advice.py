"""A mend as changes of a recipe: what the doctor's sentences say, in a form that can be applied and so tested."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

LOWER_BY, RAISE_BY = 0.5, 1.5  # factors: small enough to see from the next run which way to go on


@dataclass(frozen=True)
class Change:
    """One setting to change: `key` below the table of the stage that is examined, or of the last one of `kind` before.

    `value`: what to `set`, or where to begin when what is to be raised is off (0, or not given). A value is raised to
    `most` at the highest.
    """

    key: str
    how: Literal["raise", "lower", "set"]
    value: Any = None
    most: float | None = None
    kind: Literal["pretrain", "sft"] | None = None

    def applied(self, present: Any) -> Any:
        """The new value, which is `present` where it cannot go further that way."""
        if self.how == "set":
            return self.value
        if not present:
            return self.value if self.how == "raise" else present
        if isinstance(present, int):
            return max(1, int(present * LOWER_BY)) if self.how == "lower" else -int(-present * RAISE_BY // 1)
        return float(f"{present * LOWER_BY:.4g}") if self.how == "lower" else self._raised(present)

    def _raised(self, present: float) -> float:
        raised = float(f"{present * RAISE_BY:.4g}")
        return raised if self.most is None else min(raised, self.most)


def higher(key: str, start: Any = None, most: float | None = None, kind: Literal["pretrain", "sft"] | None = None):
    return Change(key, "raise", start, most, kind)


def lower(key: str) -> Change:
    return Change(key, "lower")


def put(key: str, value: Any) -> Change:
    return Change(key, "set", value)


LOWER_LR = lower("train.optimizer.lr")
HOLD = higher("grpo.policy.kl_weight", start=0.001)  # R1-Zero's
MORE_SFT = higher("epochs", kind="sft")
BETTER_BASE = higher("train.gate_target", start=0.9, most=1.0, kind="pretrain")
FULL_PRECISION = put("train.precision", "fp32")
LONGER_WARM_UP = higher("train.schedule.warmup_steps", start=20)


def overrides(changes: Sequence[Change], stages: Mapping[str, Mapping[str, Any]], stage: str) -> Iterator[str]:
    """Each change as an argument of `--set` for the recipe with these `stages` (tables by name, in order), in which
    `stage` was examined. Changes that would change nothing, or whose stage the recipe lacks, are left out."""
    names = list(stages)
    before = names[: names.index(stage)]
    for change in changes:
        target = next((name for name in reversed(before) if stages[name]["kind"] == change.kind), None)
        target = stage if change.kind is None else target
        if target is None:
            continue
        present: Any = stages[target]
        for part in change.key.split("."):
            present = present.get(part)
        new = change.applied(present)
        if new != present:
            yield f"{target}.{change.key}={json.dumps(new)}"
