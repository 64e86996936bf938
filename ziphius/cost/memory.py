"""Memory that training takes on the fullest device, by part."""

from __future__ import annotations

from ziphius.cost.layout import Layout
from ziphius.cost.machine import BYTES
from ziphius.cost.step import Job, Stage, moment_bytes, optimiser_share, stage_cost

CONTEXT_BYTES = 3 * 2**30  # driver, libraries, communicators
USABLE = 0.92  # of the card before the allocator's gaps stop a run


def memory_parts(job: Job, layout: Layout) -> dict[str, float]:
    """Bytes on one device: weights, gradients, master weights, moments, activations, buffers. They add up to the need.

    FP32 master weights and gradients, moments as `moment_bytes`; DeepSeek's FP8 training keeps a one-byte working
    copy (V3 §3.3), other stacks BF16 weights.
    DualPipe holds two copies of its stage and pp + 1 activations, 1F1B and ZB1P pp (V3 table 2).
    """
    stage = stage_cost(job, layout)
    held = stage.dense_weights + stage.expert_weights
    share = optimiser_share(job, layout, stage)
    copies = 2 if layout.schedule == "dualpipe" else 1
    width = 1.0 if BYTES[job.precision] < 2 and job.stack == "deepseek" else 2.0
    tokens = layout.microbatch * job.seq / layout.cp
    parts = {
        "weights": held * width * copies,
        "gradients": (share if layout.zero >= 2 else held) * 4.0,
        "master_weights": share * 4.0,
        "moments": share * moment_bytes(job),
        "activations": stage.saved_bytes_per_token * tokens * _in_flight(job, layout)
        + _working_set(job, layout, tokens),
        "communication_buffers": _buffers(job, layout, stage, tokens),
        "context": float(CONTEXT_BYTES),
    }
    if layout.zero == 3:  # shards, and the layers that are gathered at the moment: this one and the next
        gathered = 2 * held / max(1, (job.shape.layers + job.shape.mtp_layers) / layout.pp)
        parts["weights"] = share * width + gathered * width
    return parts


def capacity(job: Job) -> float:
    """Bytes of one device that a run can use."""
    return job.machine.accelerator.memory_gb * 1e9 * USABLE


def _in_flight(job: Job, layout: Layout) -> float:
    """Microbatches whose activations the first stage holds, in units of its layers."""
    count = layout.microbatches(job.gpus, job.batch)
    if layout.schedule == "dualpipe":
        return layout.pp + 1
    held = layout.pp + (layout.pp - 1) / layout.vpp if layout.vpp > 1 else layout.pp
    return min(held, count)


def _working_set(job: Job, layout: Layout, tokens: float) -> float:
    """What lives only while a layer or the loss is computed: logits with their gradient, one layer's intermediates."""
    shape = job.shape
    logits = tokens * shape.vocab / layout.tp * 6 / (layout.pp if layout.pp > 1 and tokens > 16384 else 1)
    ffn = shape.top_k * shape.moe_intermediate + shape.shared_experts * shape.moe_intermediate
    wide = (
        max(shape.intermediate, ffn) * 6 + 8 * shape.hidden + 4 * shape.heads * (shape.qk_head_dim + shape.v_head_dim)
    )
    return max(logits, tokens * wide / layout.tp)


def _buffers(job: Job, layout: Layout, stage: Stage, tokens: float) -> float:
    """Messages under way: the experts' tokens out and back, the pipeline's activations, a bucket of gradients."""
    routed = job.shape.top_k * tokens * job.shape.hidden / layout.tp * 6 * job.imbalance if layout.ep > 1 else 0.0
    passed = 4 * tokens * job.shape.hidden / layout.tp if layout.pp > 1 else 0.0
    bucket = min(2e9, (stage.dense_weights + stage.expert_weights) * 2)
    return routed + passed + bucket
