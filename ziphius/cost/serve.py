"""The plan of serving a model: pools for prefill and decoding, batch, speed, latency, cost per million tokens, margin.

A pool's peak is what it does when it is full. A fleet's average is lower: nodes follow the hours of the day, and a
pool is never quite full; `utilisation` tells the one from the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date as Date

from ziphius.cost.data import Data
from ziphius.cost.decode import PREFILL_TOKENS, Pool, Serving, cache_room, decode_seconds, prefill_seconds
from ziphius.cost.flops import kv_bytes_per_token
from ziphius.cost.interval import Interval
from ziphius.cost.machine import BYTES, SUSTAINED, Machine
from ziphius.cost.money import Rate
from ziphius.cost.rows import Accelerator, ApiPrice
from ziphius.cost.shape import Shape

HALF_WIDTHS = {"any": 0.22, "experts": 0.15, "blackwell": 0.10, "undated": 0.08}
WIDEST = math.log(1.41)
# Fleet average over full pools: DeepSeek's mean nodes are 0.82 of its peak nodes, and its 14.8K tokens a second and
# node are 0.66 of SGLang's 22.3K on full pools (open-infra-index day 6; lmsys 2025-05-05). The middle of the two.
UTILISATION = Interval(0.74, 0.62, 0.86)
CLOSE = 0.97  # a smaller pool within 3% of the best is taken
DAY = 86400
_WIDTHS = (1, 2, 4, 8, 16, 32, 64, 72, 144, 288, 320)


@dataclass(frozen=True)
class Workload:
    """Requests of `input` tokens, of which the share `hit` is cached, and `output` tokens written.

    `context` is the mean number of tokens attended to while writing. `user_speed`: tokens per second that a user must
    get at least. Demand is `requests_per_second`, the mean over the day.
    """

    input: float
    output: float
    hit: float = 0.0
    context: float | None = None
    user_speed: float = 20.0
    first_token_seconds: float | None = None
    requests_per_second: float | None = None

    @property
    def mean_context(self) -> float:
        return self.context if self.context is not None else self.input + self.output / 2


@dataclass(frozen=True)
class ServeRequest:
    """A model on devices, with its workload. `acceptance` is the share of drafted tokens kept (0: no drafting)."""

    model: str
    shape: Shape
    accelerator: Accelerator
    workload: Workload
    precision: str = "fp8"
    kv_precision: str = "bf16"
    acceptance: float = 0.0
    software: Date | None = None
    imbalance: float = 1.15
    prefill: Pool | None = None
    decode: Pool | None = None

    def serving(self, data: Data) -> Serving:
        """Raises ValueError for a precision that the device lacks."""
        machine = Machine(self.accelerator, data.software(self.software), None, SUSTAINED)
        machine.peak(self.precision)
        if self.shape.experts:  # the open servers use DeepSeek's kernels for experts (SGLang, vLLM)
            machine = machine.with_deepseek_kernels()
        imbalance = self.imbalance if self.shape.experts else 1.0
        return Serving(machine, self.shape, self.precision, BYTES[self.kv_precision], imbalance)


@dataclass(frozen=True)
class PrefillPlan:
    """A full prefill pool: new tokens per second and device."""

    pool: Pool
    tokens_per_second: float
    first_token_seconds: float


@dataclass(frozen=True)
class DecodePlan:
    """A full decoding pool: `sequences` a device at once, seconds a step, what limits the batch."""

    pool: Pool
    sequences: float
    step_seconds: float
    tokens_per_second: float
    user_speed: float
    kv_tokens: float
    limit: str


@dataclass(frozen=True)
class ServePlan:
    """Peaks of full pools per device and node; costs and nodes at the fleet's average utilisation."""

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
    prefill = _best_prefill(request, serving)
    decode = _best_decode(request, serving)
    error = math.exp(_half_width(request))
    work = request.workload
    read = Interval.within(prefill.tokens_per_second, error)
    written = Interval.within(decode.tokens_per_second, error)
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
        output_tokens_per_second_per_gpu=written,
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


def candidate_pools(request: ServeRequest, given: Pool | None) -> list[Pool]:
    """The pool that was given, or all sensible ones: tensor parallelism within a server, experts over many devices."""
    if given is not None:
        return [given]
    domain = min(8, request.accelerator.nvlink_domain)
    shape, found = request.shape, []
    for gpus in _WIDTHS:
        if gpus > 8 and not shape.experts:
            continue
        for tp in (1, 2, 4, 8):
            if tp <= min(domain, gpus) and gpus % tp == 0 and shape.heads % tp == 0 and (shape.experts or tp == gpus):
                pool = Pool.of(shape, gpus, tp)
                if gpus <= max(8, shape.experts + pool.redundant_experts):
                    found.append(pool)
    return found


def _best_prefill(request: ServeRequest, serving: Serving) -> PrefillPlan:
    work = request.workload
    new = max(1.0, work.input * (1 - work.hit))
    context = work.input * work.hit + new / 2
    found = []
    for pool in candidate_pools(request, request.prefill):
        if cache_room(serving, pool) < work.input:
            continue
        tokens = float(PREFILL_TOKENS)
        speed = tokens / prefill_seconds(serving, pool, tokens, context) / pool.tp
        first = prefill_seconds(serving, pool, new, context) + decode_seconds(serving, pool, 1 / pool.tp, work.input)
        found.append(PrefillPlan(pool, speed, first))
    if not found:
        raise ValueError(_does_not_fit(request, serving, request.prefill))
    limit = work.first_token_seconds
    quick = [plan for plan in found if limit is None or plan.first_token_seconds <= limit]
    if not quick:
        best = min(plan.first_token_seconds for plan in found)
        raise ValueError(f"no pool starts to answer within {limit:g} s: the quickest takes {best:.2f} s (--ttft)")
    top = max(plan.tokens_per_second for plan in quick)
    return min((p for p in quick if p.tokens_per_second >= CLOSE * top), key=lambda plan: plan.pool.gpus)


def _best_decode(request: ServeRequest, serving: Serving) -> DecodePlan:
    plans = [plan for pool in candidate_pools(request, request.decode) if (plan := _fill(request, serving, pool))]
    if not plans:
        raise ValueError(_does_not_fit(request, serving, request.decode))
    quick = [plan for plan in plans if plan.user_speed >= request.workload.user_speed * (1 - 1e-9)]
    if not quick:
        best = max(plan.user_speed for plan in plans)
        raise ValueError(
            f"no pool gives a user {request.workload.user_speed:g} tokens/s: the quickest gives {best:.1f} "
            "(--user-speed; drafting with --acceptance helps)"
        )
    top = max(plan.tokens_per_second for plan in quick)
    return min((p for p in quick if p.tokens_per_second >= CLOSE * top), key=lambda plan: plan.pool.gpus)


def _fill(request: ServeRequest, serving: Serving, pool: Pool) -> DecodePlan | None:
    """The largest batch that memory and the user's speed allow; None where not even one sequence fits."""
    work = request.workload
    room = cache_room(serving, pool)
    most = room / work.mean_context
    if most < 1:
        return None
    drafts = 1 if request.acceptance > 0 else 0
    written = 1 + request.acceptance

    def step(sequences: float) -> float:
        return decode_seconds(serving, pool, sequences / pool.tp, work.mean_context, drafts)

    sequences, limit = float(math.floor(most)), "memory for keys and values"
    if written / step(sequences) < work.user_speed:
        low, high = 1.0, sequences
        while high - low > 0.5:
            middle = (low + high) / 2
            low, high = (middle, high) if written / step(middle) >= work.user_speed else (low, middle)
        sequences, limit = float(math.floor(low)), "the user's speed"
    seconds = step(sequences)
    return DecodePlan(
        pool, sequences / pool.tp, seconds, sequences / pool.tp * written / seconds, written / seconds, room, limit
    )


def _does_not_fit(request: ServeRequest, serving: Serving, given: Pool | None) -> str:
    from ziphius.cost.decode import RESERVED, weights_per_device

    pools = candidate_pools(request, given)
    least = min(pools, key=lambda pool: weights_per_device(serving, pool))
    need = weights_per_device(serving, least) / 1e9
    have = request.accelerator.memory_gb * (1 - RESERVED)
    tokens = request.workload.input + request.workload.output
    return (
        f"{request.model} in {request.precision} does not fit {least.gpus} {request.accelerator.name}: weights take "
        f"{need:.1f} GB of a device's usable {have:.1f}, which leaves no room for a request of {tokens:,.0f} tokens; "
        "use more devices a pool (--decode-gpus, --prefill-gpus), --precision fp8, or a larger accelerator"
    )
