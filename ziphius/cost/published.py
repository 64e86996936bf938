"""Published results as rows, and what the planner says of each: the raw material of `ziphius plan accuracy`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import date as Date
from typing import Literal

from pydantic import Field, model_validator

from ziphius.cost.data import Data
from ziphius.cost.decode import Pool
from ziphius.cost.flops import count_parameters, train_flops_per_token
from ziphius.cost.interval import Interval
from ziphius.cost.layout import Layout, Recompute, Schedule, parse_layout
from ziphius.cost.machine import SUSTAINED
from ziphius.cost.money import rental_rate
from ziphius.cost.phases import load_phases, plan_phases
from ziphius.cost.rl import RLRequest, rl_plan
from ziphius.cost.rows import Name, Positive, Row
from ziphius.cost.serve import UTILISATION, serve_plan
from ziphius.cost.shape import Shape
from ziphius.cost.step import Stack, step_time
from ziphius.cost.train import TrainRequest, default_batch, half_width
from ziphius.cost.workload import ServeRequest, Workload

NAIVE_SHARE = 0.40
NODE = 8


class Published(Row):
    """What all published results say. `fitted` names the planner's constants that the row helped to set."""

    name: str
    group: str = ""
    model: Name
    gpu: Name
    software: Date
    layout: Literal["published", "assumed"] = "assumed"
    fitted: tuple[str, ...] = ()
    bound: bool = False
    note: str = ""


class PublishedTrain(Published):
    """A training speed: tokens/s or model TFLOPS per GPU, or GPU-hours for `tokens`. `parallel` may be auto."""

    gpus: int = Field(ge=1)
    seq: int = Field(4096, ge=2)
    batch: int | None = Field(None, ge=1)
    precision: Literal["bf16", "fp8", "fp4"] = "bf16"
    parallel: str = "auto"
    schedule: Schedule = "1f1b"
    recompute: Recompute = "selective"
    imbalance: float = Field(1.0, ge=1)
    stack: Stack = "tuned"
    watts: Positive | None = None
    mtp: bool = True
    tokens_per_second_per_gpu: Positive | None = None
    tflops_per_gpu: Positive | None = None
    gpu_hours: Positive | None = None
    tokens: Positive | None = None

    @model_validator(mode="after")
    def _one_result(self) -> PublishedTrain:
        results = (self.tokens_per_second_per_gpu, self.tflops_per_gpu, self.gpu_hours)
        if sum(result is not None for result in results) != 1 or (self.gpu_hours is None) != (self.tokens is None):
            raise ValueError("give one of tokens_per_second_per_gpu, tflops_per_gpu, or gpu_hours with tokens")
        return self


class PublishedPhases(Published):
    """GPU-hours of some phases of a file of phases."""

    phases: str
    names: tuple[str, ...]
    gpus: int = Field(ge=1)
    precision: Literal["bf16", "fp8"] = "fp8"
    schedule: Schedule = "1f1b"
    gpu_hours: Positive


class PublishedRL(Published):
    """GPU-hours of a GRPO stage; what is not given is R1-Zero's."""

    gpus: int = Field(ge=1)
    steps: int = Field(ge=1)
    gpu_hours: Positive


class PublishedServe(Published):
    """Tokens a second and node of 8 GPUs, of full pools or, with `fleet`, a day's mean; input counts hits there."""

    input: Positive
    output: Positive
    hit: float = Field(0.0, ge=0, lt=1)
    context: Positive | None = None
    user_speed: Positive = 20
    prefill_gpus: int | None = None
    decode_gpus: int | None = None
    precision: Literal["bf16", "fp8", "fp4"] = "fp8"
    kv: Literal["bf16", "fp8"] = "bf16"
    acceptance: float = Field(0.0, ge=0, le=1)
    colocated: bool = False
    concurrency: Positive | None = None
    fleet: bool = False
    quantity: Literal["input", "output"]
    tokens_per_second_per_node: Positive


KINDS: dict[str, type[Published]] = {
    "published_train": PublishedTrain,
    "published_phases": PublishedPhases,
    "published_rl": PublishedRL,
    "published_serve": PublishedServe,
}


@dataclass(frozen=True)
class Outcome:
    """A prediction beside what was published, in `unit`; `naive` is what the simple rule says, where it applies."""

    row: Published
    unit: str
    predicted: Interval
    published: float
    naive: float | None

    @property
    def ratio(self) -> float:
        return self.predicted.point / self.published

    @property
    def inside(self) -> bool:
        return self.predicted.low <= self.published <= self.predicted.high


@dataclass(frozen=True)
class Setting:
    """Values of the constants that rows helped to set, as factors on the shipped ones; for leave-one-out."""

    sustained: float = 1.0
    launches: float = 1.0
    launches_rack: float = 1.0
    framework: float = 1.0


SHIPPED = Setting()


def outcome(row: Published, data: Data) -> Outcome:
    """What the planner says of `row`."""
    if isinstance(row, PublishedTrain):
        return _train(row, data)
    if isinstance(row, PublishedPhases):
        return _phases(row, data)
    if isinstance(row, PublishedRL):
        return _rl(row, data)
    assert isinstance(row, PublishedServe)
    return _serve(row, data)


def _train(row: PublishedTrain, data: Data) -> Outcome:
    request = train_request(row, data)
    seconds = Interval.within(train_seconds(row, data, SHIPPED), math.exp(half_width(request, row.parallel == "auto")))
    batch = row.batch or default_batch(request)
    speed = seconds.inverse(batch * row.seq / row.gpus)
    naive = _naive_speed(row, request.shape, data)
    if row.tflops_per_gpu is not None:
        flops = train_flops_per_token(request.shape, row.seq)
        return Outcome(row, "TFLOPS/GPU", speed.scaled(flops / 1e12), row.tflops_per_gpu, naive * flops / 1e12)
    if row.gpu_hours is not None and row.tokens is not None:
        return Outcome(row, "GPU-hours", speed.inverse(row.tokens / 3600), row.gpu_hours, row.tokens / naive / 3600)
    assert row.tokens_per_second_per_gpu is not None
    return Outcome(row, "tokens/s/GPU", speed, row.tokens_per_second_per_gpu, naive)


def train_request(row: PublishedTrain, data: Data) -> TrainRequest:
    shape = data.shape(row.model)
    return TrainRequest(
        row.model, shape if row.mtp else replace(shape, mtp_layers=0), data.accelerator(row.gpu), row.gpus, 1e12,
        row.seq, row.batch, row.precision, row.software, row.stack, row.imbalance, row.watts,
    )  # fmt: skip


def train_seconds(row: PublishedTrain, data: Data, setting: Setting) -> float:
    """Seconds of a step of `row` under other values of the fitted constants."""
    request = train_request(row, data)
    job = request.job(data, row.batch or default_batch(request))
    if setting != SHIPPED:
        software = job.machine.software
        scaled = software.model_copy(
            update={
                "moe_launches": software.moe_launches * setting.launches,
                "moe_launches_rack": software.moe_launches_rack * setting.launches_rack,
            }
        )
        job = replace(job, machine=replace(job.machine, software=scaled, sustained=SUSTAINED * setting.sustained))
    step = step_time(job, _layout(row, request, data))
    return step.total + step.parts.get("framework", 0.0) * (setting.framework - 1)


def _layout(row: PublishedTrain, request: TrainRequest, data: Data) -> Layout:
    if row.parallel == "auto":
        from ziphius.cost.search import search_layouts

        return search_layouts(request, data).best[0].layout
    layout = parse_layout(row.parallel, schedule=row.schedule, recompute=row.recompute)
    layout.check(request.shape, row.gpus, row.batch or default_batch(request))
    return layout


def _naive_speed(row: Published, shape: Shape, data: Data) -> float:
    """Tokens a second and GPU at 40% of the BF16 peak on 6·N, N the active parameters."""
    return NAIVE_SHARE * data.accelerator(row.gpu).bf16_tflops * 1e12 / (6 * count_parameters(shape).active)


def _phases(row: PublishedPhases, data: Data) -> Outcome:
    accelerator, shape = data.accelerator(row.gpu), data.shape(row.model)
    stack: Stack = "deepseek" if row.schedule == "dualpipe" else "tuned"
    request = TrainRequest(
        row.model, shape, accelerator, row.gpus, 1.0, precision=row.precision, software=row.software, stack=stack
    )
    chosen = [phase for phase in load_phases(row.phases) if phase.name in row.names]
    rate = rental_rate(accelerator, data)
    plans = plan_phases(request, Layout(schedule=row.schedule), chosen, data, rate)
    tokens = sum(phase.tokens for phase in chosen)
    naive = tokens / _naive_speed(row, shape, data) / 3600
    return Outcome(row, "GPU-hours", plans.gpu_hours, row.gpu_hours, naive)


def _rl(row: PublishedRL, data: Data) -> Outcome:
    accelerator, shape = data.accelerator(row.gpu), data.shape(row.model)
    request = RLRequest(row.model, shape, accelerator, row.gpus, row.steps, software=row.software)
    plan = rl_plan(request, data, rental_rate(accelerator, data))
    naive = plan.generated_tokens / _naive_speed(row, shape, data) / 3600
    return Outcome(row, "GPU-hours", plan.gpu_hours, row.gpu_hours, naive)


def _serve(row: PublishedServe, data: Data) -> Outcome:
    accelerator, shape = data.accelerator(row.gpu), data.shape(row.model)

    def pool(gpus: int | None) -> Pool | None:
        return None if gpus is None else Pool.of(shape, gpus, 1 if shape.experts else gpus)

    speed_asked = row.user_speed if row.concurrency is None else 0.0
    work = Workload(row.input, row.output, row.hit, row.context, speed_asked, concurrency=row.concurrency)
    request = ServeRequest(
        row.model, shape, accelerator, work, row.precision, row.kv, row.acceptance, row.software,
        prefill=pool(row.prefill_gpus), decode=pool(row.decode_gpus), colocated=row.colocated,
    )  # fmt: skip
    plan = serve_plan(request, data, rental_rate(accelerator, data, dollars=1.0), UTILISATION)
    bandwidth = accelerator.memory_tb_s / data.accelerator("h800").memory_tb_s
    if row.quantity == "output":
        speed, naive = plan.output_tokens_per_second_per_gpu, 14800 * bandwidth
    else:
        speed, naive = plan.input_tokens_per_second_per_gpu, 73700 * bandwidth
        speed = speed.scaled(1 / (1 - row.hit)) if row.fleet else speed
    if row.fleet:
        speed = speed.times(UTILISATION)
    own = row.fleet and row.model == "deepseek-r1"  # the rule's own rows
    published = row.tokens_per_second_per_node
    return Outcome(row, f"{row.quantity} tokens/s/node", speed.scaled(NODE), published, None if own else naive)
