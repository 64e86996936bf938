"""Seconds of one decoding step and of one prefill batch on a pool of devices that serve a model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ziphius.cost.flops import count_parameters, kv_bytes_per_token, weight_bytes
from ziphius.cost.layer import Work, attention_products, layer_cost, mlp_products
from ziphius.cost.layout import Layout
from ziphius.cost.machine import BYTES, LAUNCH_SECONDS, Machine
from ziphius.cost.shape import Shape

SMALL_KERNELS = 8  # norms, rotary, quantisation, routing: launches a layer, replayed from a graph
LATENT_READ = 0.89 / 0.85  # FlashMLA reads 3,000 of H800's 3,360 GB/s (open-infra-index), other kernels MEMORY_SHARE
LATENT_ARITHMETIC = 580 / 794.5  # FlashMLA's TFLOPS over the best product's
OVERLAP_LEFT = 0.3  # of the shorter of compute and messages that two interleaved batches do not hide
MESSAGE_SECONDS = {True: 8e-6, False: 20e-6}  # a message's latency within a domain and between (arXiv 2505.09343 §5)
STEP_SECONDS = 1.5e-3  # scheduling and sampling a step
PREFILL_TOKENS = 16384  # that a device takes at once
RESERVED = 0.12  # of memory for activations, graphs and libraries


@dataclass(frozen=True)
class Pool:
    """Devices that hold the model once: attention over `tp`, data-parallel beyond; experts over all of them."""

    gpus: int
    tp: int = 1
    redundant_experts: int = 0

    @property
    def groups(self) -> int:
        return self.gpus // self.tp

    @classmethod
    def of(cls, shape: Shape, gpus: int, tp: int = 1) -> Pool:
        """Beyond 8 devices an eighth of the experts, at least, is held twice, as many as make the shares even."""
        if not shape.experts or gpus <= 8:
            return cls(gpus, tp)
        return cls(gpus, tp, math.ceil(shape.experts * 1.125 / gpus) * gpus - shape.experts)


@dataclass(frozen=True)
class Serving:
    """What is served on what: weights in `precision`, keys and values in `kv_bytes` each."""

    machine: Machine
    shape: Shape
    precision: str
    kv_bytes: float
    imbalance: float = 1.0

    def expert_pool(self, pool: Pool) -> bool:
        """Experts are dealt out whole where they are at least as many as the devices, else cut like dense layers."""
        return self.shape.experts > 0 and self.shape.experts + pool.redundant_experts >= pool.gpus > 1


def weights_per_device(serving: Serving, pool: Pool) -> float:
    """Bytes of weights that one device of `pool` holds."""
    shape, width = serving.shape, BYTES[serving.precision]
    counts = count_parameters(shape)
    everything = weight_bytes(shape, width)
    experts = shape.moe_layers * counts.expert * shape.experts * width if shape.experts else 0.0
    spare = shape.moe_layers * counts.expert * pool.redundant_experts * width if shape.experts else 0.0
    return (everything - experts) / pool.tp + (experts + spare) / pool.gpus


def cache_room(serving: Serving, pool: Pool) -> float:
    """Tokens whose keys and values one attention group holds. Negative where the weights alone do not fit."""
    memory = serving.machine.accelerator.memory_gb * 1e9 * (1 - RESERVED)
    free = (memory - weights_per_device(serving, pool)) * pool.tp
    per_token = kv_bytes_per_token(serving.shape, serving.kv_bytes)
    copies = pool.tp if serving.shape.mla else max(1.0, pool.tp / serving.shape.kv_heads)
    return free / (per_token * copies)


def decode_seconds(serving: Serving, pool: Pool, sequences: float, context: float, drafts: int = 0) -> float:
    """One step of `sequences` a device, each attending to `context` tokens and verifying `drafts` tokens more."""
    machine, shape = serving.machine, serving.shape
    rows = sequences * pool.tp * (1 + drafts)
    attention = _decode_attention(serving, pool, sequences * pool.tp, rows, context)
    layers = shape.layers + (1 if drafts else 0)
    total = 0.0
    for moe in (False, True):
        count = shape.moe_layers if moe else shape.layers - shape.moe_layers
        if not count:
            continue
        compute, messages = _decode_mlp(serving, pool, rows, moe)
        compute += attention + _small_kernels(machine, shape, rows)
        messages += _reduces(machine, shape, pool, rows)
        longer, shorter = max(compute, messages), min(compute, messages)
        total += count * (longer + OVERLAP_LEFT * shorter if rows >= 32 and moe else compute + messages)
    head = machine.gemm(rows, shape.vocab / pool.tp, shape.hidden) * (2 if drafts else 1)
    return total * layers / shape.layers + head + STEP_SECONDS


def _decode_attention(serving: Serving, pool: Pool, sequences: float, rows: float, context: float) -> float:
    """Projections and reading the cache; MLA works on the latents (V2 §2.1.2)."""
    machine, shape = serving.machine, serving.shape
    products = attention_products(shape, pool.tp)
    seen = shape.mean_context(context)
    width = shape.qk_head_dim + shape.v_head_dim
    rate, arithmetic = machine.memory_bytes_per_second, machine.reached("bf16")
    absorbed = 0.0
    if shape.kv_lora_rank is not None:
        nope = shape.qk_head_dim - shape.rope_dim
        keys = (shape.heads * (nope + shape.v_head_dim) / pool.tp, shape.kv_lora_rank)
        products = [product for product in products if product != keys]
        heads = max(1, shape.heads // pool.tp)
        absorbed = machine.gemm(rows, shape.kv_lora_rank, nope, groups=heads)
        absorbed += machine.gemm(rows, shape.v_head_dim, shape.kv_lora_rank, groups=heads)
        width = 2 * shape.kv_lora_rank + shape.rope_dim
        rate, arithmetic = rate * LATENT_READ, arithmetic * LATENT_ARITHMETIC
    projections = sum(machine.gemm(rows, n, k, serving.precision) for n, k in products)
    per_token = kv_bytes_per_token(shape, serving.kv_bytes) / shape.layers
    if not shape.mla:
        per_token /= min(pool.tp, shape.kv_heads)
    read = sequences * seen * per_token / rate
    flops = 2 * rows * seen * shape.heads / pool.tp * width
    return projections + absorbed + max(read, flops / arithmetic) + LAUNCH_SECONDS


def _decode_mlp(serving: Serving, pool: Pool, rows: float, moe: bool) -> tuple[float, float]:
    """Seconds of the MLP or the experts, and of the experts' messages."""
    machine, shape = serving.machine, serving.shape
    if not moe:
        products = mlp_products(shape, shape.intermediate / pool.tp)
        return sum(machine.gemm(rows, n, k, serving.precision) for n, k in products), 0.0
    shared = mlp_products(shape, shape.shared_experts * shape.moe_intermediate) if shape.shared_experts else []
    compute = sum(machine.gemm(rows / pool.tp, n, k, serving.precision) for n, k in shared)
    everywhere = rows * pool.groups
    if not serving.expert_pool(pool):  # every device holds a slice of every expert
        products = mlp_products(shape, shape.moe_intermediate / pool.gpus)
        met = shape.experts * (1 - (1 - shape.top_k / shape.experts) ** everywhere)
        per_expert = max(1.0, everywhere * shape.top_k / met)
        return compute + _grouped(serving, products, per_expert, met), 0.0
    copies = shape.experts + pool.redundant_experts
    held = copies / pool.gpus
    met = max(1.0, held * (1 - (1 - shape.top_k / copies) ** everywhere))
    per_expert = max(1.0, everywhere * shape.top_k / pool.gpus / met * serving.imbalance)
    compute += _grouped(serving, mlp_products(shape, shape.moe_intermediate), per_expert, met)
    domain = machine.accelerator.nvlink_domain
    inside = pool.gpus <= domain
    sent = rows / pool.tp * shape.top_k * shape.hidden * (1.0 + 2.0) * serving.imbalance  # FP8 out, BF16 back
    between = 0.0 if inside else sent * (1 - domain / pool.gpus) / machine.nic()
    return compute, max(sent / machine.nvlink(), between) + 2 * MESSAGE_SECONDS[inside]


def _grouped(serving: Serving, products: list[tuple[float, float]], rows: float, groups: float) -> float:
    count = max(1, math.ceil(groups))
    seconds = sum(serving.machine.gemm(rows, n, k, serving.precision, count) for n, k in products)
    return seconds * groups / count / serving.machine.software.grouped


def _reduces(machine: Machine, shape: Shape, pool: Pool, rows: float) -> float:
    """Two sums over the tensor-parallel group a layer."""
    if pool.tp == 1:
        return 0.0
    inside = pool.tp <= machine.accelerator.nvlink_domain
    rate = machine.nvlink() if inside else machine.nic()
    return 2 * (2 * rows * shape.hidden * 2 * (pool.tp - 1) / pool.tp / rate + MESSAGE_SECONDS[inside])


def _small_kernels(machine: Machine, shape: Shape, rows: float) -> float:
    moved = rows * (16 * shape.hidden + (6 * shape.top_k * shape.hidden if shape.experts else 6 * shape.intermediate))
    return SMALL_KERNELS * LAUNCH_SECONDS + machine.stream(moved)


def prefill_seconds(serving: Serving, pool: Pool, tokens: float, context: float) -> float:
    """A batch of `tokens` new tokens a group through all layers, each attending to `context` tokens."""
    shape = serving.shape
    ep = pool.gpus if serving.expert_pool(pool) else 1
    layout = Layout(tp=pool.tp, ep=ep)
    whole = shape if serving.expert_pool(pool) or not shape.experts else _cut(shape, pool)
    work = Work(tokens, max(1.0, shape.mean_context(context)), serving.precision, serving.imbalance)
    total = 0.0
    for moe in (False, True):
        count = shape.moe_layers if moe else shape.layers - shape.moe_layers
        if count:
            forward = layer_cost(serving.machine, whole, layout, work, moe).forward
            messages = forward.tensor_messages + forward.expert_messages
            longer, shorter = max(forward.compute, messages), min(forward.compute, messages)
            total += count * (longer + OVERLAP_LEFT * shorter + SMALL_KERNELS * LAUNCH_SECONDS)
    return total + STEP_SECONDS


def _cut(shape: Shape, pool: Pool) -> Shape:
    """Experts too few for the pool, each cut over its devices."""
    return replace(shape, moe_intermediate=max(1, shape.moe_intermediate // pool.gpus * pool.tp))
