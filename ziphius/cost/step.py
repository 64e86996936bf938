"""One training step of one layout: where its seconds go. Pipeline bubbles by the schedules' own formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, get_args

from ziphius.cost.layer import LayerCost, Pass, Work, layer_cost
from ziphius.cost.layout import Layout
from ziphius.cost.machine import BYTES, Machine
from ziphius.cost.shape import Shape

COMMUNICATION_UNITS = 20 / 132  # of the chip that DualPipe keeps for messages (V3 §3.2.2)
STRAGGLERS = 0.03  # of every step lost to the slowest device, plus STRAGGLERS_PER_DOUBLING beyond 8
STRAGGLERS_PER_DOUBLING = 0.005


Stack = Literal["deepseek", "tuned", "compiled", "eager"]
STACKS: tuple[str, ...] = get_args(Stack)
UNFUSED = {"deepseek": 1.0, "tuned": 1.0, "compiled": 1.15, "eager": 1.8}  # small kernels' bytes over hand-fused ones'
LAUNCHES = {"deepseek": 0.0, "tuned": 1.0, "compiled": 1.0, "eager": 2.0}
LAUNCHES_ALONE = 0.3  # of `moe_launches` does not depend on the microbatch; the rest grows with its routed copies. The
LAUNCHES_COPIES = 4096 * 8  # share is a guess: all published rows have this many
TENSOR_OVERLAP = {
    "deepseek": 1.0,
    "tuned": 1.0,
    "compiled": 0.5,
    "eager": 0.0,
}  # of what the software of the time hides
PYTORCH = ("compiled", "eager")
FRAMEWORK = 0.04  # of a step that plain PyTorch loses besides: allocator, FSDP's copies, hooks (torchtitan's rows)


@dataclass(frozen=True)
class Job:
    """What is trained, on what, in which batches: `batch` in sequences of `seq` tokens.

    `stack`: DeepSeek's own kernels (DeepGEMM, DeepEP, DualPipe's overlap), other hand-fused ones (Megatron), plain
    PyTorch compiled, or PyTorch run eagerly.
    `imbalance`: load of the busiest device's experts over the mean.
    """

    shape: Shape
    machine: Machine
    gpus: int
    seq: int
    batch: int
    precision: str
    imbalance: float = 1.0
    stack: Stack = "tuned"

    @cached_property
    def kernels(self) -> Machine:
        """The machine as this stack drives it."""
        return self.machine.with_deepseek_kernels() if self.stack == "deepseek" else self.machine


@dataclass(frozen=True)
class Stage:
    """One pipeline stage's microbatch: passes of all its layers, its weights on one device, what a token leaves."""

    forward: Pass
    inputs: Pass
    weights: Pass
    saved_bytes_per_token: float
    dense_weights: float
    expert_weights: float
    dense_launches: float
    moe_launches: float
    head: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by part; they add up to `total`. `forward` … `weights` are one microbatch's, on one stage."""

    parts: dict[str, float]
    forward: float
    backward: float
    weights: float
    microbatches: int

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@lru_cache(maxsize=512)
def stage_cost(job: Job, layout: Layout) -> Stage:
    """The mean stage: layers, prediction modules and head spread evenly over the pipeline."""
    shape, machine = job.shape, job.kernels
    work = Work(
        tokens=layout.microbatch * job.seq / layout.cp,
        context=shape.mean_causal_context(job.seq),
        precision=job.precision,
        imbalance=job.imbalance,
        plain=job.stack in PYTORCH,
        thrifty=job.stack == "deepseek",
    )
    counts = {moe: 0 for moe in (False, True)}
    for layer in range(shape.layers + shape.mtp_layers):
        counts[shape.is_moe_layer(layer)] += 1
    layers = {moe: layer_cost(machine, shape, layout, work, moe) for moe, count in counts.items() if count}
    total = _weighted(layers, counts, layout.pp)
    heads = (1 + shape.mtp_layers) / layout.pp
    vocab = shape.vocab / layout.tp
    products = [
        machine.gemm(work.tokens, vocab, shape.hidden),
        machine.gemm(work.tokens, shape.hidden, vocab),
        machine.gemm(vocab, shape.hidden, work.tokens, out_bytes=8.0),
    ]
    loss = machine.stream(12 * work.tokens * vocab)  # logits in FP32, their maximum and sum, their gradient
    joining = (
        shape.mtp_layers * 3 * machine.gemm(work.tokens, shape.hidden / layout.tp, 2 * shape.hidden, job.precision)
    )
    rack = machine.accelerator.nvlink_domain > 8
    moe_launches = machine.software.moe_launches_rack if rack else machine.software.moe_launches
    waits = LAUNCHES_ALONE + (1 - LAUNCHES_ALONE) * work.tokens * shape.top_k / LAUNCHES_COPIES
    ends = shape.vocab * shape.hidden / layout.tp * (1 if shape.tied or layout.pp > 1 else 2)  # the fullest stage
    return Stage(
        forward=total.forward,
        inputs=total.inputs,
        weights=total.weights,
        saved_bytes_per_token=total.saved_bytes_per_token,
        dense_weights=total.dense_weights + ends,
        expert_weights=total.expert_weights,
        dense_launches=machine.software.dense_launches * counts[False] / layout.pp * LAUNCHES[job.stack],
        moe_launches=moe_launches * waits * counts[True] / layout.pp * LAUNCHES[job.stack],
        head=heads * (sum(products) + loss) + joining / layout.pp,
    )


def _weighted(layers: dict[bool, LayerCost], counts: dict[bool, int], stages: int) -> LayerCost:
    """All layers of one of `stages` equal shares of the network."""
    forward = inputs = weights = Pass()
    saved = dense = experts = 0.0
    for moe, cost in layers.items():
        share = counts[moe] / stages
        forward = forward.plus(cost.forward.scaled(share))
        inputs = inputs.plus(cost.inputs.scaled(share))
        weights = weights.plus(cost.weights.scaled(share))
        saved += cost.saved_bytes_per_token * share
        dense += cost.dense_weights * share
        experts += cost.expert_weights * share
    return LayerCost(forward, inputs, weights, saved, dense, experts)


def step_time(job: Job, layout: Layout) -> StepTime:
    """Seconds of one optimiser step. The layout must have passed `Layout.check`."""
    stage, software = stage_cost(job, layout), job.machine.software
    count = layout.microbatches(job.gpus, job.batch)
    unfused = UNFUSED[job.stack]
    f, i, w = stage.forward, stage.inputs, stage.weights
    kept = 0.5 * f.gemm if job.stack in PYTORCH else 0.0  # PyTorch's selective checkpoints keep every second product
    again = {"none": 0.0, "selective": f.recomputed + kept, "full": f.compute + f.tensor_messages}[layout.recompute]
    elementwise = (f.elementwise + i.elementwise) * unfused
    products = f.gemm + i.gemm + w.gemm
    experts = f.experts + i.experts + w.experts
    attention = f.attention + i.attention
    compute = products + experts + attention + elementwise + again + stage.head
    tensor = (f.tensor_messages + i.tensor_messages) * (1 - software.tp_overlap * TENSOR_OVERLAP[job.stack])
    messages = f.expert_messages + i.expert_messages
    if layout.schedule == "dualpipe":  # forward and backward of two microbatches hide one another's messages
        slowed = compute / (1 - COMMUNICATION_UNITS) - compute if messages else 0.0
        waiting = slowed + max(0.0, messages - compute - slowed)
    else:
        waiting = messages * (1 - software.ep_overlap)
    host = max(0.0, stage.dense_launches - compute) + stage.moe_launches
    uneven = _unevenness(job.shape, layout)
    whole = compute + tensor + waiting + host
    slowest = whole * uneven
    forward_share = (f.compute + f.elementwise * (unfused - 1) + stage.head / 3 + f.tensor_messages / 2) / compute
    forward = slowest * min(0.5, forward_share)
    backward = slowest - forward
    weights = (w.compute + stage.head / 3) * uneven
    bubble = _bubble(layout, forward, backward, weights)
    gradients = _gradient_seconds(job, layout, stage, slowest, count)
    parts = {
        "matrix_products": (products + stage.head) * count,
        "experts": experts * count,
        "attention": attention * count,
        "elementwise": elementwise * count,
        "recomputation": again * count,
        "tensor_messages": tensor * count,
        "expert_messages": waiting * count,
        "launches": host * count,
        "uneven_stages": (slowest - whole) * count,
        "bubble": bubble,
        "gradient_messages": gradients,
        "optimiser": _optimiser_seconds(job, layout, stage),
    }
    lost = STRAGGLERS + STRAGGLERS_PER_DOUBLING * max(0.0, math.log2(job.gpus / 8))
    total = sum(parts.values())
    parts["stragglers"] = lost * total
    if job.stack in PYTORCH:
        parts["framework"] = FRAMEWORK * total
    return StepTime(parts, forward, backward, weights, count)


def _bubble(layout: Layout, forward: float, backward: float, weights: float) -> float:
    """Idle seconds of a step: V3 table 2 for the three schedules; interleaving divides 1F1B's (Megatron-LM, §2.2)."""
    if layout.pp == 1:
        return 0.0
    if layout.schedule == "zb1p":
        return (layout.pp - 1) * max(0.0, forward + backward - 2 * weights)
    if layout.schedule == "dualpipe":
        return (layout.pp / 2 - 1) * max(0.0, forward + 2 * backward - 3 * weights)
    return (layout.pp - 1) * (forward + backward) / layout.vpp


def _unevenness(shape: Shape, layout: Layout) -> float:
    """Slowest stage over the mean one: layers are whole; embedding and head stand in for a layer each."""
    if layout.pp == 1:
        return 1.0
    units = shape.layers + shape.mtp_layers + 1
    chunks = layout.pp * layout.vpp
    return max(1.0, min(math.ceil(units / chunks), math.ceil((units - 1) / chunks)) * chunks / units)


def _gradient_seconds(job: Job, layout: Layout, stage: Stage, microbatch: float, count: int) -> float:
    """What is left of gradient sums and weight gathers after hiding them behind compute.

    A group with several members in each NVLink domain spreads its traffic over their network cards.
    """
    machine, domain = job.machine, job.machine.accelerator.nvlink_domain
    replicas = layout.data_parallel(job.gpus) * layout.cp
    expert_replicas = max(1, replicas * layout.tp // layout.ep)
    width = max(1.0, BYTES[job.precision])
    per_weight = 4.0 + width if layout.zero < 3 else 2.0 + 2 * width  # sums in FP32; FSDP's in BF16, and two gathers
    seconds = 0.0
    groups = ((stage.dense_weights, replicas, layout.tp), (stage.expert_weights, expert_replicas, layout.ep))
    for weights, members, apart in groups:
        if members > 1:
            together = max(1.0, domain / apart)
            rate = machine.nvlink() if members <= together else min(machine.nvlink(), machine.nic() * together)
            seconds += weights * per_weight * (members - 1) / members / rate
    repeats = count if layout.zero == 3 else 1
    cover = microbatch * (count if layout.zero == 3 else min(count, layout.pp))
    return repeats * seconds - min(repeats * seconds, cover) * machine.software.dp_overlap


def _optimiser_seconds(job: Job, layout: Layout, stage: Stage) -> float:
    """AdamW on this device's share: gradient (read twice, for its norm too), master weights, moments, new weights."""
    return job.machine.stream(optimiser_share(job, layout, stage) * (8 + 8 + 2 * moment_bytes(job) + 2))


def optimiser_share(job: Job, layout: Layout, stage: Stage) -> float:
    """Weights whose optimiser state this device holds: ZeRO spreads them over the replicas."""
    if layout.zero == 0:
        return stage.dense_weights + stage.expert_weights
    replicas = layout.data_parallel(job.gpus) * layout.cp
    expert_replicas = max(1, replicas * layout.tp // layout.ep)
    return stage.dense_weights / replicas + stage.expert_weights / expert_replicas


def moment_bytes(job: Job) -> float:
    """Both of Adam's moments per weight: BF16 on DeepSeek's stack (V3 §3.3.2), FP32 otherwise."""
    return 4.0 if job.stack == "deepseek" else 8.0
