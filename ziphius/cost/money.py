"""What a GPU-hour costs to rent, to own and to power."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ziphius.cost.data import Data, DataError
from ziphius.cost.interval import Interval
from ziphius.cost.rows import Accelerator

HOURS_PER_YEAR = 8760
LIKENESS = 1.5  # how far a rate that is taken from another card may be off


@dataclass(frozen=True)
class Rate:
    """Dollars per GPU-hour and where they come from."""

    dollars: Interval
    what: str


def rental_rate(accelerator: Accelerator, data: Data, dollars: float | None = None, market: str | None = None) -> Rate:
    """The rate that was given, or the first quote of the tables, or a likeness of the nearest card's.

    The rate is a choice, not a prediction: the interval of dollars is that of the hours; a range of quotes is told.
    Only the likeness has an interval of its own. Raises DataError where `market` has no quote, or no card is alike.
    """
    if dollars is not None:
        return Rate(Interval.exactly(dollars), f"${dollars:g} per GPU-hour as given")
    if market is None and all(row.gpu != accelerator.name for row in data.rentals):
        return _like_another(accelerator, data)
    row = data.rental(accelerator.name, market)
    quotes = f", quotes from ${row.low:g} to ${row.high:g}" if row.low and row.high else ""
    what = f"${row.dollars_per_hour:g} per GPU-hour, {row.market}{quotes}, {row.date} ({row.source})"
    return Rate(Interval.exactly(row.dollars_per_hour), what)


def _like_another(accelerator: Accelerator, data: Data) -> Rate:
    """The newest quote of a card of the same family, by the mean of the ratios of BF16 peaks and of bandwidths."""
    family = accelerator.architecture.split("-")[0]
    alike = [
        (row.date, row, other)
        for row in data.rentals
        if (other := data.accelerators.get(row.gpu)) is not None
        and other.architecture.split("-")[0] == family
        and not row.market.startswith("owned")
        and (other.nvlink_domain > 8) == (accelerator.nvlink_domain > 8)
    ]
    if not alike:
        raise DataError(f"no rental price of {accelerator.name} or a card like it; give --rate, or a row in --data")
    _, row, other = max(alike, key=lambda found: found[0])
    peaks = accelerator.bf16_tflops / other.bf16_tflops
    point = row.dollars_per_hour * math.sqrt(peaks * accelerator.memory_tb_s / other.memory_tb_s)
    why = f"no quote of {accelerator.name}, so {other.name}'s of {row.date} by peak and bandwidth"
    return Rate(Interval.within(point, LIKENESS), f"${point:.2f} per GPU-hour: {why}")


def energy_per_gpu_hour(accelerator: Accelerator, data: Data) -> Interval:
    """kWh that a busy device with its share of server, network and cooling draws in an hour."""
    draw = data.overheads["draw_of_tdp"].value
    return Interval.within(accelerator.all_in_watts / 1000 * draw, 1.2)


def owned_rate(accelerator: Accelerator, data: Data) -> Rate | None:
    """Dollars per hour of a device that one owns: an all-in quote, else its price, cluster overheads and loss of value.

    Price × server / (1 − interconnect) × depreciation per year / 8,760 h + energy, by Epoch's constants (arXiv
    2405.21015), good to a factor of 1.5. None where no table knows what the device costs.
    """
    quotes = [row for row in data.rentals if row.gpu == accelerator.name and row.market.startswith("owned")]
    if quotes:
        values = sorted(row.dollars_per_hour for row in quotes)
        middle = sum(values) / len(values)
        return Rate(Interval(middle, values[0] / 1.15, values[-1] * 1.15), f"owned, all in: {quotes[-1].source}")
    prices = [row for row in data.purchases if row.gpu == accelerator.name]
    if not prices:
        return None
    price, ratios = prices[-1], data.overheads
    server = ratios["server_per_chip"].value if price.part == "gpu" else 1.0
    capital = price.dollars * server / (1 - ratios["interconnect_share"].value)
    power = energy_per_gpu_hour(accelerator, data).point * data.energy[-1].dollars_per_kwh
    hour = capital * ratios["depreciation_per_year"].value / HOURS_PER_YEAR + power
    return Rate(Interval.within(hour, 1.5), f"owned: ${price.dollars:,.0f} a {price.part} ({price.source})")
