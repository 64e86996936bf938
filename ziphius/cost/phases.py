"""Several phases of one training as one plan: pretraining, longer contexts, fine-tuning."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import reduce
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ziphius.cost.data import Data
from ziphius.cost.interval import Interval
from ziphius.cost.layout import Layout, Recompute, Schedule, parse_layout
from ziphius.cost.money import Rate
from ziphius.cost.train import TrainPlan, TrainRequest, train_plan


class Phase(BaseModel):
    """One phase: its tokens, and what differs from the command line's settings."""

    model_config = ConfigDict(extra="forbid")

    name: str
    tokens: float = Field(gt=0)
    seq: int | None = Field(None, gt=1)
    batch: int | None = Field(None, gt=0)
    gpus: int | None = Field(None, gt=0)
    parallel: str | None = None
    schedule: Schedule | None = None
    recompute: Recompute | None = None
    published_gpu_hours: float | None = Field(None, gt=0)
    note: str = ""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    source: str = ""
    phase: list[Phase] = Field(min_length=1)


@dataclass(frozen=True)
class PhasesPlan:
    """Plans of the phases in order, and their sums."""

    phases: list[tuple[Phase, TrainPlan]]
    gpu_hours: Interval
    dollars: Interval
    energy_mwh: Interval
    days: Interval


def shipped_phases() -> list[str]:
    folder = files("ziphius.cost").joinpath("data", "phases")
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_phases(name: str) -> list[Phase]:
    """Phases that ship by name, or of a TOML file. Raises ValueError in one line."""
    if name in shipped_phases():
        text = files("ziphius.cost").joinpath("data", "phases", f"{name}.toml").read_text("utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text("utf-8")
    else:
        raise ValueError(f"--phases {name}: no such file; shipped are {', '.join(shipped_phases())}")
    try:
        return _File(**tomllib.loads(text)).phase
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name}: not readable as TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{name}: {place}: {first['msg']} (got {first['input']!r})") from None


def plan_phases(
    request: TrainRequest, layout: Layout, phases: list[Phase], data: Data, rate: Rate, must_fit: bool = True
) -> PhasesPlan:
    """Price each phase; errors name the phase."""
    plans = []
    for phase in phases:
        asked = replace(
            request,
            tokens=phase.tokens,
            seq=phase.seq or request.seq,
            batch=phase.batch or request.batch,
            gpus=phase.gpus or request.gpus,
        )
        spread = replace(
            layout, schedule=phase.schedule or layout.schedule, recompute=phase.recompute or layout.recompute
        )
        if phase.parallel:
            spread = parse_layout(phase.parallel, schedule=spread.schedule, recompute=spread.recompute)
        try:
            plans.append((phase, train_plan(asked, spread, data, rate, must_fit=must_fit)))
        except ValueError as error:
            raise ValueError(f"phase {phase.name!r}: {error}") from None

    def together(name: str) -> Interval:
        return reduce(Interval.plus, (getattr(plan, name) for _, plan in plans))

    return PhasesPlan(plans, *(together(name) for name in ("gpu_hours", "dollars", "energy_mwh", "days")))
