"""From the options of `ziphius plan serve` to a plan that is shown."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from ziphius.cost.data import Data
from ziphius.cost.decode import Pool
from ziphius.cost.interval import Interval
from ziphius.cost.money import rental_rate
from ziphius.cost.quantity import choice, parse_day, precision
from ziphius.cost.serve import UTILISATION, ServePlan, serve_plan
from ziphius.cost.shape import Shape
from ziphius.cost.workload import ServeRequest, Workload


@dataclass(frozen=True)
class ServeOptions:
    """The options as they were typed."""

    model: str
    gpu: str
    input: float = 2000
    output: float = 1000
    hit: float = 0.0
    context: float | None = None
    user_speed: float = 20.0
    ttft: float | None = None
    requests: float | None = None
    precision: str = "fp8"
    kv: str = "bf16"
    acceptance: float = 0.0
    prefill_gpus: int | None = None
    prefill_tp: int = 1
    decode_gpus: int | None = None
    decode_tp: int = 1
    colocated: bool = False
    concurrency: float | None = None
    utilisation: float | None = None
    price: str | None = None
    imbalance: float = 1.15
    software: str | None = None
    rate: float | None = None
    market: str | None = None
    data: tuple[Path, ...] | list[Path] = ()


def run_serve(options: ServeOptions, as_json: bool = False, html: Path | None = None) -> None:
    """Make the plan, print it, and write its page where one is asked for."""
    from ziphius.cost.serve_screen import serve_json, show_serve, write_serve_page

    plan = make_serve_plan(options)
    if html is not None:
        write_serve_page(plan, html, _speeds(options))
    print(json.dumps(serve_json(plan), indent=1)) if as_json else show_serve(plan)


def make_serve_plan(options: ServeOptions) -> ServePlan:
    """The plan. Raises ValueError in one line."""
    data = Data(options.data)
    accelerator, shape = data.accelerator(options.gpu), data.shape(options.model)
    if options.acceptance and not shape.mtp_layers:
        raise ValueError(f"--acceptance: {options.model} has no prediction module to draft with; leave it out")
    price = None
    if options.colocated and options.prefill_gpus:
        raise ValueError("--prefill-gpus: a colocated pool reads with its own devices; give --decode-gpus")
    if options.price is not None:
        model, at, day = options.price.partition("@")
        if not at:
            raise ValueError(f"--price {options.price}: write MODEL@DAY, for instance deepseek-r1@2025-02-28")
        price = data.api_price(model, parse_day(day, "--price"))
        if options.requests is None:
            raise ValueError("--price needs a demand to sell: give --requests")
    request = ServeRequest(
        model=options.model,
        shape=shape,
        accelerator=accelerator,
        workload=Workload(
            options.input, options.output, options.hit, options.context, options.user_speed, options.ttft,
            options.requests, options.concurrency,
        ),
        precision=precision(options.precision),
        kv_precision=choice(options.kv, ("bf16", "fp8"), "--kv"),
        acceptance=options.acceptance,
        software=parse_day(options.software, "--software") if options.software else None,
        imbalance=options.imbalance,
        prefill=_pool(shape, options.prefill_gpus, options.prefill_tp, "--prefill-gpus"),
        decode=_pool(shape, options.decode_gpus, options.decode_tp, "--decode-gpus"),
        colocated=options.colocated,
    )  # fmt: skip
    share = Interval.exactly(options.utilisation) if options.utilisation is not None else UTILISATION
    return serve_plan(request, data, rental_rate(accelerator, data, options.rate, options.market), share, price)


def _pool(shape: Shape, gpus: int | None, tp: int, option: str) -> Pool | None:
    if gpus is None:
        return None
    if not shape.experts:
        tp = gpus  # a dense model is cut over its whole pool
    if gpus % tp or shape.heads % tp:
        raise ValueError(f"{option} {gpus}: tensor parallelism {tp} must divide it and the {shape.heads} heads")
    return Pool.of(shape, gpus, tp)


def _speeds(options: ServeOptions) -> list[tuple[float, ServePlan]]:
    """The same plan for other speeds that a user must get, where one can be had."""
    found = []
    for speed in (5, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200):
        try:
            found.append((float(speed), make_serve_plan(replace(options, user_speed=speed, concurrency=None))))
        except ValueError:  # too fast for any pool
            continue
    return found
