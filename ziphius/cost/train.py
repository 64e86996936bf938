"""The plan of a training run: step time, memory, speed, hours, energy and money, each with its 80% interval."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import date as Date

from ziphius.cost.data import Data
from ziphius.cost.flops import count_parameters, train_flops_per_token
from ziphius.cost.interval import Interval
from ziphius.cost.layout import Layout
from ziphius.cost.machine import SUSTAINED, Machine
from ziphius.cost.memory import capacity, memory_parts
from ziphius.cost.money import Rate, energy_per_gpu_hour, owned_rate
from ziphius.cost.rows import Accelerator
from ziphius.cost.shape import Shape
from ziphius.cost.step import PYTORCH, Job, Stack, StepTime, step_time

GIB = 2**30
# A search picks its own errors too. On the published rows of expert models the layouts that it finds are faster than
# what was run; dense ones are not.
SEARCH_OPTIMISM = 0.08
MEMORY_FACTOR = 1.15  # the 80% interval of memory; what is too large by less may fit
WIDEST = math.log(1.41)  # an interval wider than a factor of two says nothing

# Half-widths of 80% intervals on a log scale, added in quadrature: how far off the accuracy table is for such rows.
HALF_WIDTHS = {
    "any": 0.17,
    "experts": 0.20,
    "blackwell": 0.10,
    "pytorch": 0.17,
    "auto": 0.08,
    "undated": 0.08,
    "cpu": 0.3,
}


@dataclass(frozen=True)
class TrainRequest:
    """What is asked: a model of `shape` on `gpus` of `accelerator`, `tokens` in sequences of `seq`, `batch` a step."""

    model: str
    shape: Shape
    accelerator: Accelerator
    gpus: int
    tokens: float
    seq: int = 4096
    batch: int | None = None
    precision: str = "bf16"
    software: Date | None = None
    stack: Stack = "tuned"
    imbalance: float = 1.05
    watts: float | None = None

    def job(self, data: Data, batch: int) -> Job:
        """The job of one step of `batch` sequences. Raises ValueError for a precision that the device lacks."""
        machine = Machine(self.accelerator, data.software(self.software), self.watts, SUSTAINED)
        machine.peak(self.precision)
        return Job(self.shape, machine, self.gpus, self.seq, batch, self.precision, self.imbalance, self.stack)


@dataclass(frozen=True)
class TrainPlan:
    """What a run takes. Seconds by part are points; every total is an Interval. `mfu_basis` names its basis."""

    request: TrainRequest
    layout: Layout
    batch: int
    step: StepTime
    memory_bytes: dict[str, float]
    memory_gib: Interval
    capacity_gib: float
    step_seconds: Interval
    tokens_per_second_per_gpu: Interval
    mfu: Interval
    mfu_non_causal: Interval
    gpu_hours: Interval
    days: Interval
    energy_mwh: Interval
    dollars: Interval
    dollars_owned: Interval | None
    rate: Rate
    owned: Rate | None
    flops_per_token: float

    @property
    def fits(self) -> bool:
        return self.memory_gib.point <= self.capacity_gib

    @property
    def mfu_basis(self) -> str:
        peak = self.request.accelerator.bf16_tflops
        return f"causal attention, without input embedding and MTP, over the BF16 peak of {peak:g} TFLOPS"


def default_batch(request: TrainRequest) -> int:
    """Sequences a step where none are given: 4M tokens, 16M from 100B parameters on, one sequence a GPU at least."""
    tokens = 16e6 if count_parameters(request.shape).total > 1e11 else 4e6
    unit = max(1, request.gpus)
    return max(unit, round(tokens / request.seq / unit) * unit)


def train_plan(
    request: TrainRequest, layout: Layout, data: Data, rate: Rate, searched: bool = False, must_fit: bool = True
) -> TrainPlan:
    """Price `request` under `layout`. Raises ValueError where the layout does not divide or the model does not fit."""
    batch = request.batch or default_batch(request)
    layout.check(request.shape, request.gpus, batch)
    job = request.job(data, batch)
    memory = memory_parts(job, layout)
    need, limit = sum(memory.values()), capacity(job)
    if must_fit and need > limit * MEMORY_FACTOR:
        raise ValueError(does_not_fit(request, layout, memory, limit))
    step = step_time(job, layout)
    if searched and request.shape.experts:
        step = replace(step, parts={**step.parts, "search": SEARCH_OPTIMISM * step.total})
    seconds = Interval.within(step.total, math.exp(half_width(request, searched)))
    speed = seconds.inverse(batch * request.seq / request.gpus)
    hours = speed.inverse(request.tokens / 3600)
    energy = energy_per_gpu_hour(request.accelerator, data)
    owned = owned_rate(request.accelerator, data)
    causal = train_flops_per_token(request.shape, request.seq)
    peak = request.accelerator.bf16_tflops * 1e12
    return TrainPlan(
        request=request,
        layout=layout,
        batch=batch,
        step=step,
        memory_bytes=memory,
        memory_gib=Interval.within(need / GIB, MEMORY_FACTOR),
        capacity_gib=limit / GIB,
        step_seconds=seconds,
        tokens_per_second_per_gpu=speed,
        mfu=speed.scaled(causal / peak),
        mfu_non_causal=speed.scaled(train_flops_per_token(request.shape, request.seq, causal=False) / peak),
        gpu_hours=hours,
        days=hours.scaled(1 / 24 / request.gpus),
        energy_mwh=hours.times(energy).scaled(1e-3),
        dollars=hours.times(rate.dollars),
        dollars_owned=hours.times(owned.dollars) if owned else None,
        rate=rate,
        owned=owned,
        flops_per_token=causal,
    )


def half_width(request: TrainRequest, searched: bool) -> float:
    """Half of the 80% interval's width on a log scale, from what the request leaves open."""
    architecture = request.accelerator.architecture
    reasons = {
        "any": True,
        "experts": request.shape.experts > 0,
        "blackwell": architecture.startswith("blackwell"),
        "pytorch": request.stack in PYTORCH,
        "auto": searched,
        "undated": request.software is None,
        "cpu": architecture == "cpu",
    }
    return min(WIDEST * 0.98, math.hypot(*(HALF_WIDTHS[name] for name, holds in reasons.items() if holds)))


def does_not_fit(request: TrainRequest, layout: Layout, memory: dict[str, float], limit: float) -> str:
    """By how much, what takes most, and what would help."""
    need = sum(memory.values())
    largest = max(memory, key=memory.__getitem__)
    mends = {
        "weights": "raise pp, tp or ep",
        "gradients": "raise pp, tp or ep, or use zero2",
        "master_weights": "use zero1 or more GPUs",
        "moments": "use zero1 or more GPUs",
        "activations": "use --recompute full, a smaller mbs, or more pp, tp or cp",
        "communication_buffers": "use a smaller mbs",
        "context": "use a device with more memory",
    }
    return (
        f"{request.model} does not fit {request.accelerator.name} with {layout.axes()}: needs {need / GIB:.1f} GiB of "
        f"{limit / GIB:.1f}, {(need - limit) / GIB:.1f} too much, {memory[largest] / GIB:.1f} of it "
        f"{largest.replace('_', ' ')}; {mends[largest]}, or let --parallel auto search"
    )
