"""What one row of each data table holds. Every row says where its figures come from and of when they are."""

from __future__ import annotations

from datetime import date as Date
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Clock = Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]


class Row(BaseModel):
    """`confidence`: read in the primary source, second-hand, computed from such figures, or from memory."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # a plan uses few of these tables

    date: Date
    source: str = Field(min_length=4)
    confidence: Literal["read", "second-hand", "computed", "memory"] = "read"


class Accelerator(Row):
    """A device. Peaks and the best products measured (`*_reached`) are dense TFLOPS, memory is GB (10⁹ bytes) and TB/s,
    links are GB/s one way per device.

    `units` are streaming multiprocessors, or cores; `all_in_watts` adds the device's share of server, network and
    cooling. A device without `nvlink_gb_s` reaches others only by its network card.
    """

    name: Name
    title: str
    architecture: Literal["ampere", "hopper", "blackwell", "blackwell-ultra", "cpu"]
    bf16_tflops: Positive
    fp8_tflops: Positive | None = None
    fp4_tflops: Positive | None = None
    bf16_reached: Positive
    fp8_reached: Positive | None = None
    fp4_reached: Positive | None = None
    fp32_tflops: Positive
    memory_gb: Positive
    memory_tb_s: Positive
    nvlink_gb_s: Positive | None = None
    nvlink_domain: int = Field(1, ge=1)
    nic_gb_s: Positive
    watts: Positive
    all_in_watts: Positive
    units: int = Field(ge=1)


class ModelShape(Row):
    """A published network: keys of its `config.json`."""

    name: Name
    config: dict[str, str | int | float | bool]


class Software(Row):
    """What the software of a time reaches: see the head of software.toml for the meaning of each share."""

    flash_forward: dict[str, Share]
    flash_backward: dict[str, Share]
    grouped: Share
    traffic: Annotated[float, Field(ge=1)]
    tp_overlap: Share
    ep_overlap: Share
    dp_overlap: Share
    all_to_all: Share
    routing_traffic: Annotated[float, Field(ge=1)]
    dense_launches: Annotated[float, Field(ge=0)]
    moe_launches: Annotated[float, Field(ge=0)]
    moe_launches_rack: Annotated[float, Field(ge=0)]
    deduplicated: Share


class _Quoted(Row):
    """A figure with the range of its quotes, where there were several."""

    low: Positive | None = None
    high: Positive | None = None
    quotes: int | None = Field(None, ge=1)


class Rental(_Quoted):
    """What a GPU-hour costs, in dollars, on a `market`: assumed, on demand, contract, or owned all in."""

    gpu: Name
    market: str
    dollars_per_hour: Positive

    @model_validator(mode="after")
    def _in_range(self) -> Rental:
        _ordered(self.low, self.dollars_per_hour, self.high, "dollars_per_hour")
        return self


class Purchase(_Quoted):
    """What one GPU costs to buy, in dollars: the `gpu` itself, or its share of a `server`."""

    gpu: Name
    part: Literal["gpu", "server"]
    dollars: Positive

    @model_validator(mode="after")
    def _in_range(self) -> Purchase:
        _ordered(self.low, self.dollars, self.high, "dollars")
        return self


class Overhead(_Quoted):
    """A ratio that leads from chips to a cluster: see the row's source."""

    name: Name
    value: Positive

    @model_validator(mode="after")
    def _in_range(self) -> Overhead:
        _ordered(self.low, self.value, self.high, "value")
        return self


class Energy(Row):
    """Electricity for industry of one year."""

    region: Name
    year: int
    dollars_per_kwh: Positive


class ApiPrice(Row):
    """Dollars per million tokens of input that a cache held (`hit`), other input (`miss`) and output, from `since` on.

    With a `band`, `utc_from` and `utc_to` say at which time of day it holds.
    """

    provider: Name
    model: Name
    band: str = "all day"
    utc_from: Clock | None = None
    utc_to: Clock | None = None
    since: Date
    until: Date | None = None
    hit: Positive
    miss: Positive
    output: Positive

    @model_validator(mode="after")
    def _band_has_hours(self) -> ApiPrice:
        if (self.utc_from is None) != (self.utc_to is None) or (self.band != "all day") != (self.utc_from is not None):
            raise ValueError("a band needs both utc_from and utc_to, and hours need a band's name")
        if self.until is not None and self.until <= self.since:
            raise ValueError(f"until ({self.until}) must be after since ({self.since})")
        return self


def _ordered(low: float | None, point: float, high: float | None, name: str) -> None:
    if (low is not None and low > point) or (high is not None and high < point):
        raise ValueError(f"{name} ({point}) lies outside its own low ({low}) and high ({high})")
