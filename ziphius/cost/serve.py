"""The plan of serving a model: pools for prefill and decoding, batch, speed, latency, cost per million tokens, margin.

A pool's peak is what it does when it is full. A fleet's average is lower: nodes follow the hours of the day, and a
pool is never quite full; `utilisation` tells the one from the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ziphius.cost.data import Data
from ziphius.cost.flops import kv_bytes_per_token
from ziphius.cost.interval import Interval
from ziphius.cost.machine import BYTES
from ziphius.cost.money import Rate
from ziphius.cost.pools import DecodePlan, PrefillPlan, best_decode, best_prefill, prefill_of
from ziphius.cost.rows import ApiPrice
from ziphius.cost.workload import ServeRequest, Workload

HALF_WIDTHS = {"any": 0.22, "experts": 0.15, "blackwell": 0.10, "undated": 0.08}
WIDEST = math.log(1.41)
# Fleet average over full pools: DeepSeek's mean nodes are 0.82 of its peak nodes, and its 14.8K tokens a second and
# node are 0.66 of SGLang's 22.3K on full pools (open-infra-index day 6; lmsys 2025-05-05). The middle of the two.
UTILISATION = Interval(0.74, 0.62, 0.86)
DAY = 86400


@dataclass(frozen=True)
class ServePlan:
    """Peaks of full pools per device and node; costs and nodes at the fleet's average utilisation.

    A colocated pool's output counts the time that it reads; costs and devices split that time between reading and
    writing.
    """

    request: ServeRequest
    prefill: PrefillPlan
    decode: DecodePlan
    input_tokens_per_second_per_gpu: Interval
    output_tokens_per_second_per_gpu: Interval
    tokens_per_second_per_user: Interval
    time_to_first_token_seconds: Interval
    utilisation: Interval
    dollars_per_million_hit: Interval
    dollars_per_million_miss: Interval
    dollars_per_million_output: Interval
    rate: Rate
    gpus: Interval | None = None
    prefill_gpus: Interval | None = None
    decode_gpus: Interval | None = None
    dollars_per_day: Interval | None = None
    income_per_day: float | None = None
    margin: Interval | None = None


def serve_plan(
    request: ServeRequest, data: Data, rate: Rate, utilisation: Interval = UTILISATION, price: ApiPrice | None = None
) -> ServePlan:
    """Price `request`. Raises ValueError where no pool holds the model or is quick enough, naming the nearest."""
    serving = request.serving(data)
    decode = best_decode(request, serving)
    prefill = prefill_of(request, serving, decode.pool) if request.colocated else best_prefill(request, serving)
    assert prefill is not None  # a colocated pool that writes can read
    error = math.exp(_half_width(request))
    work = request.workload
    read = Interval.within(prefill.tokens_per_second, error)
    written = Interval.within(decode.alone_tokens_per_second, error)
    per_second = rate.dollars.scaled(1 / 3600)
    useful = utilisation
    miss = per_second.times(read.times(useful).inverse(1e6))
    output = per_second.times(written.times(useful).inverse(1e6))
    fetch = kv_bytes_per_token(request.shape, BYTES[request.kv_precision]) / serving.machine.nic()
    hit = per_second.times(Interval.within(fetch, 1.5)).times(useful.inverse()).scaled(1e6)
    found: dict[str, Interval | float | None] = {}
    if work.requests_per_second is not None:
        new = work.requests_per_second * work.input * (1 - work.hit)
        prefill_gpus = read.times(useful).inverse(new) if new else Interval.exactly(0.0)
        decode_gpus = written.times(useful).inverse(work.requests_per_second * work.output)
        gpus = prefill_gpus.plus(decode_gpus)
        day = gpus.times(rate.dollars).scaled(24)
        found = {"gpus": gpus, "prefill_gpus": prefill_gpus, "decode_gpus": decode_gpus, "dollars_per_day": day}
        if price is not None:
            income = _income(work, price)
            gain = day.inverse(income)
            found |= {
                "income_per_day": income,
                "margin": Interval(gain.point - 1, gain.low - 1, gain.high - 1),
            }
    return ServePlan(
        request=request,
        prefill=prefill,
        decode=decode,
        input_tokens_per_second_per_gpu=read,
        output_tokens_per_second_per_gpu=Interval.within(decode.tokens_per_second, error),
        tokens_per_second_per_user=Interval.within(decode.user_speed, error),
        time_to_first_token_seconds=Interval.within(prefill.first_token_seconds, error),
        utilisation=utilisation,
        dollars_per_million_hit=hit,
        dollars_per_million_miss=miss,
        dollars_per_million_output=output,
        rate=rate,
        **found,  # type: ignore[arg-type]
    )


def _income(work: Workload, price: ApiPrice) -> float:
    """Dollars a day if every token is paid at the list price."""
    requests = (work.requests_per_second or 0) * DAY / 1e6
    read = work.input * (work.hit * price.hit + (1 - work.hit) * price.miss)
    return requests * (read + work.output * price.output)


def _half_width(request: ServeRequest) -> float:
    reasons = {
        "any": True,
        "experts": request.shape.experts > 0,
        "blackwell": request.accelerator.architecture.startswith("blackwell"),
        "undated": request.software is None,
    }
    return min(WIDEST * 0.98, math.hypot(*(HALF_WIDTHS[name] for name, holds in reasons.items() if holds)))
