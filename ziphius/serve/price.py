"""What a request cost, and what the same tokens cost elsewhere. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ListPrice:
    """Dollars per million tokens: input found in a cache, other input, output."""

    model: str
    hit: float
    miss: float
    output: float

    def dollars(self, hit_tokens: int, miss_tokens: int, output_tokens: int) -> float:
        return (hit_tokens * self.hit + miss_tokens * self.miss + output_tokens * self.output) / 1e6


@dataclass(frozen=True)
class Rate:
    """The machine's dollars per hour, whence they come, and a list price to compare with, where one was named."""

    dollars_per_hour: float
    listed: ListPrice | None = None

    def dollars(self, engine_seconds: float) -> float:
        return engine_seconds / 3600 * self.dollars_per_hour
