"""Which pools of devices read and write: batch, speed, and what limits them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ziphius.cost.decode import (
    PREFILL_TOKENS,
    RESERVED,
    Pool,
    Serving,
    cache_room,
    decode_seconds,
    prefill_seconds,
    weights_per_device,
)
from ziphius.cost.workload import ServeRequest

CLOSE = 0.97  # a smaller pool within 3% of the best is taken
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)  # of the largest batch that are tried
_WIDTHS = (1, 2, 4, 8, 16, 32, 64, 72, 144, 288, 320)


@dataclass(frozen=True)
class PrefillPlan:
    """A full prefill pool: new tokens per second and device."""

    pool: Pool
    tokens_per_second: float
    first_token_seconds: float


@dataclass(frozen=True)
class DecodePlan:
    """A full decoding pool: `sequences` a device at once, seconds a step, what limits the batch.

    In a colocated pool `step_seconds`, `tokens_per_second` and `user_speed` include the reading of new requests between
    steps; `alone_tokens_per_second` never does.
    """

    pool: Pool
    sequences: float
    step_seconds: float
    tokens_per_second: float
    user_speed: float
    kv_tokens: float
    limit: str
    alone_tokens_per_second: float


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


def prefill_of(request: ServeRequest, serving: Serving, pool: Pool) -> PrefillPlan | None:
    """How fast `pool` reads; None where a request does not fit."""
    work = request.workload
    new = max(1.0, work.input * (1 - work.hit))
    context = work.input * work.hit + new / 2
    if cache_room(serving, pool) < work.input:
        return None
    tokens = float(PREFILL_TOKENS)
    speed = tokens / prefill_seconds(serving, pool, tokens, context) / pool.tp
    first = prefill_seconds(serving, pool, new, context) + decode_seconds(serving, pool, 1 / pool.tp, work.input)
    return PrefillPlan(pool, speed, first)


def best_prefill(request: ServeRequest, serving: Serving) -> PrefillPlan:
    """The fastest pool a device, or the smallest that is about as fast. Raises ValueError where none will do."""
    work = request.workload
    pools = candidate_pools(request, request.prefill)
    found = [plan for pool in pools if (plan := prefill_of(request, serving, pool))]
    if not found:
        raise ValueError(_does_not_fit(request, serving, request.prefill))
    limit = work.first_token_seconds
    quick = [plan for plan in found if limit is None or plan.first_token_seconds <= limit]
    if not quick:
        best = min(plan.first_token_seconds for plan in found)
        raise ValueError(f"no pool starts to answer within {limit:g} s: the quickest takes {best:.2f} s (--ttft)")
    top = max(plan.tokens_per_second for plan in quick)
    return min((p for p in quick if p.tokens_per_second >= CLOSE * top), key=lambda plan: plan.pool.gpus)


def best_decode(request: ServeRequest, serving: Serving) -> DecodePlan:
    """The pool that writes most a device, or the smallest that is about as good. Raises ValueError where none does."""
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
    """The batch that is asked for, or the best that memory and the user's speed allow; None where none fits."""
    work, room = request.workload, cache_room(serving, pool)
    most = room / work.mean_context
    asked = None if work.concurrency is None else work.concurrency / pool.groups
    if most < (asked or 1.0):
        return None
    reading = _reading_seconds(request, serving, pool) if request.colocated else 0.0
    if reading == math.inf:
        return None
    drafts, written = (1, 1 + request.acceptance) if request.acceptance > 0 else (0, 1.0)

    def alone(sequences: float) -> float:
        return decode_seconds(serving, pool, sequences / pool.tp, work.mean_context, drafts)

    def step(sequences: float) -> float:  # a request is read once while its answer takes output / written steps
        return alone(sequences) + reading * sequences * written / work.output

    if asked is not None:
        sequences, limit = asked, "what was asked for"
    else:
        sequences, limit = _largest(step, written / work.user_speed if work.user_speed else math.inf, most)
    seconds, own = step(sequences), sequences / pool.tp * written
    return DecodePlan(
        pool, sequences / pool.tp, seconds, own / seconds, written / seconds, room, limit, own / alone(sequences)
    )


def _reading_seconds(request: ServeRequest, serving: Serving, pool: Pool) -> float:
    """Seconds that a group of a colocated pool spends on reading one request; infinite where none fits."""
    found = prefill_of(request, serving, pool)
    if found is None:
        return math.inf
    return request.workload.input * (1 - request.workload.hit) / (found.tokens_per_second * pool.tp)


def _largest(step: Callable[[float], float], slowest: float, most: float) -> tuple[float, str]:
    """The best batch whose step takes at most `slowest` seconds, and what limits it."""
    sequences, limit = float(math.floor(most)), "memory for keys and values"
    if step(sequences) > slowest:
        low, high = 1.0, sequences
        while high - low > 0.5:
            middle = (low + high) / 2
            low, high = (middle, high) if step(middle) <= slowest else (low, middle)
        sequences, limit = float(math.floor(low)), "the user's speed"
    # a smaller batch can fill the last wave of tiles better
    tried = (float(math.ceil(sequences * share)) if share < 1 else sequences for share in _SHARES)
    return max(tried, key=lambda n: n / step(n)), limit


def _does_not_fit(request: ServeRequest, serving: Serving, given: Pool | None) -> str:
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
