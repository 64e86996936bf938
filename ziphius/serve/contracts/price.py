"""What a request cost, and what the same tokens cost elsewhere. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date as Date

from ziphius.cost.data import Data
from ziphius.cost.rows import ApiPrice


@dataclass(frozen=True)
class Rate:
    """The machine's dollars per hour, and the list price to compare with where one was named."""

    dollars_per_hour: float = 0.0
    listed: ApiPrice | None = None

    @classmethod
    def of(cls, dollars_per_hour: float, price_list: str | None, day: Date) -> Rate:
        """With the price of the model `price_list` on `day`. Raises DataError for one that is not known."""
        return cls(dollars_per_hour, Data().api_price(price_list, day) if price_list is not None else None)

    def dollars(self, engine_seconds: float) -> float:
        return engine_seconds / 3600 * self.dollars_per_hour

    def list_dollars(self, hit_tokens: int, miss_tokens: int, output_tokens: int) -> float | None:
        """What the same tokens cost by the list; None where none was named."""
        if self.listed is None:
            return None
        return (
            hit_tokens * self.listed.hit + miss_tokens * self.listed.miss + output_tokens * self.listed.output
        ) / 1e6
