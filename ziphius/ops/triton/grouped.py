"""Split-KV decoding attention over a paged cache of keys and values that queries share, in Triton.

As `paged.py`, with a program for a token's split and one of its heads of the cache, whose queries are padded to the 16
rows of a matrix unit: each key and value is read once for all queries that share it.

Sources: Ainslie et al. 2023 (arXiv 2305.13245) for shared heads; Flash-Decoding (Dao, Haziza, Massa, Sizov 2023).

N tokens, H heads of queries, G heads of the cache, K key, V value, S slots of the memory, P splits.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from ziphius.ops.placement import Layout, Placement
from ziphius.ops.triton import interpreted
from ziphius.ops.triton.paged import LOG2E, MERGED, Splits, Tiles, fold, merge_splits, split_length
from ziphius.ops.triton.sizes import padded

_TILE_BYTES = 16 << 10  # of keys, and of values, at a time


def grouped_decode(q_NHK: Tensor, memory_SX: Tensor, placement: Placement, layout: Layout, scale: float) -> Tensor:
    """`ops.paged.paged_attention` -> [N, H, V] in the queries' dtype. Asks the device nothing, so a graph can hold it.

    Beside its result it needs room for N·P·H·V fp32, P being the splits of the longest sequence that `tables_BM` has
    room for. No gradients.
    """
    q_NHK = q_NHK.contiguous()
    N, H, K = q_NHK.shape
    V, sharing = layout.value, H // layout.heads
    splits = Splits.of(H)
    P = splits.count(placement.tables_BM.shape[1] * placement.block_size)
    tiles = tiles_for(q_NHK, memory_SX, layout)
    out_NHV = q_NHK.new_empty(N, H, V)
    partial_NPHV = q_NHK.new_empty(N if P > 1 else 0, P, H, V, dtype=torch.float32)
    mass_NPH = q_NHK.new_empty(N if P > 1 else 0, P, H, dtype=torch.float32)
    # one number format for both factors, and the interpreter multiplies no bf16
    wide = interpreted() or q_NHK.dtype != memory_SX.dtype
    programs = N * layout.heads * triton.cdiv(sharing, tiles.heads)
    with torch.cuda.device(q_NHK.device) if q_NHK.is_cuda else nullcontext():
        attend_split[(programs, P)](
            q_NHK, memory_SX, placement.tables_BM, placement.rows_N, placement.positions_N,
            out_NHV, partial_NPHV, mass_NPH,
            scale * LOG2E, H, layout.heads, P, memory_SX.stride(0), placement.tables_BM.stride(0),
            K=K, V=V, VALUES=layout.value_start, PAGE=placement.block_size, SPLIT=splits.length, MOST=splits.most,
            BLOCK_H=tiles.heads, BLOCK_S=tiles.columns, BLOCK_K=padded(K), BLOCK_V=padded(V), WIDE=wide,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
        if P > 1:
            merge_splits[(N, H)](
                partial_NPHV, mass_NPH, placement.positions_N, out_NHV, H, P,
                C=V, SPLIT=splits.length, MOST=splits.most, BLOCK_C=padded(V), BLOCK_P=MERGED, num_warps=4,
            )  # fmt: skip
    return out_NHV


def tiles_for(q_NHK: Tensor, memory_SX: Tensor, layout: Layout) -> Tiles:
    """Queries that share a key fill up the 16 rows of a matrix unit, mostly with zeros: memory is the limit."""
    element = max(q_NHK.element_size(), memory_SX.element_size())
    row = max(padded(layout.key), padded(layout.value)) * element
    columns = next(size for size in (64, 32, 16) if size * row <= _TILE_BYTES or size == 16)
    return Tiles(16, columns, 4, 3)


@triton.jit
def attend_split(
    q_NHK, memory_SX, tables_BM, rows_N, positions_N, out_NHV, partial_NPHV, mass_NPH,
    scale_log2, H, G, P, memory_stride, table_stride,
    K: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr, PAGE: tl.constexpr, SPLIT: tl.constexpr,
    MOST: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """One split of one token's sequence, for a block of the queries that share one head of the cache.

    A sequence of one split has its result at once; else the split's own result and the log2 of its mass are kept.
    """
    sharing = H // G
    blocks = tl.cdiv(sharing, BLOCK_H)
    n = (tl.program_id(0) // (G * blocks)).to(tl.int64)
    g = tl.program_id(0) // blocks % G
    split = tl.program_id(1)
    length = (tl.load(positions_N + n) + 1).to(tl.int32)
    step = split_length(length, SPLIT, MOST)
    start = split * step
    if start >= length:
        return
    end = tl.minimum(start + step, length)

    own = (tl.program_id(0) % blocks) * BLOCK_H + tl.arange(0, BLOCK_H)
    h = g * sharing + own
    k = tl.arange(0, BLOCK_K)
    v = tl.arange(0, BLOCK_V)
    is_head = own[:, None] < sharing
    q = tl.load(q_NHK + (n * H + h[:, None]) * K + k[None, :], mask=is_head & (k[None, :] < K), other=0.0)
    if WIDE:
        q = q.to(tl.float32)

    table = tables_BM + tl.load(rows_N + n).to(tl.int64) * table_stride
    best = tl.full([BLOCK_H], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_H], tl.float32)
    mixed = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
    for first in range(start, end, BLOCK_S):
        column = first + tl.arange(0, BLOCK_S)
        seen = column < end
        page = tl.load(table + column // PAGE, mask=seen, other=0).to(tl.int64)
        entries = memory_SX + (page * PAGE + column % PAGE)[:, None] * memory_stride
        keys = tl.load(entries + g * K + k[None, :], mask=seen[:, None] & (k[None, :] < K), other=0.0)
        values = tl.load(entries + VALUES + g * V + v[None, :], mask=seen[:, None] & (v[None, :] < V), other=0.0)
        if WIDE:
            keys = keys.to(tl.float32)
            values = values.to(tl.float32)
        scores = tl.dot(q, tl.trans(keys), input_precision="tf32x3")
        scores = tl.where(seen[None, :], scores * scale_log2, float("-inf"))
        best, mass, mixed = fold(scores, values, best, mass, mixed)

    mixed = mixed / mass[:, None]
    kept = is_head & (v[None, :] < V)
    if step >= length:
        tl.store(out_NHV + (n * H + h[:, None]) * V + v[None, :], mixed.to(out_NHV.dtype.element_ty), mask=kept)
    else:
        row = (n * P + split) * H + h
        tl.store(partial_NPHV + row[:, None] * V + v[None, :], mixed, mask=kept)
        tl.store(mass_NPH + row, best + tl.log2(mass), mask=own < sharing)
