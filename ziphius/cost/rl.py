"""The plan of a reinforcement-learning stage: rollouts, rewards, updates on the same devices, one after the other.

A rollout ends when its longest answer ends: with answers of up to 32,768 tokens the tail, not the mean, sets the time
(R1, Nature, Methods: 8,192 outputs a rollout, 16 mini-batches).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date as Date

from ziphius.cost.data import Data
from ziphius.cost.decode import Pool, Serving, cache_room, decode_seconds, prefill_seconds
from ziphius.cost.interval import Interval
from ziphius.cost.layout import parse_layout
from ziphius.cost.machine import BYTES, SUSTAINED, Machine
from ziphius.cost.money import Rate
from ziphius.cost.rows import Accelerator
from ziphius.cost.shape import Shape
from ziphius.cost.train import TrainRequest, train_plan

HALF_WIDTH = math.log(1.41) * 0.98  # lengths, stragglers and idle time are known to no better
SHORTEST_BATCH = 1.0  # sequences a device when only the tail is left
LOADS = 3.0  # forward, backward: the update's arithmetic in forward passes
SCORES = 2.0  # forward passes for the old policy's and the reference's log-probabilities


@dataclass(frozen=True)
class RLRequest:
    """`steps` updates of `questions` × `samples` answers of `mean_length` tokens, the longest of `max_length`.

    `rollout_outputs` answers are written before they are trained on. `reward_seconds`: checking one rollout's answers
    (compilers, tests, reward models) beyond what hides behind writing.
    """

    model: str
    shape: Shape
    accelerator: Accelerator
    gpus: int
    steps: int
    questions: int = 32
    samples: int = 16
    rollout_outputs: int = 8192
    prompt: float = 512
    mean_length: float = 6000
    max_length: float = 32768
    reward_seconds: float = 60.0
    precision: str = "fp8"
    acceptance: float = 0.0
    decode_gpus: int = 32
    parallel: str = "pp16,ep32,zero1"
    software: Date | None = None


@dataclass(frozen=True)
class RLPlan:
    """Seconds of one rollout cycle by part, and the stage's totals."""

    request: RLRequest
    parts: dict[str, float]
    cycles: float
    step_seconds: Interval
    gpu_hours: Interval
    days: Interval
    dollars: Interval
    generated_tokens: float
    rate: Rate


def rl_plan(request: RLRequest, data: Data, rate: Rate) -> RLPlan:
    """Price a stage. Raises ValueError where a pool, a layout or a batch does not fit."""
    outputs = request.rollout_outputs
    a_step = request.questions * request.samples
    if outputs % a_step:
        raise ValueError(f"a rollout of {outputs} outputs is no multiple of {a_step} a step (questions × samples)")
    cycles = request.steps * a_step / outputs
    machine = Machine(request.accelerator, data.software(request.software), None, SUSTAINED)
    machine.peak(request.precision)
    kernels = machine.with_deepseek_kernels() if request.shape.experts else machine
    serving = Serving(kernels, request.shape, request.precision, BYTES["bf16"], 1.15 if request.shape.experts else 1.0)
    pool = Pool.of(request.shape, request.decode_gpus, 1 if request.shape.experts else request.decode_gpus)
    if request.gpus % pool.gpus:
        raise ValueError(f"--decode-gpus {pool.gpus} does not divide the {request.gpus} GPUs; use a divisor")
    length = request.prompt + request.mean_length
    parts = {
        "rollout": _rollout_seconds(request, serving, pool),
        "rewards": request.reward_seconds,
        **_update_seconds(request, data, rate, outputs, length),
    }
    seconds = Interval.within(sum(parts.values()), math.exp(HALF_WIDTH))
    hours = seconds.scaled(cycles * request.gpus / 3600)
    return RLPlan(
        request=request,
        parts=parts,
        cycles=cycles,
        step_seconds=seconds.scaled(a_step / outputs),
        gpu_hours=hours,
        days=hours.scaled(1 / 24 / request.gpus),
        dollars=hours.times(rate.dollars),
        generated_tokens=request.steps * a_step * request.mean_length,
        rate=rate,
    )


def _rollout_seconds(request: RLRequest, serving: Serving, pool: Pool) -> float:
    """Prompts, then all answers at once while they are many, then the longest ones in small batches.

    Lengths are taken to fall off exponentially beyond the mean: after t tokens a share exp(−t / mean) still writes.
    """
    drafts, written = (1, 1 + request.acceptance) if request.acceptance else (0, 1.0)
    a_device = request.rollout_outputs / request.gpus
    most = cache_room(serving, pool) / pool.tp / (request.prompt + request.mean_length)
    if most < SHORTEST_BATCH / pool.tp:
        raise ValueError(
            f"{request.model} does not fit {pool.gpus} {request.accelerator.name} for rollouts: the weights leave no "
            "room for one answer; raise --decode-gpus"
        )
    waves = max(1.0, a_device / most)
    prompts = prefill_seconds(serving, pool, request.prompt * a_device * pool.tp / request.samples, request.prompt / 2)
    pieces, total = 16, 0.0
    for piece in range(pieces):  # the share still writing, in 16 stretches of the longest answer
        place = (piece + 0.5) / pieces * request.max_length
        alive = max(SHORTEST_BATCH / pool.gpus, a_device / waves * math.exp(-place / request.mean_length))
        step = decode_seconds(serving, pool, alive, request.prompt + place, drafts)
        total += request.max_length / pieces / written * step
    refill = (waves - 1) * request.mean_length / written
    full = decode_seconds(serving, pool, a_device / waves, request.prompt + request.mean_length / 2, drafts)
    return prompts + total + refill * full


def _update_seconds(request: RLRequest, data: Data, rate: Rate, outputs: int, length: float) -> dict[str, float]:
    """Training on a rollout's answers, and the log-probabilities of the old policy and of the reference."""
    layout = parse_layout(request.parallel, recompute="full")
    a_step = request.questions * request.samples
    seq = 1 << max(8, math.ceil(math.log2(length)))  # answers are packed into rows of this many tokens
    replicas = layout.data_parallel(request.gpus)
    rows = max(replicas, math.ceil(a_step * length / seq / replicas) * replicas)
    asked = TrainRequest(
        request.model, request.shape, request.accelerator, request.gpus, a_step * length, seq, rows,
        request.precision, request.software, "deepseek" if request.shape.experts else "tuned",
    )  # fmt: skip
    plan = train_plan(asked, layout, data, rate)
    updates = plan.step.total * outputs / a_step
    return {"update": updates, "log_probabilities": updates * SCORES / LOADS}
