"""What a fleet of GPUs costs to buy and to run, and what share of it a list of jobs takes. Imports no torch.

Total cost of ownership = capital + operation over `years`. Capital by GPU: chip, rest of the server, network, and a
facility by kilowatt where the owner builds one. Operation by site: energy = kW × draw × PUE × hours × $/kWh, hosting by
kilowatt and month, people. Cost per GPU-hour = (share of capital written off in `years` + operation) / hours used.
"""

from __future__ import annotations

import calendar
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date as Date
from datetime import timedelta
from functools import reduce
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ziphius.cost.interval import Interval

HOURS_PER_YEAR = 8766.0  # 365.25 days
EXAMPLE = "deepseek-2025.toml"
KINDS = ("training", "research", "serving", "modelling", "other")


class FleetError(ValueError):
    """A fleet's file cannot be used; the message names the key and the mend."""


def _amount(value: Any) -> Any:
    """A number, or a table of point, low and high (low and high default to the point)."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Interval.exactly(float(value))
    if isinstance(value, dict) and "point" in value and set(value) <= {"point", "low", "high"}:
        point = float(value["point"])
        return Interval(point, float(value.get("low", point)), float(value.get("high", point)))
    if isinstance(value, Interval):
        return value
    raise ValueError("an amount is a number, or { point = …, low = …, high = … }")


def _not_negative(value: Interval) -> Interval:
    if value.low < 0:
        raise ValueError("an amount must not be negative")
    return value


Amount = Annotated[Interval, BeforeValidator(lambda value: _not_negative(_amount(value)))]
NOTHING = Interval.exactly(0.0)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, defer_build=True)


class Depreciation(_Strict):
    """`straight-line` from the price to `residual` (a share of it) over `years`, or `declining` by `rate` a year."""

    method: Literal["straight-line", "declining"] = "straight-line"
    years: float = Field(4.0, gt=0)
    residual: float = Field(0.0, ge=0, lt=1)
    rate: float = Field(0.32, gt=0, lt=1)

    def value(self, age: float) -> float:
        """Share of the price that is left after `age` years."""
        if self.method == "declining":
            return (1 - self.rate) ** age
        return 1 - (1 - self.residual) * min(age / self.years, 1.0)


class Site(_Strict):
    """A place with power. `draw` is the mean share of the rating that is drawn; `pue` what cooling adds."""

    title: str = ""
    dollars_per_kwh: Amount
    pue: Amount = Interval.exactly(1.25)
    draw: float = Field(0.75, gt=0, le=1)
    hosting_dollars_per_kw_month: Amount = NOTHING
    people_dollars_per_year: Amount = NOTHING
    facility_dollars_per_kw: Amount = NOTHING


class Group(_Strict):
    """GPUs of one type at one site, in service from `since`; amounts in dollars a GPU, `kilowatts` with its server."""

    type: str
    site: str
    count: int = Field(gt=0)
    since: Date | None = None
    chip_dollars: Amount
    server_dollars: Amount = NOTHING
    network_dollars: Amount = NOTHING
    kilowatts: float = Field(gt=0)


class Job(_Strict):
    """Work on GPUs of one type between two days (both included): `gpus` all the time, or `gpu_hours` in all."""

    name: str
    kind: Literal["training", "research", "serving", "modelling", "other"]
    gpu: str
    gpus: float | None = Field(None, gt=0)
    gpu_hours: float | None = Field(None, gt=0)
    from_: Date = Field(alias="from")
    to: Date
    source: str = ""

    @model_validator(mode="after")
    def _one_of(self) -> Job:
        if (self.gpus is None) == (self.gpu_hours is None):
            raise ValueError(f"job {self.name!r}: give either gpus (all the time) or gpu_hours (in all)")
        if self.to < self.from_:
            raise ValueError(f"job {self.name!r}: to ({self.to}) is before from ({self.from_})")
        return self

    def hours_on(self, first: Date, last: Date) -> float:
        """GPU-hours between two days, both included; hours given in all are spread evenly."""
        days = (min(last, self.to) - max(first, self.from_)).days + 1
        if days <= 0:
            return 0.0
        if self.gpus is not None:
            return self.gpus * 24 * days
        assert self.gpu_hours is not None
        return self.gpu_hours * days / ((self.to - self.from_).days + 1)


class Fleet(_Strict):
    """A fleet's file."""

    name: str
    source: str = ""
    years: float = Field(4.0, gt=0)
    depreciation: Depreciation = Depreciation()
    sites: dict[str, Site]
    gpus: list[Group] = Field(min_length=1)
    jobs: list[Job] = []

    @model_validator(mode="after")
    def _hangs_together(self) -> Fleet:
        types = {group.type for group in self.gpus}
        for group in self.gpus:
            if group.site not in self.sites:
                raise ValueError(
                    f"gpus {group.type!r} stand at site {group.site!r}; [sites] has {', '.join(self.sites)}"
                )
        for job in self.jobs:
            if job.gpu not in types:
                raise ValueError(f"job {job.name!r} needs {job.gpu!r}; the fleet has {', '.join(sorted(types))}")
        return self


def load_fleet(path: Path | None = None) -> Fleet:
    """The fleet of a file, or the example that comes with the package. Raises FleetError in one line."""
    where = str(path) if path else EXAMPLE
    try:
        text = path.read_text() if path else example_text()
        return Fleet(**tomllib.loads(text))
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(f"{where}: {getattr(error, 'strerror', None) or error}; give a fleet's TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise FleetError(f"{where}: not readable as TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        what = {
            "extra_forbidden": "is no setting here; remove it or mend its spelling",
            "missing": "is missing; add it",
        }
        message = what.get(first["type"]) or first["msg"].removeprefix("Value error, ")
        raise FleetError(f"{where}: {key}{' ' if first['type'] in what else ': ' if key else ''}{message}") from None


def example_text() -> str:
    """The example's file, to be copied and changed."""
    return files("ziphius.cost").joinpath("data", "fleets", EXAMPLE).read_text("utf-8")


# --- cost ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bill:
    """What a group of GPUs, or the fleet, costs over the fleet's years; dollars."""

    name: str
    site: str
    count: int
    chips: Interval
    servers: Interval
    network: Interval
    facility: Interval
    energy: Interval
    hosting: Interval
    people: Interval
    hours: float  # of all its GPUs over the years, used or not

    @property
    def capex(self) -> Interval:
        return add([self.chips, self.servers, self.network, self.facility])

    @property
    def opex(self) -> Interval:
        return add([self.energy, self.hosting, self.people])

    @property
    def tco(self) -> Interval:
        return self.capex.plus(self.opex)

    def dollars_per_gpu_hour(self, utilisation: float = 1.0, written_off: float = 1.0) -> Interval:
        """Of an hour in use, when `written_off` of the capital is lost in the years."""
        return self.capex.scaled(written_off).plus(self.opex).scaled(1 / (self.hours * utilisation))


def bills(fleet: Fleet) -> list[Bill]:
    """One bill a group; a site's people are shared among its groups by power."""
    return [_bill(fleet, group) for group in fleet.gpus]


def total(parts: list[Bill], name: str = "total") -> Bill:
    """The bills added up."""
    names = ("chips", "servers", "network", "facility", "energy", "hosting", "people")
    sums = {key: add([getattr(part, key) for part in parts]) for key in names}
    return Bill(name, "", sum(part.count for part in parts), hours=sum(part.hours for part in parts), **sums)


def _bill(fleet: Fleet, group: Group) -> Bill:
    site, kilowatts = fleet.sites[group.site], group.count * group.kilowatts
    at_site = sum(other.count * other.kilowatts for other in fleet.gpus if other.site == group.site)
    hours = HOURS_PER_YEAR * fleet.years
    return Bill(
        name=group.type,
        site=group.site,
        count=group.count,
        chips=group.chip_dollars.scaled(group.count),
        servers=group.server_dollars.scaled(group.count),
        network=group.network_dollars.scaled(group.count),
        facility=site.facility_dollars_per_kw.scaled(kilowatts),
        energy=site.dollars_per_kwh.times(site.pue).scaled(kilowatts * site.draw * hours),
        hosting=site.hosting_dollars_per_kw_month.scaled(kilowatts * 12 * fleet.years),
        people=site.people_dollars_per_year.scaled(fleet.years * kilowatts / at_site),
        hours=group.count * hours,
    )


def add(parts: list[Interval]) -> Interval:
    return reduce(Interval.plus, parts)


# --- use -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Month:
    """GPU-hours of one calendar month: what the fleet has, what each job takes, and types asked for more than exist."""

    first: Date
    capacity: dict[str, float]  # by type
    used: dict[str, float]  # by job
    by_kind: dict[str, float]
    overbooked: dict[str, float]  # type: hours asked for over hours there are

    @property
    def free(self) -> float:
        """Share of the fleet that no job in the file takes."""
        return 1 - sum(self.by_kind.values()) / sum(self.capacity.values())

    def share(self, kind: str) -> float:
        """Share of the fleet's GPU-hours that jobs of a kind take."""
        return self.by_kind.get(kind, 0.0) / sum(self.capacity.values())


def months(fleet: Fleet) -> list[Month]:
    """The calendar months from the first job's first day to the last one's last day, but for those without any GPU."""
    if not fleet.jobs:
        return []
    span = min(job.from_ for job in fleet.jobs), max(job.to for job in fleet.jobs)
    found = [_month(fleet, first, last) for first, last in _calendar(*span)]
    return [month for month in found if sum(month.capacity.values())]


def _month(fleet: Fleet, first: Date, last: Date) -> Month:
    capacity: dict[str, float] = {}
    for group in fleet.gpus:
        days = (last - max(first, group.since or first)).days + 1
        capacity[group.type] = capacity.get(group.type, 0.0) + group.count * 24 * max(days, 0)
    used = {job.name: job.hours_on(first, last) for job in fleet.jobs}
    by_kind: dict[str, float] = {}
    by_type: dict[str, float] = {}
    for job in fleet.jobs:
        by_kind[job.kind] = by_kind.get(job.kind, 0.0) + used[job.name]
        by_type[job.gpu] = by_type.get(job.gpu, 0.0) + used[job.name]
    over = {
        gpu: asked / capacity[gpu] if capacity[gpu] else float("inf")
        for gpu, asked in by_type.items()
        if asked > capacity[gpu] * (1 + 1e-9)
    }
    return Month(first, capacity, used, by_kind, over)


def _calendar(first: Date, last: Date) -> Iterator[tuple[Date, Date]]:
    """First and last day of each month from the one of `first` to the one of `last`."""
    day = first.replace(day=1)
    while day <= last:
        end = day.replace(day=calendar.monthrange(day.year, day.month)[1])
        yield day, end
        day = end + timedelta(days=1)
