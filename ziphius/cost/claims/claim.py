"""A claim with its arithmetic and verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date as Date
from enum import StrEnum
from functools import cached_property
from typing import Any

from ziphius.cost.claims.working import Number, Working, published
from ziphius.cost.data import Data
from ziphius.cost.fleet import Bill, Fleet, bills, load_fleet, total

R1_DAY = Date(2025, 1, 31)  # the price lists that the press compared


class Verdict(StrEnum):
    """What remains of a claim."""

    HOLDS = "holds"
    ONLY_FOR = "holds only for"
    UNKNOWN = "cannot be known"
    CONTRADICTED = "contradicted"


@dataclass(frozen=True)
class Claim:
    """`said` is the press's statement in short, `only_for` what it holds for, `because` the verdict in plain words."""

    name: str
    title: str
    who: str
    said: str
    verdict: Verdict
    because: str
    only_for: str = ""
    working: Working = field(default_factory=Working)

    @property
    def words(self) -> str:
        """The verdict in a line."""
        return f"{self.verdict} {self.only_for}" if self.only_for else str(self.verdict)

    def as_dict(self) -> dict[str, Any]:
        """The form of `ziphius claims --json`."""
        about = {key: getattr(self, key) for key in ("name", "title", "who", "said", "only_for", "because")}
        inputs = [{"name": name, **asdict(number)} for name, number in self.working.inputs.items()]
        steps = [
            {"what": s.label, "formula": s.formula, "value": s.result.value, "unit": s.result.unit}
            for s in self.working.steps
        ]
        return about | {"verdict": str(self.verdict), "inputs": inputs, "steps": steps}


class Evidence:
    """Everything published that the claims are held to. `changed` replaces inputs of claims.toml by name.

    Raises ValueError for a name that is no input.
    """

    def __init__(self, changed: Mapping[str, float] | None = None, data: Data | None = None) -> None:
        self.data = data or Data()
        self.inputs = dict(published())
        for name, value in (changed or {}).items():
            if name not in self.inputs:
                raise ValueError(f"no input is called {name!r}; there are {', '.join(sorted(self.inputs))}")
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
            old = self.inputs[name]
            self.inputs[name] = Number(value, old.unit, old.title, f"changed here, from {old} ({old.source})")

    def __getitem__(self, name: str) -> Number:
        return self.inputs[name]

    def rent(self, gpu: str, market: str) -> Number:
        """Dollars a GPU-hour on a market of prices.toml."""
        row = self.data.rental(gpu, market)
        about = f"{row.source} ({row.date})"
        return Number(row.dollars_per_hour, "$/h", f"rent of an {gpu.upper()}, {market}", about, row.confidence)

    def bf16_peak(self, gpu: str) -> Number:
        """FLOPs a second of one GPU in BF16, without sparsity."""
        row = self.data.accelerator(gpu)
        about = f"{row.source} ({row.date})"
        return Number(row.bf16_tflops * 1e12, "FLOPs/s", f"BF16 peak of an {gpu.upper()}", about, row.confidence)

    def price(self, model: str, part: str, day: Date = R1_DAY) -> Number:
        """List price per million tokens: `part` is hit, miss or output."""
        row = self.data.api_price(model, day)
        title = {"hit": "input from the cache", "miss": "input", "output": "output"}[part]
        return Number(
            getattr(row, part),
            "$ per million",
            f"{model}, {title}",
            f"{row.source} (since {row.since})",
            row.confidence,
        )

    @cached_property
    def fleet(self) -> Fleet:
        """The 60,000-GPU estimate."""
        return load_fleet()

    @cached_property
    def bills(self) -> dict[str, Bill]:
        """The estimate's bills by type of GPU, and `total`."""
        parts = bills(self.fleet)
        return {bill.name: bill for bill in parts} | {"total": total(parts)}

    def estimated(self, value: float, unit: str, title: str) -> Number:
        """A number that the fleet's arithmetic gives."""
        source = f"ziphius plan fleet, on the example of {self.fleet.source.partition(':')[0]}"
        return Number(value, unit, title, source, "computed")


def near(a: Number, b: Number, within: float) -> bool:
    """Whether two numbers agree to a factor of 1 + `within`."""
    return abs(math.log(a.value / b.value)) <= math.log1p(within)
