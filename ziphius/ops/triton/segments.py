"""Causal attention within packed samples, forward and backward, in Triton: no T×T matrix is ever written.

A program takes a block of queries (or of keys) of one head through the keys (or queries) between its samples' bounds;
what lies in other samples is not even read. Scores, sums and gradients are fp32. The head of queries and keys is cut
into a power of two and a rest (128 + 64 in V3), which a matrix unit multiplies without padding. Queries of a group of
heads share a key head. Nothing is added up by atomics: the same input gives the same bits.

Source: FlashAttention-2 (Dao 2023, arXiv 2307.08691), algorithms 1 and 2, with the bounds of a sample for its lengths.

B batch, T time, H heads, G key/value heads, K query/key head, V value head.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from ziphius.ops.triton import interpreted
from ziphius.ops.triton.sizes import padded, shared_bytes

_LOG2E = tl.constexpr(1.4426950408889634)
_LARGE = 160 << 10  # bytes of shared memory, as Ampere's and Hopper's large cards have


def segment_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, segments_BT: Tensor, scale: float) -> Tensor:
    """softmax(q·kᵀ·scale)·v -> [B, T, H, V] over the tokens of the same sample up to each token, with gradients.

    A sample is a run of equal numbers in `segments_BT`. Asks the device nothing.
    """
    starts, ends = sample_bounds(segments_BT)
    return _attend(q_BTHK.contiguous(), k_BTGK.contiguous(), v_BTGV.contiguous(), starts, ends, scale)[0]


def sample_bounds(segments_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sample of each token starts, and where it has ended: int32 [B, T], neither ever falls along a row."""
    T = segments_BT.shape[1]
    place = torch.arange(T, dtype=torch.int32, device=segments_BT.device)
    changes = segments_BT[:, 1:] != segments_BT[:, :-1]
    first = torch.nn.functional.pad(changes, (1, 0), value=True)
    last = torch.nn.functional.pad(changes, (0, 1), value=True)
    starts = torch.where(first, place, 0).cummax(1).values
    ends = torch.where(last, place + 1, T).flip(1).cummin(1).values.flip(1)
    return starts, ends


# An operator of torch's, so that a compiler leaves it whole and a recomputation can keep its result.
@torch.library.custom_op("ziphius::segment_attention", mutates_args=())
def _attend(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, starts_BT: Tensor, ends_BT: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """-> out [B, T, H, V], and log2 of each softmax's sum [B, H, T]."""
    B, T, H, _ = q_BTHK.shape
    out_BTHV = q_BTHK.new_empty(B, T, H, v_BTGV.shape[-1])
    mass_BHT = q_BTHK.new_empty(B, H, T, dtype=torch.float32)
    sizes, tiles = _sizes(q_BTHK, k_BTGK, v_BTGV), _tiles(q_BTHK.element_size(), shared_bytes(q_BTHK.device))
    with _on(q_BTHK):
        _forward[(triton.cdiv(T, tiles["ROWS"]), B * H)](
            q_BTHK, k_BTGK, v_BTGV, starts_BT, out_BTHV, mass_BHT, scale * _LOG2E.value, T, **sizes, **tiles
        )
    return out_BTHV, mass_BHT


@_attend.register_fake
def _(q_BTHK, k_BTGK, v_BTGV, starts_BT, ends_BT, scale):
    B, T, H, _ = q_BTHK.shape
    return q_BTHK.new_empty(B, T, H, v_BTGV.shape[-1]), q_BTHK.new_empty(B, H, T, dtype=torch.float32)


@torch.library.custom_op("ziphius::segment_attention_backward", mutates_args=())
def _attend_backward(
    grad_BTHV: Tensor, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, starts_BT: Tensor, ends_BT: Tensor,
    out_BTHV: Tensor, mass_BHT: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    B, T, H, _ = q_BTHK.shape
    grad_BTHV = grad_BTHV.contiguous()
    drop_BHT = torch.linalg.vecdot(grad_BTHV.float(), out_BTHV.float()).transpose(1, 2).contiguous()
    grads = torch.empty_like(q_BTHK), torch.empty_like(k_BTGK), torch.empty_like(v_BTGV)
    sizes, tiles = (
        _sizes(q_BTHK, k_BTGK, v_BTGV),
        _tiles(q_BTHK.element_size(), shared_bytes(q_BTHK.device), backward=True),
    )
    inputs = q_BTHK, k_BTGK, v_BTGV, grad_BTHV, mass_BHT, drop_BHT
    blocks = triton.cdiv(T, tiles["ROWS"])
    with _on(q_BTHK):
        _grad_queries[(blocks, B * H)](*inputs, starts_BT, grads[0], scale, T, **sizes, **tiles)
        _grad_keys[(blocks, B * k_BTGK.shape[2])](
            *inputs, starts_BT, ends_BT, grads[1], grads[2], scale, T, **sizes, **tiles
        )
    return grads


@_attend_backward.register_fake
def _(grad, q_BTHK, k_BTGK, v_BTGV, *rest):
    return torch.empty_like(q_BTHK), torch.empty_like(k_BTGK), torch.empty_like(v_BTGV)


def _remember(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _):
    return *_attend_backward(grad, *ctx.saved_tensors, ctx.scale), None, None, None


_attend.register_autograd(_backward, setup_context=_remember)


def _sizes(q: Tensor, k: Tensor, v: Tensor) -> dict[str, int | bool]:
    K, V = q.shape[-1], v.shape[-1]
    whole = max(16, 1 << (K.bit_length() - 1))  # the largest power of two in K; a matrix unit takes no less than 16
    rest = max(0, K - whole)
    return {
        "H": q.shape[2], "G": k.shape[2], "K": K, "V": V, "WHOLE": whole, "REST": padded(rest) if rest else 0,
        "WIDTH": padded(V), "WIDE": interpreted(),  # the interpreter multiplies no bf16
    }  # fmt: skip


def _tiles(element: int, shared: int, backward: bool = False) -> dict[str, int]:
    """Rows and columns of a block of scores, by the bytes of an element and of a multiprocessor's shared memory.

    Chosen for what a compiler for Hopper makes of them: at K = 192, V = 128 in bf16 they fit its memory and spill next
    to no registers. Smaller cards and fp32 get small blocks.
    """
    if element > 2 or shared < _LARGE:
        return {"ROWS": 32, "COLUMNS": 32, "num_warps": 4, "num_stages": 1}
    if backward:
        return {"ROWS": 64, "COLUMNS": 64, "num_warps": 8, "num_stages": 1}
    return {"ROWS": 128, "COLUMNS": 64, "num_warps": 8, "num_stages": 2}


def _on(x: Tensor):
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@triton.jit
def _load(base, row, valid, stride, first, SIZE: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Columns first … first + BLOCK (of SIZE) of the given rows; nought where there are none. A sequence may have more
    elements than 32 bits count."""
    column = first + tl.arange(0, BLOCK)
    inside = valid[:, None] & (column[None, :] < SIZE)
    tile = tl.load(base + row[:, None].to(tl.int64) * stride + column[None, :], mask=inside, other=0.0)
    return tile.to(tl.float32) if WIDE else tile


@triton.jit
def _store(base, row, valid, stride, first, SIZE: tl.constexpr, BLOCK: tl.constexpr, tile):
    column = first + tl.arange(0, BLOCK)
    inside = valid[:, None] & (column[None, :] < SIZE)
    tl.store(base + row[:, None].to(tl.int64) * stride + column[None, :], tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _forward(
    q_BTHK, k_BTGK, v_BTGV, starts_BT, out_BTHV, mass_BHT, scale_log2, T,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WHOLE: tl.constexpr, REST: tl.constexpr,
    WIDTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One block of one head's queries, over the keys of their samples."""
    b, h = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    first = tl.program_id(0) * ROWS
    row = first + tl.arange(0, ROWS)
    is_row = row < T
    start = tl.load(starts_BT + b * T + row, mask=is_row, other=0)
    q_rows = q_BTHK + (b * T * H + h) * K
    k_rows = k_BTGK + (b * T * G + h // (H // G)) * K
    v_rows = v_BTGV + (b * T * G + h // (H // G)) * V
    q = _load(q_rows, row, is_row, H * K, 0, K, WHOLE, WIDE)
    if REST:
        q_rest = _load(q_rows, row, is_row, H * K, WHOLE, K, REST, WIDE)

    best = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    lowest = tl.load(starts_BT + b * T + first) // COLUMNS * COLUMNS
    for left in range(lowest, tl.minimum(first + ROWS, T), COLUMNS):
        column = left + tl.arange(0, COLUMNS)
        is_column = column < T
        k = _load(k_rows, column, is_column, G * K, 0, K, WHOLE, WIDE)
        scores = tl.dot(q, tl.trans(k), input_precision="tf32x3")
        if REST:
            k_rest = _load(k_rows, column, is_column, G * K, WHOLE, K, REST, WIDE)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="tf32x3")
        seen = (column[None, :] <= row[:, None]) & (column[None, :] >= start[:, None])
        scores = tl.where(seen, scores * scale_log2, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # of rows whose sample begins further on
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(best - base)
        mass = mass * fade + tl.sum(weights, 1)
        v = _load(v_rows, column, is_column, G * V, 0, V, WIDTH, WIDE)
        mixed = tl.dot(weights.to(v.dtype), v, mixed * fade[:, None], input_precision="tf32x3")
        best = higher

    _store(out_BTHV + (b * T * H + h) * V, row, is_row, H * V, 0, V, WIDTH, mixed / mass[:, None])
    tl.store(mass_BHT + (b * H + h) * T + row, best + tl.log2(mass), mask=is_row)


@triton.jit
def _score_grads(
    q, q_rest, k, k_rest, v, grad, mass, drop, seen, scale,
    REST: tl.constexpr,
):  # fmt: skip
    """The weights of a block of scores, and the gradient of the products before they were scaled."""
    scores = tl.dot(q, tl.trans(k), input_precision="tf32x3")
    if REST:
        scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="tf32x3")
    weights = tl.exp2(tl.where(seen, scores * (scale * _LOG2E) - mass[:, None], float("-inf")))
    grad_weights = tl.dot(grad, tl.trans(v), input_precision="tf32x3")
    return weights, weights * (grad_weights - drop[:, None]) * scale


@triton.jit
def _grad_queries(
    q_BTHK, k_BTGK, v_BTGV, grad_BTHV, mass_BHT, drop_BHT, starts_BT, grad_q_BTHK, scale, T,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WHOLE: tl.constexpr, REST: tl.constexpr,
    WIDTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One block of one head's queries, over the keys of their samples."""
    b, h = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    first = tl.program_id(0) * ROWS
    row = first + tl.arange(0, ROWS)
    is_row = row < T
    start = tl.load(starts_BT + b * T + row, mask=is_row, other=0)
    q_rows = q_BTHK + (b * T * H + h) * K
    k_rows = k_BTGK + (b * T * G + h // (H // G)) * K
    v_rows = v_BTGV + (b * T * G + h // (H // G)) * V
    q = _load(q_rows, row, is_row, H * K, 0, K, WHOLE, WIDE)
    q_rest = _load(q_rows, row, is_row, H * K, WHOLE, K, REST, WIDE) if REST else q
    grad = _load(grad_BTHV + (b * T * H + h) * V, row, is_row, H * V, 0, V, WIDTH, WIDE)
    mass = tl.load(mass_BHT + (b * H + h) * T + row, mask=is_row, other=0.0)
    drop = tl.load(drop_BHT + (b * H + h) * T + row, mask=is_row, other=0.0)

    grad_q = tl.zeros([ROWS, WHOLE], tl.float32)
    if REST:
        grad_rest = tl.zeros([ROWS, REST], tl.float32)
    lowest = tl.load(starts_BT + b * T + first) // COLUMNS * COLUMNS
    for left in range(lowest, tl.minimum(first + ROWS, T), COLUMNS):
        column = left + tl.arange(0, COLUMNS)
        is_column = column < T
        k = _load(k_rows, column, is_column, G * K, 0, K, WHOLE, WIDE)
        k_rest = _load(k_rows, column, is_column, G * K, WHOLE, K, REST, WIDE) if REST else k
        v = _load(v_rows, column, is_column, G * V, 0, V, WIDTH, WIDE)
        seen = is_row[:, None] & (column[None, :] <= row[:, None]) & (column[None, :] >= start[:, None])
        _, grad_scores = _score_grads(q, q_rest, k, k_rest, v, grad, mass, drop, seen, scale, REST)
        grad_scores = grad_scores.to(k.dtype)
        grad_q = tl.dot(grad_scores, k, grad_q, input_precision="tf32x3")
        if REST:
            grad_rest = tl.dot(grad_scores, k_rest, grad_rest, input_precision="tf32x3")
    out = grad_q_BTHK + (b * T * H + h) * K
    _store(out, row, is_row, H * K, 0, K, WHOLE, grad_q)
    if REST:
        _store(out, row, is_row, H * K, WHOLE, K, REST, grad_rest)


@triton.jit
def _grad_keys(
    q_BTHK, k_BTGK, v_BTGV, grad_BTHV, mass_BHT, drop_BHT, starts_BT, ends_BT, grad_k_BTGK, grad_v_BTGV, scale, T,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WHOLE: tl.constexpr, REST: tl.constexpr,
    WIDTH: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One block of one key head's keys and values, over the queries of their samples in all heads of its group."""
    b, g = (tl.program_id(1) // G).to(tl.int64), tl.program_id(1) % G
    left = tl.program_id(0) * ROWS
    column = left + tl.arange(0, ROWS)
    is_column = column < T
    k_rows = k_BTGK + (b * T * G + g) * K
    k = _load(k_rows, column, is_column, G * K, 0, K, WHOLE, WIDE)
    k_rest = _load(k_rows, column, is_column, G * K, WHOLE, K, REST, WIDE) if REST else k
    v = _load(v_BTGV + (b * T * G + g) * V, column, is_column, G * V, 0, V, WIDTH, WIDE)

    grad_k = tl.zeros([ROWS, WHOLE], tl.float32)
    grad_v = tl.zeros([ROWS, WIDTH], tl.float32)
    if REST:
        grad_rest = tl.zeros([ROWS, REST], tl.float32)
    last = tl.load(ends_BT + b * T + tl.minimum(left + ROWS, T) - 1)
    for h in range(g * (H // G), (g + 1) * (H // G)):
        for first in range(left // COLUMNS * COLUMNS, last, COLUMNS):
            row = first + tl.arange(0, COLUMNS)
            is_row = row < T
            start = tl.load(starts_BT + b * T + row, mask=is_row, other=0)
            q_rows = q_BTHK + (b * T * H + h) * K
            q = _load(q_rows, row, is_row, H * K, 0, K, WHOLE, WIDE)
            q_rest = _load(q_rows, row, is_row, H * K, WHOLE, K, REST, WIDE) if REST else q
            grad = _load(grad_BTHV + (b * T * H + h) * V, row, is_row, H * V, 0, V, WIDTH, WIDE)
            mass = tl.load(mass_BHT + (b * H + h) * T + row, mask=is_row, other=0.0)
            drop = tl.load(drop_BHT + (b * H + h) * T + row, mask=is_row, other=0.0)
            seen = is_row[:, None] & (column[None, :] <= row[:, None]) & (column[None, :] >= start[:, None])
            weights, grad_scores = _score_grads(q, q_rest, k, k_rest, v, grad, mass, drop, seen, scale, REST)
            grad_v = tl.dot(tl.trans(weights.to(grad.dtype)), grad, grad_v, input_precision="tf32x3")
            grad_scores = tl.trans(grad_scores.to(q.dtype))
            grad_k = tl.dot(grad_scores, q, grad_k, input_precision="tf32x3")
            if REST:
                grad_rest = tl.dot(grad_scores, q_rest, grad_rest, input_precision="tf32x3")
    out = grad_k_BTGK + (b * T * G + g) * K
    _store(out, column, is_column, G * K, 0, K, WHOLE, grad_k)
    if REST:
        _store(out, column, is_column, G * K, WHOLE, K, REST, grad_rest)
    _store(grad_v_BTGV + (b * T * G + g) * V, column, is_column, G * V, 0, V, WIDTH, grad_v)
