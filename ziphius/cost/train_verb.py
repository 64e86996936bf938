"""From the options of `ziphius plan train` to a plan that is shown."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ziphius.cost.data import Data
from ziphius.cost.layout import RECOMPUTES, SCHEDULES, Layout, Schedule, parse_layout
from ziphius.cost.money import rental_rate
from ziphius.cost.quantity import choice, parse_amount, parse_day, precision
from ziphius.cost.step import STACKS
from ziphius.cost.train import TrainPlan, TrainRequest, train_plan

if TYPE_CHECKING:
    from ziphius.cost.phases import PhasesPlan
    from ziphius.cost.search import Search


@dataclass(frozen=True)
class TrainOptions:
    """The options as they were typed."""

    model: str
    gpu: str
    gpus: int
    tokens: str | None = None
    precision: str = "bf16"
    parallel: str = "auto"
    seq: int = 4096
    batch: int | None = None
    microbatch: int | None = None
    schedule: str | None = None
    recompute: str = "auto"
    stack: str | None = None
    software: str | None = None
    mtp: bool = True
    imbalance: float = 1.05
    watts: float | None = None
    phases: str | None = None
    rate: float | None = None
    market: str | None = None
    data: tuple[Path, ...] | list[Path] = ()


def run_train(options: TrainOptions, as_json: bool = False, html: Path | None = None) -> None:
    """Make the plan, print it, and write its page where one is asked for."""
    from ziphius.cost.train_screen import phases_json, show_phases, show_train, train_json, write_train_page

    if options.phases:
        if html is not None:
            raise ValueError("--html shows one phase: leave --phases out")
        plans = plan_of_phases(options)
        print(json.dumps(phases_json(plans), indent=1)) if as_json else show_phases(plans)
        return
    plan, search = make_plan(options)
    if html is not None:
        write_train_page(plan, html, _scaling(options, plan), search)
    print(json.dumps(train_json(plan, search), indent=1)) if as_json else show_train(plan, search)


def make_plan(options: TrainOptions) -> tuple[TrainPlan, Search | None]:
    """The plan, and the search that found its layout where none was given. Raises ValueError in one line."""
    data = Data(options.data)
    request = _request(options, data, options.tokens)
    rate = rental_rate(request.accelerator, data, options.rate, options.market)
    from ziphius.cost.search import complete_layout, search_layouts

    if options.parallel != "auto":
        stage, how = "zero" not in options.parallel and "fsdp" not in options.parallel, options.recompute == "auto"
        layout = complete_layout(request, _layout(options), data, stage, how)
        return train_plan(request, layout, data, rate), None
    schedule = choice(options.schedule, SCHEDULES, "--schedule") if options.schedule else None
    search = search_layouts(request, data, schedule)  # type: ignore[arg-type]
    return train_plan(request, search.best[0].layout, data, rate, searched=True), search


def plan_of_phases(options: TrainOptions) -> PhasesPlan:
    """The plan of several phases. Raises ValueError in one line."""
    from ziphius.cost.phases import load_phases, plan_phases

    data = Data(options.data)
    request = _request(options, data, options.tokens or "1")
    rate = rental_rate(request.accelerator, data, options.rate, options.market)
    layout = (
        _layout(options) if options.parallel != "auto" else Layout(schedule=_schedule(options), recompute="selective")
    )
    return plan_phases(request, layout, load_phases(options.phases or ""), data, rate)


def _request(options: TrainOptions, data: Data, tokens: str | None) -> TrainRequest:
    if tokens is None:
        raise ValueError("--tokens is missing: say how many, for instance --tokens 14.8T")
    shape = data.shape(options.model)
    return TrainRequest(
        model=options.model,
        shape=shape if options.mtp else replace(shape, mtp_layers=0),
        accelerator=data.accelerator(options.gpu),
        gpus=options.gpus,
        tokens=parse_amount(tokens, "--tokens"),
        seq=options.seq,
        batch=options.batch,
        precision=precision(options.precision),
        software=parse_day(options.software, "--software") if options.software else None,
        stack=choice(options.stack, STACKS, "--stack") if options.stack else _default_stack(options),  # type: ignore[arg-type]
        imbalance=options.imbalance if shape.experts else 1.0,
        watts=options.watts,
    )


def _default_stack(options: TrainOptions) -> str:
    """DualPipe is DeepSeek's own and comes with their kernels; so do their models on the GPUs that they have."""
    own = options.model.startswith("deepseek") and options.gpu.lower() == "h800"
    return "deepseek" if own or options.schedule == "dualpipe" else "tuned"


def _schedule(options: TrainOptions) -> Schedule:
    return choice(options.schedule or "1f1b", SCHEDULES, "--schedule")  # type: ignore[return-value]


def _layout(options: TrainOptions) -> Layout:
    recompute = choice(options.recompute, ("auto", *RECOMPUTES), "--recompute")
    how = "selective" if recompute == "auto" else recompute
    layout = parse_layout(options.parallel, schedule=_schedule(options), recompute=how)
    return replace(layout, microbatch=options.microbatch) if options.microbatch else layout


def _scaling(options: TrainOptions, plan: TrainPlan) -> list[tuple[int, TrainPlan]]:
    """The same run on a quarter to four times as many GPUs, each with its best layout, where one fits."""
    found = []
    for factor in (0.25, 0.5, 1, 2, 4):
        gpus = int(plan.request.gpus * factor)
        if gpus < 1:
            continue
        asked = replace(options, gpus=gpus, parallel="auto", batch=plan.batch, microbatch=None)
        try:
            found.append((gpus, plan if factor == 1 else make_plan(asked)[0]))
        except ValueError:  # too small for the model, or the batch does not divide
            continue
    return found
