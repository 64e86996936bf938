"""What one layer of a network asks of one device for one microbatch: products, attention, bytes, messages, memory."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ziphius.cost.layout import Layout
from ziphius.cost.machine import BYTES, Machine
from ziphius.cost.shape import Shape


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass over a layer, by part. `recomputed` is what selective recomputation runs again."""

    gemm: float = 0.0
    experts: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    tensor_messages: float = 0.0
    expert_messages: float = 0.0
    recomputed: float = 0.0

    @property
    def compute(self) -> float:
        return self.gemm + self.experts + self.attention + self.elementwise

    def plus(self, other: Pass) -> Pass:
        return Pass(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def scaled(self, by: float) -> Pass:
        return Pass(*(getattr(self, f.name) * by for f in fields(self)))


@dataclass(frozen=True)
class LayerCost:
    """Forward, backward for inputs and backward for weights; bytes that a token leaves behind for the backward pass."""

    forward: Pass
    inputs: Pass
    weights: Pass
    saved_bytes_per_token: float
    dense_weights: float
    expert_weights: float


@dataclass(frozen=True)
class Work:
    """A microbatch: tokens on this device, mean tokens attended to, precision, unevenness of the experts' load.

    `plain`: attention by PyTorch's own kernels. `thrifty`: gates' inputs are cached in FP8 too (V3 §3.3.3).
    """

    tokens: float
    context: float
    precision: str
    imbalance: float = 1.0
    plain: bool = False
    thrifty: bool = False


def layer_cost(machine: Machine, shape: Shape, layout: Layout, work: Work, moe: bool) -> LayerCost:
    """One layer's cost on one device under `layout`."""
    dense, up = attention_products(shape, layout.tp), 0.0
    ffn = shape.shared_experts * shape.moe_intermediate if moe else shape.intermediate
    if ffn:
        dense += mlp_products(shape, ffn / layout.tp)
    forward, inputs, weights = _three_passes(machine, dense, work.tokens, 1, work.precision)
    if shape.mla:
        up = sum(machine.gemm(work.tokens, n, k, work.precision) for n, k in _up_products(shape, layout.tp))
    experts = (0.0, 0.0, 0.0)
    local_experts = max(1.0, shape.experts / layout.ep) if moe else 0.0
    if moe:
        products = mlp_products(shape, shape.moe_intermediate)
        per_expert = work.tokens / layout.tp * shape.top_k / local_experts * work.imbalance
        times = _three_passes(machine, products, per_expert, round(local_experts), work.precision)
        experts = tuple(time / machine.software.grouped for time in times)  # type: ignore[assignment]
        router = _three_passes(machine, [(shape.experts, shape.hidden)], work.tokens / layout.tp, 1, "bf16")
        forward, inputs, weights = forward + router[0], inputs + router[1], weights + router[2]
    width = shape.qk_head_dim + shape.v_head_dim
    flops = 2 * work.tokens * work.context * shape.heads / layout.tp * width
    flash = machine.attention(flops, work.context, shape.v_head_dim, plain=work.plain)
    flash_back = machine.attention(2.5 * flops, work.context, shape.v_head_dim, backward=True, plain=work.plain)
    traffic = _elementwise_bytes(machine.software.routing_traffic, shape, layout, work, moe)
    stream = machine.stream(traffic.once + traffic.casts)
    tensor = _tensor_messages(machine, shape, layout, work) + max(
        0.0, _ring_seconds(machine, shape, layout, work) - flash
    )
    out, back = _expert_messages(machine, shape, layout, work) if moe else (0.0, 0.0)
    return LayerCost(
        forward=Pass(forward, experts[0], flash, stream, tensor, out, up + machine.stream(traffic.again)),
        inputs=Pass(
            inputs, experts[1], flash_back, machine.stream(2 * traffic.once + traffic.casts), 1.5 * tensor, back
        ),
        weights=Pass(weights, experts[2]),
        saved_bytes_per_token=_saved_bytes(shape, layout, work, moe),
        dense_weights=sum(n * k for n, k in dense) + (shape.experts * shape.hidden if moe else 0),
        expert_weights=shape.mlp_matrices * shape.hidden * shape.moe_intermediate * local_experts,
    )


def attention_products(shape: Shape, tp: int) -> list[tuple[float, float]]:
    """(columns, depth) of the projections around attention on one of `tp` devices."""
    out = (shape.hidden, shape.heads * shape.v_head_dim / tp)
    if shape.kv_lora_rank is None:
        return [((shape.heads + 2 * max(shape.kv_heads, tp)) * shape.qk_head_dim / tp, shape.hidden), out]
    down = shape.kv_lora_rank + shape.rope_dim + (shape.q_lora_rank or 0)
    return [(down, shape.hidden), *_up_products(shape, tp), out]


def _up_products(shape: Shape, tp: int) -> list[tuple[float, float]]:
    assert shape.kv_lora_rank is not None
    keys_and_values = shape.qk_head_dim - shape.rope_dim + shape.v_head_dim
    return [
        (shape.heads * shape.qk_head_dim / tp, shape.q_lora_rank or shape.hidden),
        (shape.heads * keys_and_values / tp, shape.kv_lora_rank),
    ]


def mlp_products(shape: Shape, width: float) -> list[tuple[float, float]]:
    return [((shape.mlp_matrices - 1) * width, shape.hidden), (shape.hidden, width)]


def _three_passes(
    machine: Machine, products: list[tuple[float, float]], rows: float, groups: int, precision: str
) -> tuple[float, float, float]:
    """Forward, gradient of the inputs, gradient of the weights (added to an FP32 sum: 8 bytes an element)."""
    forward = sum(machine.gemm(rows, n, k, precision, groups) for n, k in products)
    inputs = sum(machine.gemm(rows, k, n, precision, groups) for n, k in products)
    weights = sum(machine.gemm(n, k, rows, precision, groups, 8.0) for n, k in products)
    return forward, inputs, weights


@dataclass(frozen=True)
class _Traffic:
    once: float
    casts: float
    again: float


def _elementwise_bytes(routing: float, shape: Shape, layout: Layout, work: Work, moe: bool) -> _Traffic:
    """Least bytes of the forward pass's small kernels: norms and residuals, rotary, gating, routing; and FP8 casts."""
    D, tokens = shape.hidden, work.tokens
    norms = 16 * D / layout.tp
    heads = shape.heads * shape.qk_head_dim + shape.kv_heads * shape.qk_head_dim
    rotary = 4 * heads / layout.tp * (2 if shape.qk_norm else 1)
    if shape.mla:
        rotary += 4 * shape.heads * (shape.qk_head_dim + shape.v_head_dim) / layout.tp  # put nope and rope together
    dense = (shape.shared_experts * shape.moe_intermediate if moe else shape.intermediate) / layout.tp
    routed = shape.top_k * shape.moe_intermediate * work.imbalance / layout.tp if moe else 0.0
    gated = 2 * shape.mlp_matrices * (dense + routed)
    moved = (
        routing * shape.top_k * D * work.imbalance / layout.tp if moe else 0.0
    )  # permuted, sorted, padded, weighted, and back
    casts = 0.0
    if BYTES[work.precision] < 2:
        quantised = 2 * D + shape.heads * shape.v_head_dim / layout.tp + dense + routed
        quantised += shape.top_k * D * work.imbalance / layout.tp if moe else 0.0
        casts = 4 * quantised  # read BF16, write the copy and its transpose
    once = norms + rotary + gated + moved
    return _Traffic(tokens * once, tokens * casts, tokens * (norms / 2 + gated))


def _tensor_messages(machine: Machine, shape: Shape, layout: Layout, work: Work) -> float:
    """Two gathers and two scatters of the hidden state a layer, in BF16."""
    if layout.tp == 1:
        return 0.0
    inside = layout.tp <= machine.accelerator.nvlink_domain
    amount = 4 * work.tokens * shape.hidden * 2 * (layout.tp - 1) / layout.tp
    return amount / (machine.nvlink() if inside else machine.nic())


def _ring_seconds(machine: Machine, shape: Shape, layout: Layout, work: Work) -> float:
    """Context parallelism: each device's keys and values go round the ring while attention works; MLA sends latents."""
    if layout.cp == 1:
        return 0.0
    inside = layout.cp * layout.tp <= machine.accelerator.nvlink_domain
    width = shape.kv_heads * (shape.qk_head_dim + shape.v_head_dim) / layout.tp
    if shape.kv_lora_rank is not None:
        width = shape.kv_lora_rank + shape.rope_dim
    return work.tokens * width * 2 * (layout.cp - 1) / (machine.nvlink() if inside else machine.nic())


def _expert_messages(machine: Machine, shape: Shape, layout: Layout, work: Work) -> tuple[float, float]:
    """Seconds to send tokens to their experts and back: forward pass, and backward pass."""
    if layout.ep == 1:
        return 0.0, 0.0
    routed = expert_copies(shape, layout.ep, machine.accelerator.nvlink_domain, machine.software.deduplicated)
    out = 1.0 if BYTES[work.precision] < 2 and machine.software.deduplicated > 0.3 else 2.0
    tokens = work.tokens / layout.tp * work.imbalance

    def seconds(width: float) -> float:
        amount = tokens * shape.hidden * width
        rates = machine.nic(), machine.nvlink()
        return (
            max(amount * copies / rate for copies, rate in zip(routed, rates, strict=True))
            / machine.software.all_to_all
        )

    return seconds(out) + seconds(2.0), seconds(2.0) + seconds(2.0 if out == 2.0 else 1.0)


def expert_copies(shape: Shape, ep: int, domain: int, deduplicated: float = 1.0) -> tuple[float, float]:
    """Copies of a token that cross between NVLink domains, and within them, in an all-to-all over `ep` devices.

    A deduplicating all-to-all sends one copy to each domain that holds an expert of the token and forwards it over
    NVLink (V3 §3.2.2, at most `top_groups` domains where a group is no larger than a domain); a plain one sends each.
    """
    domains = max(1.0, ep / domain)
    reached = domains * (1 - (1 - 1 / domains) ** shape.top_k)
    if shape.moe_groups > 1 and domains >= shape.moe_groups:
        reached = min(reached, shape.top_groups * domains / shape.moe_groups)
    once, each = reached * (1 - 1 / domains), shape.top_k * (1 - 1 / domains)
    between = deduplicated * once + (1 - deduplicated) * each
    devices = ep * (1 - (1 - 1 / ep) ** shape.top_k)
    within = min(devices, shape.top_k * (1 - 1 / ep))
    return (between if domains > 1 else 0.0), within


def _saved_bytes(shape: Shape, layout: Layout, work: Work, moe: bool) -> float:
    """Bytes a token keeps for the backward pass under the layout's recomputation; FP8 products' inputs are kept FP8."""
    D, kept = shape.hidden, 1.0 if BYTES[work.precision] < 2 else 2.0
    if layout.recompute == "full":
        return 2 * D / layout.tp
    heads = shape.heads * (shape.qk_head_dim + shape.v_head_dim) + shape.kv_heads * shape.v_head_dim
    qkv = 2 * (heads + (shape.kv_heads * shape.qk_head_dim))
    if shape.mla and layout.recompute == "selective":
        qkv = (
            2 * ((shape.q_lora_rank or D) + (shape.kv_lora_rank or 0) + shape.rope_dim)
            + 2 * shape.heads * shape.v_head_dim
        )
    ffn = (
        shape.shared_experts * shape.moe_intermediate + shape.top_k * shape.moe_intermediate
        if moe
        else shape.intermediate
    )
    gate = (shape.mlp_matrices - 1) * ffn * (kept if work.thrifty and layout.recompute == "selective" else 2.0)
    routed = shape.top_k * D * kept if moe else 0.0
    norms = 0.0 if layout.recompute == "selective" else 2 * D * kept + ffn * kept
    return (4 * D + qkv + gate + routed + norms) / layout.tp
