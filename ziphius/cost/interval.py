"""A predicted quantity: a point and the 80% interval around it. Errors are relative, so they live on a log scale."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """`point` and the bounds `low` ≤ point ≤ `high` that hold the truth eight times in ten.

    Raises ValueError where the bounds do not contain the point.
    """

    point: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.point <= self.high:
            raise ValueError(f"an interval must contain its point: {self.low} ≤ {self.point} ≤ {self.high} is false")

    @classmethod
    def exactly(cls, value: float) -> Interval:
        """A value that is counted, not predicted."""
        return cls(value, value, value)

    @classmethod
    def within(cls, point: float, factor: float) -> Interval:
        """`point` known to a factor: from point / factor to point · factor."""
        return cls(point, point / factor, point * factor)

    def scaled(self, by: float) -> Interval:
        """The interval of `by` (≥ 0) times the quantity."""
        return Interval(self.point * by, self.low * by, self.high * by)

    def inverse(self, of: float = 1.0) -> Interval:
        """The interval of `of` divided by the quantity."""
        return Interval(of / self.point, of / self.high, of / self.low)

    def times(self, other: Interval) -> Interval:
        """The product of two independent quantities: log-widths add in quadrature."""
        point = self.point * other.point
        if point == 0:
            return Interval(0.0, 0.0, self.high * other.high)
        down = math.hypot(_log(self.point, self.low), _log(other.point, other.low))
        up = math.hypot(_log(self.high, self.point), _log(other.high, other.point))
        return Interval(point, point * math.exp(-down), point * math.exp(up))

    def plus(self, other: Interval) -> Interval:
        """The sum of quantities that err together, as parts priced by the same model do."""
        return Interval(self.point + other.point, self.low + other.low, self.high + other.high)

    def as_dict(self) -> dict[str, float]:
        """The form of every `--json`."""
        return {"point": self.point, "low": self.low, "high": self.high}


def _log(larger: float, smaller: float) -> float:
    return math.log(larger / smaller) if smaller > 0 else math.inf
