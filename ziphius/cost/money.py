"""What a GPU-hour costs to rent, to own and to power."""

from __future__ import annotations

from dataclasses import dataclass

from ziphius.cost.data import Data
from ziphius.cost.interval import Interval
from ziphius.cost.rows import Accelerator

HOURS_PER_YEAR = 8760


@dataclass(frozen=True)
class Rate:
    """Dollars per GPU-hour and where they come from."""

    dollars: Interval
    what: str


def rental_rate(accelerator: Accelerator, data: Data, dollars: float | None = None, market: str | None = None) -> Rate:
    """The rate that was given, or the first quote of the tables. Raises DataError where there is none."""
    if dollars is not None:
        return Rate(Interval.exactly(dollars), f"${dollars:g} per GPU-hour as given")
    row = data.rental(accelerator.name, market)
    low, high = row.low or row.dollars_per_hour, row.high or row.dollars_per_hour
    point = row.dollars_per_hour
    return Rate(Interval(point, low, high), f"${point:g} per GPU-hour, {row.market}, {row.date} ({row.source})")


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
