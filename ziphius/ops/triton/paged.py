"""Split-KV decoding attention over a paged latent cache, in Triton.

A token's sequence is cut into splits, and its heads into blocks; each pair of the two is a program, which reads its
part of the memory once for all of the block's heads. A second kernel merges a token's splits in order. Where the cuts
fall depends on the sequence's length and the number of heads alone, so that a token's result is the same bits whatever
else is in the step.

Sources: Flash-Decoding (Dao, Haziza, Massa, Sizov 2023) for the splits; V2 §2.1.2 for the absorbed form, in which one
latent is key and value of all heads; FlashMLA (deepseek-ai, 2025) for blocks of 64 heads on Hopper.

N tokens, H heads, C latent, R rope part, X = C + R, S slots of the memory, P splits.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ziphius.ops.placement import Placement
from ziphius.ops.triton import interpreted
from ziphius.ops.triton.sizes import padded, shared_bytes

LOG2E = 1.4426950408889634
MERGED = 16  # splits that the second kernel takes at a time
_TILE_BYTES = 40 << 10  # of the memory, at a time: two of them and the queries fit beside any multiprocessor
_HOPPER_BYTES = 200 << 10  # of shared memory, from which a block of 64 heads has room


@dataclass(frozen=True)
class Tiles:
    """How the work is cut: a program takes `heads` heads and `columns` columns at a time, with so many warps."""

    heads: int
    columns: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Splits:
    """A split holds a multiple of `length` columns, and a sequence has at most `most` of them."""

    length: int
    most: int

    @classmethod
    def of(cls, heads: int) -> Splits:
        """What a split leaves behind (`heads` fp32 latents) is to stay small beside what it reads."""
        return cls(min(max(256, 16 * heads), 1024), max(32, 2048 // heads))

    def count(self, columns: int) -> int:
        """The most splits that a sequence of up to `columns` tokens has."""
        return min(self.most, -(-columns // self.length))


def latent_decode(
    q_NHX: Tensor, memory_SX: Tensor, placement: Placement, rank: int, scale: float, tiles: Tiles | None = None
) -> Tensor:
    """`ops.paged.paged_attention` -> [N, H, C] in the queries' dtype. Asks the device nothing, so a graph can hold it.

    Beside its result it needs room for N·P·H·C fp32, P being the splits of the longest sequence that `tables_BM` has
    room for. No gradients.
    """
    q_NHX = q_NHX.contiguous()
    N, H, X = q_NHX.shape
    splits = Splits.of(H)
    P = splits.count(placement.tables_BM.shape[1] * placement.block_size)
    tiles = tiles or tiles_for(q_NHX, memory_SX, rank)
    out_NHC = q_NHX.new_empty(N, H, rank)
    partial_NPHC = q_NHX.new_empty(N if P > 1 else 0, P, H, rank, dtype=torch.float32)
    mass_NPH = q_NHX.new_empty(N if P > 1 else 0, P, H, dtype=torch.float32)
    # one number format for both factors, and the interpreter multiplies no bf16
    wide = interpreted() or q_NHX.dtype != memory_SX.dtype
    blocks = triton.cdiv(H, tiles.heads)
    with torch.cuda.device(q_NHX.device) if q_NHX.is_cuda else nullcontext():
        _attend_split[(N * blocks, P)](
            q_NHX, memory_SX, placement.tables_BM, placement.rows_N, placement.positions_N,
            out_NHC, partial_NPHC, mass_NPH,
            scale * LOG2E, H, P, memory_SX.stride(0), placement.tables_BM.stride(0),
            C=rank, R=X - rank, PAGE=placement.block_size, SPLIT=splits.length, MOST=splits.most,
            BLOCK_H=tiles.heads, BLOCK_S=tiles.columns, BLOCK_C=padded(rank), BLOCK_R=padded(X - rank), WIDE=wide,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
        if P > 1:
            merge_splits[(N, H)](
                partial_NPHC, mass_NPH, placement.positions_N, out_NHC, H, P,
                C=rank, SPLIT=splits.length, MOST=splits.most, BLOCK_C=padded(rank), BLOCK_P=MERGED, num_warps=4,
            )  # fmt: skip
    return out_NHC


def tiles_for(q_NHX: Tensor, memory_SX: Tensor, rank: int) -> Tiles:
    """Few heads are padded to the 16 of a matrix unit; 64 and more go in blocks of 64 where shared memory allows.

    Chosen for what a compiler for Hopper makes of them: no registers spilled at C = 512, R = 64 in bf16.
    """
    _, H, X = q_NHX.shape
    element = max(q_NHX.element_size(), memory_SX.element_size())
    columns = 32 if 32 * (padded(rank) + padded(X - rank)) * element < _TILE_BYTES else 16
    if H <= 16 or element > 2 or rank > 512:
        return Tiles(16, columns, 4 if rank <= (512 if element == 2 else 128) else 8, 3)
    if H < 64 or shared_bytes(q_NHX.device) < _HOPPER_BYTES:
        return Tiles(32, columns, 8, 3)
    return Tiles(64, columns, 8, 3)


@triton.jit
def split_length(length, SPLIT: tl.constexpr, MOST: tl.constexpr):
    """Columns of each of a sequence's splits, but for its last."""
    return SPLIT * tl.cdiv(tl.cdiv(length, SPLIT), MOST)


@triton.jit
def _attend_split(
    q_NHX, memory_SX, tables_BM, rows_N, positions_N, out_NHC, partial_NPHC, mass_NPH,
    scale_log2, H, P, memory_stride, table_stride,
    C: tl.constexpr, R: tl.constexpr, PAGE: tl.constexpr, SPLIT: tl.constexpr, MOST: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One split of one token's sequence, for a block of its heads.

    A sequence of one split has its result at once; else the split's own result and the log2 of its mass are kept.
    """
    blocks = tl.cdiv(H, BLOCK_H)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    split = tl.program_id(1)
    length = (tl.load(positions_N + n) + 1).to(tl.int32)
    step = split_length(length, SPLIT, MOST)
    start = split * step
    if start >= length:
        return
    end = tl.minimum(start + step, length)

    h = (tl.program_id(0) % blocks) * BLOCK_H + tl.arange(0, BLOCK_H)
    c = tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_R)
    is_head = h[:, None] < H
    q_rows = q_NHX + (n * H + h[:, None]) * (C + R)
    q_c = tl.load(q_rows + c[None, :], mask=is_head & (c[None, :] < C), other=0.0)
    q_r = tl.load(q_rows + C + r[None, :], mask=is_head & (r[None, :] < R), other=0.0)
    if WIDE:
        q_c = q_c.to(tl.float32)
        q_r = q_r.to(tl.float32)

    table = tables_BM + tl.load(rows_N + n).to(tl.int64) * table_stride
    best = tl.full([BLOCK_H], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_H], tl.float32)
    mixed = tl.zeros([BLOCK_H, BLOCK_C], tl.float32)
    for first in range(start, end, BLOCK_S):
        column = first + tl.arange(0, BLOCK_S)
        seen = column < end
        page = tl.load(table + column // PAGE, mask=seen, other=0).to(tl.int64)
        entries = memory_SX + (page * PAGE + column % PAGE)[:, None] * memory_stride
        k_c = tl.load(entries + c[None, :], mask=seen[:, None] & (c[None, :] < C), other=0.0)
        k_r = tl.load(entries + C + r[None, :], mask=seen[:, None] & (r[None, :] < R), other=0.0)
        if WIDE:
            k_c = k_c.to(tl.float32)
            k_r = k_r.to(tl.float32)
        scores = tl.dot(q_c, tl.trans(k_c), input_precision="tf32x3")
        scores = tl.dot(q_r, tl.trans(k_r), scores, input_precision="tf32x3")
        scores = tl.where(seen[None, :], scores * scale_log2, float("-inf"))
        best, mass, mixed = fold(scores, k_c, best, mass, mixed)

    mixed = mixed / mass[:, None]
    kept = is_head & (c[None, :] < C)
    if step >= length:
        tl.store(out_NHC + (n * H + h[:, None]) * C + c[None, :], mixed.to(out_NHC.dtype.element_ty), mask=kept)
    else:
        row = (n * P + split) * H + h
        tl.store(partial_NPHC + row[:, None] * C + c[None, :], mixed, mask=kept)
        tl.store(mass_NPH + row, best + tl.log2(mass), mask=h < H)


@triton.jit
def fold(scores, values, best, mass, mixed):
    """A block of columns more in the softmax of a block of rows, whose highest score (of base 2), mass, and mix of
    values so far are `best`, `mass` and `mixed`."""
    higher = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    fade = tl.exp2(best - higher)
    mass = mass * fade + tl.sum(weights, 1)
    mixed = tl.dot(weights.to(values.dtype), values, mixed * fade[:, None], input_precision="tf32x3")
    return higher, mass, mixed


@triton.jit
def merge_splits(
    partial_NPHC, mass_NPH, positions_N, out_NHC, H, P,
    C: tl.constexpr, SPLIT: tl.constexpr, MOST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One token's head: the mean of its splits' results, weighted by their masses."""
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    length = (tl.load(positions_N + n) + 1).to(tl.int32)
    step = split_length(length, SPLIT, MOST)
    if step >= length:
        return
    splits = tl.cdiv(length, step)
    c = tl.arange(0, BLOCK_C)
    best = float("-inf")
    mass = 0.0
    mixed = tl.zeros([BLOCK_C], tl.float32)
    for first in range(0, splits, BLOCK_P):
        split = first + tl.arange(0, BLOCK_P)
        row = (n * P + split) * H + h
        log_mass = tl.load(mass_NPH + row, mask=split < splits, other=float("-inf"))
        inside = (split < splits)[:, None] & (c[None, :] < C)
        part = tl.load(partial_NPHC + row[:, None] * C + c[None, :], mask=inside, other=0.0)
        higher = tl.maximum(best, tl.max(log_mass, 0))
        weights = tl.exp2(log_mass - higher)
        fade = tl.exp2(best - higher)
        mass = mass * fade + tl.sum(weights, 0)
        mixed = mixed * fade + tl.sum(part * weights[:, None], 0)
        best = higher
    out = out_NHC + (n * H + h) * C + c
    tl.store(out, (mixed / mass).to(out_NHC.dtype.element_ty), mask=c < C)
